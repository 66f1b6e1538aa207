"""Jobs as text and HTML."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

from burla.display import job as display
from burla.job_parts import JobProgress, lines_of
from burla.protocol import JobInfo, JobList, JobState, Output, Snapshot

NOW_S = 1_700_000_000.0


def info(**changes: object) -> JobInfo:
    values: dict[str, object] = {
        "id": "a1b2c3d4e5f6",
        "function_name": "area",
        "owner": "ada",
        "detached": True,
        "on_error": "raise",
        "resumed": None,
        "snapshot": Snapshot(JobState.RUNNING, total=12_000, done=3000, failed=2, running=4, nodes=1, rate_per_s=100.0),
        "created_at_s": NOW_S - 75,
        "ended_at_s": None,
        "kept_until_s": None,
        "size_bytes": 12_345_678,
        "events": 9,
    }
    return JobInfo(**(values | changes))  # type: ignore[arg-type]


def test_the_sheet_of_a_job_says_what_its_nodes_have_cost_where_that_is_known():
    shot = Snapshot(JobState.CANCELLED, total=5, done=3, failed=0, running=0, nodes=0, node_s=36_000.0)
    assert "cost:" not in display.sheet(info(snapshot=shot), 1000.0)
    paid = info(snapshot=replace(shot, usd=2.016))
    assert "\ncost:       10.00 h of nodes, at most $2.02" in display.sheet(paid, 1000.0)


def test_a_table_of_jobs_says_what_is_kept_for_how_long():
    done = Snapshot(JobState.DONE, total=5, done=5, failed=0, running=0, nodes=0)
    ended = info(id="b2", function_name="a_longer_name", snapshot=done, ended_at_s=NOW_S, kept_until_s=NOW_S + 90_000)
    listed = JobList((info(), ended), 7 * 86_400.0, 12_345_678, 50_000_000_000, ("a page of the store was damaged",))
    assert display.table(listed, NOW_S).splitlines() == [
        "id            function       status           done  failed   age  kept until   size",
        "a1b2c3d4e5f6  area           running  3,000/12,000       2  1:15  its end     12 MB",
        "b2            a_longer_name  done              5/5       0  1:15  in 1 d 1 h  12 MB",
        "Jobs are kept for 7 days after their end, at most 50 GB in all: the oldest go first. Now: 12 MB.",
        "Note: a page of the store was damaged",
    ]
    assert display.table(JobList((), 86_400.0, 0, 1000, ()), NOW_S).splitlines() == [
        "No jobs.",
        "Jobs are kept for 1 day after their end, at most 1.0 kB in all: the oldest go first. Now: 0 B.",
    ]


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_escaped_and_has_no_script():
    name = "<script>alert(1)</script>"
    snapshot = Snapshot(JobState.FAILED, 4, 1, 1, 0, 0, remark='the disk is "full" <now>')
    page = Texts()
    page.feed(display.html("a1", name, snapshot))
    assert set(page.tags) == {"div", "b", "code"}
    assert name in page.text and "failed, 1/4 done, 1 failed" in page.text and 'the disk is "full" <now>' in page.text
    assert "width:25.0%" in display.html("a1", name, snapshot)


def test_a_line_shows_what_is_known():
    assert display.line("a1", "area", None) == "<burla job a1: area, status not known yet>"
    shot = Snapshot(JobState.RUNNING, 1000, 10, 0, 2, 1)
    assert display.line("a1", "a\nb", shot) == "<burla job a1: a�b, running, 10/1,000 done>"


def test_progress_reads_well():
    progress = JobProgress.of(info().snapshot)
    assert progress == JobProgress(3000, 4, 2, 12_000, 100.0, 89.98, 1)
    assert str(progress) == "3,000/12,000 done, 2 failed, 4 running on 1 node, 100/s, eta 1:29"
    assert str(JobProgress.of(Snapshot(JobState.DONE, 5, 5, 0, 0, 0, rate_per_s=3.0))) == "5/5 done, 3.0/s"
    assert JobProgress.of(Snapshot(JobState.RUNNING, 5, 1, 0, 1, 1, rate_per_s=0.0)).eta_s is None


def test_output_becomes_lines():
    output = Output(7, 2, b"one\n\ntwo \xff\r\nhalf")
    assert [str(line) for line in lines_of(output)] == ["one", "", "two \udcff\r", "half"]
    assert {(line.input_index, line.stream) for line in lines_of(output)} == {(7, "stderr")}
    assert [line.text for line in lines_of(Output(0, 1, b"one\n"))] == ["one"]
    assert [line.text for line in lines_of(Output(0, 1, b"\n"))] == [""]


def test_a_table_of_jobs_in_html_says_the_same_and_escapes_names():
    listed = JobList((info(function_name="<lambda>"),), 7 * 86_400.0, 12_345_678, 50_000_000_000, ("a remark & more",))
    page = Texts()
    page.feed(display.html_table(listed, NOW_S))
    assert page.tags.count("tr") == 2 and "lambda" not in page.tags
    for text in ("<lambda>", "3,000/12,000", "12 MB", "Jobs are kept for 7 days", "Note: a remark & more"):
        assert text in page.text
    empty = Texts()
    empty.feed(display.html_table(JobList((), 86_400.0, 0, 1000, ()), NOW_S))
    assert "table" not in empty.tags and "No jobs." in empty.text
