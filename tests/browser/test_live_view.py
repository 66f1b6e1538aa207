"""The live view of a job while its cell runs, against a ledger that the calls write."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import burla
from tests.browser.conftest import OpenNotebook
from tests.browser.lab import Notebook
from tests.conftest import Ledger, wait_until


class Gate:
    """Calls with an index below the number in a file may end."""

    def __init__(self, path: Path):
        self.path = path
        self.open(0)

    def open(self, number: int) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(number))
        new.rename(self.path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


def gated(ledger: Ledger, gate: Gate) -> str:
    """Return source of a function `call` that prints, waits for the gate, and writes down that it ends."""
    return f"""
import sys, time
from burla import remote_parallel_map, submit
def call(x):
    print("begin", x)
    print("careful", x, file=sys.stderr)
    while int(open({str(gate.path)!r}).read()) <= x:
        time.sleep(0.02)
    with open({str(ledger.path)!r}, "a") as file:
        file.write(f"{{x}}\\n")
    return x
"""


def ticking(ledger: Ledger) -> str:
    """Return source of a function `tick` that writes down the time until it is stopped."""
    return f"""
import time
from burla import remote_parallel_map
def tick(x):
    while True:
        with open({str(ledger.path)!r}, "a") as file:
            file.write(f"{{time.time()}}\\n")
        time.sleep(0.05)
"""


def last_tick_s(ledger: Ledger) -> float:
    return max(float(entry) for entry in ledger.entries() if entry)


def number(notebook: Notebook, name: str) -> str:
    return notebook.page.locator(f".burla-panel .burla-{name}").inner_text()


def fold(notebook: Notebook, name: str) -> None:
    """Fold or unfold a part of the panel."""
    notebook.page.locator(".burla-panel summary", has_text=name).first.click()


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_the_bar_and_the_numbers_agree_with_what_the_calls_have_done(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate, app: str
):
    notebook = open_notebook(
        gated(ledger, gate) + "results = remote_parallel_map(call, range(40))\nresults[-1]", app=app
    )
    notebook.start(0)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    seen = []
    for moment, ended in enumerate((4, 18, 33)):
        gate.open(ended)
        wait_until(lambda ended=ended: len(ledger.entries()) == ended, what="calls")
        notebook.until(lambda ended=ended: number(notebook, "done") == f"{ended}/40", 5, f"{ended} calls on the page")
        notebook.until(lambda: number(notebook, "running") == "2", 5, "two calls that run")
        said = notebook.page.locator(".burla-panel .burla-bar").get_attribute("aria-valuetext")
        assert said == f"{ended} of 40 done, 2 running, 0 failed, {38 - ended} waiting"
        widths = notebook.page.evaluate(
            "[...document.querySelectorAll('.burla-panel .burla-bar > div')].map(e => e.getBoundingClientRect().width)"
        )
        whole = notebook.page.locator(".burla-panel .burla-bar").bounding_box()
        assert whole is not None
        assert widths[0] == pytest.approx(whole["width"] * ended / 40, abs=2)
        seen.append(widths[0])
        notebook.shot(f"moment-{moment}")
    assert len(set(seen)) == 3
    gate.open(40)
    notebook.wait(0)
    assert notebook.text(0).rstrip().endswith("39")
    assert notebook.page.locator(".burla-panel").count() == 0, "at its end it is static"
    assert "done after" in notebook.page.locator(".burla-summary").inner_text()


def test_the_log_shows_every_line_with_its_input_and_filters(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    notebook = open_notebook(gated(ledger, gate) + "remote_parallel_map(call, range(30));")
    notebook.start(0)
    gate.open(29)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    fold(notebook, "Log")
    panel = notebook.page.locator(".burla-panel")
    notebook.until(lambda: "60 lines" in panel.locator(".burla-log-count").inner_text(), 20, "all lines")

    def rows() -> list[list[str]]:
        return panel.locator(".burla-log-row").evaluate_all(
            "rows => rows.map(r => [...r.children].map(c => c.innerText))"
        )

    panel.get_by_label("Only input").fill("7")
    notebook.until(lambda: len(rows()) == 2, 5, "lines of one input")
    assert rows() == [["7", "begin 7"], ["7", "careful 7"]]
    notebook.shot("one-input")
    panel.get_by_label("Only stream").select_option("stderr")
    notebook.until(lambda: rows() == [["7", "careful 7"]], 5, "lines of one stream")
    panel.get_by_label("Only input").fill("")
    panel.get_by_label("Only lines that contain").fill("careful 2")
    notebook.until(lambda: len(rows()) == 11, 5, "lines with a text: 2 and 20 to 29")
    assert "11 of 60 lines" in panel.locator(".burla-log-count").inner_text()
    gate.open(30)
    notebook.wait(0)


def test_cancel_stops_the_calls_while_the_cell_blocks(open_notebook: OpenNotebook, ledger: Ledger):
    """It asks once more; what was finished stays."""
    notebook = open_notebook(ticking(ledger) + "remote_parallel_map(lambda x: tick(x) if x else 'done', range(3))")
    notebook.start(0)
    button = notebook.page.locator(".burla-panel button", has_text="ancel")
    notebook.until(lambda: button.count() == 1 and button.is_enabled(), 40, "a button that works")
    notebook.until(lambda: ledger.entries(), 10, "calls")
    button.click()
    notebook.until(lambda: button.inner_text() == "Really cancel?", 5, "the question")
    notebook.shot("asked")
    clicked_s = time.time()
    button.click()
    notebook.wait(0, 15)
    notebook.page.wait_for_timeout(1000)
    assert last_tick_s(ledger) < clicked_s + 5
    assert "JobCancelled" in notebook.text(0)
    assert "cancelled after" in notebook.page.locator(".burla-summary").inner_text()


def test_detach_lets_the_job_go_on_without_the_cell(open_notebook: OpenNotebook, ledger: Ledger):
    notebook = open_notebook(ticking(ledger) + "remote_parallel_map(tick, range(2))")
    notebook.start(0)
    button = notebook.page.locator(".burla-panel button", has_text="Detach")
    notebook.until(lambda: button.count() == 1 and button.is_enabled(), 40, "a button that works")
    button.click()
    notebook.until(lambda: button.inner_text() == "Detached", 10, "that it is detached")
    assert "burla.attach" in notebook.page.locator(".burla-panel").inner_text()
    notebook.shot("detached")
    notebook.interrupt()
    notebook.wait(0, 15)
    assert "KeyboardInterrupt" in notebook.text(0)
    freed_s = time.time()
    wait_until(lambda: last_tick_s(ledger) > freed_s + 1, 10, "calls that go on")
    job = burla.jobs()[0]
    assert job.status == "running" and job.id in notebook.text(0)
    job.cancel()
    job.delete()


def test_an_interrupt_stops_the_calls_and_keeps_what_was_finished(open_notebook: OpenNotebook, ledger: Ledger):
    notebook = open_notebook(
        ticking(ledger) + "remote_parallel_map(lambda x: tick(x) if x else 'done', range(3))",
        "import sys; sys.last_value.burla_results",
    )
    notebook.start(0)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    notebook.until(lambda: number(notebook, "done") == "1/3", 10, "the first result")
    pressed_s = time.time()
    notebook.interrupt()
    notebook.wait(0, 15)
    assert "KeyboardInterrupt" in notebook.text(0)
    notebook.page.wait_for_timeout(500)
    assert last_tick_s(ledger) < pressed_s + 5
    assert notebook.run(1) == "{0: 'done'}"


FAILING = """
import time
from burla import submit
def call(x):
    time.sleep(0.3)
    if x % 5 == 1: raise ValueError(f"bad input {x}")
    if x % 7 == 1: {}["key"]
    return x
job = submit(call, range(36), on_error="continue", detach=False)
try:
    job.follow()
except ValueError:
    print("failed")
"""


def test_failures_are_grouped_with_their_inputs_and_one_traceback(open_notebook: OpenNotebook):
    notebook = open_notebook(FAILING)
    notebook.start(0)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    fold(notebook, "Failures")
    panel = notebook.page.locator(".burla-panel")
    for kind in ("ValueError", "KeyError"):
        panel.locator(".burla-failures", has_text=kind).wait_for(timeout=10_000)
    notebook.shot("groups")
    notebook.wait(0)
    summary = notebook.page.locator(".burla-summary")
    shown = summary.inner_text()
    assert "7 ×" in shown and "ValueError" in shown and "1, 6, 11, 16" in shown
    assert "KeyError" in shown and "8, 15, 22, 29" in shown
    summary.locator("summary", has_text="ValueError").click()
    notebook.until(
        lambda: "raise ValueError" in summary.inner_text() or "in call" in summary.inner_text(), 5, "a traceback"
    )
