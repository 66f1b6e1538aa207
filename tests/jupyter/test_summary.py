"""What stays in the notebook of a job's view."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from burla.display.progress import Progress
from burla.protocol import Failure, JobState, Snapshot
from burla.serialize import dump_exception
from burla_jupyter import markup, summary
from burla_jupyter.controls import Controls
from burla_jupyter.log import Line
from burla_jupyter.panel import Panel
from burla_jupyter.summary import End

END = End("done", kept=True, lines=(), total_lines=0, only_in_log=0)


def progress(state: JobState = JobState.DONE, **counts: Any) -> Progress:
    made = Progress("<my>\x1bfunction", None, 100.0)
    made.begun("abc123", 10)
    snapshot = Snapshot(state=state, total=10, done=10, failed=0, running=0, nodes=1)
    made.apply(replace(snapshot, **counts), 101.0)
    return made


def failure(index: int, message: str) -> Failure:
    try:
        raise ValueError(message)
    except ValueError as error:
        return Failure(index, dump_exception(error, index))


class Page(HTMLParser):
    """The text of HTML by element, and whether every element is closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.details: list[str | None] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        assert tag in {"div", "span", "b", "details", "summary", "pre", "code"}
        assert {name for name, _ in attrs} <= {"class", "style", "role", "open"} | {
            name for name, _ in attrs if name.startswith("aria-")
        }
        if tag == "details":
            self.details.append("open" if ("open", None) in attrs else None)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_summary_says_how_the_job_went_and_how_to_come_back():
    for text in (summary.text(progress(), END, 175.0), Page(summary.html(progress(), END, 175.0)).text):
        assert "<my>�function" in text
        assert "done after 1:15: 10/10 calls done" in text
        assert 'burla.attach("abc123")' in text or "burla.attach('abc123')" in text
    assert "%burla attach abc123" in Page(summary.html(progress(), END, 175.0)).text


def test_a_job_that_is_not_kept_is_named_without_a_way_back():
    gone = replace(END, kept=False)
    assert "attach" not in summary.text(progress(), gone, 1.0) + summary.html(progress(), gone, 1.0)
    assert "abc123" in summary.html(progress(), gone, 1.0)


def test_failures_are_grouped_with_folded_tracebacks():
    job = progress(JobState.FAILED, done=7, failed=3, retries=2)
    job.note([failure(index, f"bad <value> {index}") for index in (4, 1, 9)])
    page = Page(summary.html(job, replace(END, standing="failed"), 110.0))
    assert "7/10 calls done, 3 failed, 2 retried" in page.text
    assert re.search(r"3 × ValueError at test_summary\.py:\d+: bad <value> 4 \(inputs 4, 1, 9\)", page.text)
    assert page.details == [None]
    assert "Traceback (most recent call last)" in page.text
    assert "3 × ValueError" in summary.text(job, END, 110.0)


def test_what_its_nodes_have_cost_stands_in_the_summary_and_in_the_view():
    free, paid = progress(JobState.RUNNING), progress(JobState.RUNNING, running=2, node_s=5400.0, usd=0.4567)
    assert "1.50 h of nodes, at most $0.46" in summary.text(paid, END, 110.0)
    panel = Panel(Controls(), lambda: None)
    panel.draw(paid, 110.0, 0, "")
    assert "running, 1.50 h of nodes, at most $0.46</span>" in panel._title.value
    panel.draw(free, 110.0, 0, "")
    assert "$" not in panel._title.value + summary.text(free, END, 110.0)


def test_the_last_lines_are_folded_unless_the_cell_does_not_have_them():
    lines = (Line(3, 1, "<b>\x1b[31mred\x1b[0m"), Line(12, 2, "\udcff"))
    some = Page(summary.html(progress(), replace(END, lines=lines, total_lines=2), 110.0))
    assert "Log: 2 lines" in some.text and some.details == [None]
    assert "     3  <b>red\n    12  �" in some.text
    flood = replace(END, lines=lines, total_lines=5000, only_in_log=4000)
    many = Page(summary.html(progress(), flood, 110.0))
    assert "Log: the last 2 of 5,000 lines, 4,000 of which are not in the cell's output" in many.text
    assert many.details == ["open"]


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (JobState.DONE, None, "done"),
        (JobState.CANCELLED, RuntimeError(), "cancelled"),
        (JobState.RUNNING, KeyboardInterrupt(), "interrupted"),
        (JobState.RUNNING, GeneratorExit(), "not read to its end"),
        (JobState.STOPPING, ValueError(), "failed"),
    ],
)
def test_a_job_that_is_shown_no_longer_is_named_by_its_state_or_by_why(
    state: JobState, error: BaseException | None, words: str
):
    assert summary.standing(progress(state), error) == words


def test_the_bar_is_divided_by_what_calls_do():
    html = markup.bar(progress(JobState.RUNNING, done=5, failed=1, running=2))
    widths = re.findall(r"background:(#\w+);width:([\d.]+)%", html)
    assert widths == [(markup.DONE, "50.00"), (markup.FAILED, "10.00"), (markup.RUNNING, "20.00")]
    assert 'aria-valuetext="5 of 10 done, 2 running, 1 failed, 2 waiting"' in html
    assert 'aria-valuenow="60"' in html


def test_numbers_keep_their_places_whatever_they_are():
    waiting, running = (
        markup.numbers(job, 130.0)
        for job in (Progress("f", None, 100.0), progress(JobState.RUNNING, done=5, failed=1, running=2, retries=3))
    )
    places = [re.findall(r'class="burla-(\w+)"', html) for html in (waiting, running)]
    assert places[0] == places[1]
    assert re.findall(r'font-weight:600">([^<]*)<', running)[:4] == ["5/10", "2", "1", "2"]
    assert re.findall(r'font-weight:600">([^<]*)<', waiting) == ["0/?", "0", "0", "0", "–", "0:30", "–", "0"]


def test_a_line_of_a_cell_is_told_without_the_file_name_that_kernels_give_it():
    job = progress()
    program = compile("raise KeyError('x')", "/tmp/ipykernel_7/123456.py", "exec")
    try:
        exec(program, {})
    except KeyError as error:
        job.note([Failure(0, dump_exception(error, 0))])
    (group,) = job.failures
    assert markup.place(group) == "line 1 of a cell"


@pytest.mark.parametrize("name", ["log.js", "log.css", "panel.css"])
def test_static_files_load_nothing_from_elsewhere(name: str):
    text = (Path(markup.__file__).parent / "static" / name).read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|\bimport\b", text)
