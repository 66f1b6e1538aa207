"""The live view of a job while its cell runs, against a ledger that the calls write."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenNotebook
from tests.browser.live import Gate, Panel, gated
from tests.conftest import Ledger, wait_until


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_the_bar_and_the_numbers_agree_with_what_the_calls_have_done(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate, app: str
):
    notebook = open_notebook(
        gated(ledger, gate) + "results = remote_parallel_map(call, range(40))\nresults[-1]", app=app
    )
    notebook.start(0)
    panel = Panel(notebook).wait()
    bar = panel.root.locator(".burla-bar")
    seen = []
    for moment, ended in enumerate((4, 18, 33)):
        gate.open(ended)
        wait_until(lambda ended=ended: len(ledger.entries()) == ended, what="calls")
        said = f"{ended} of 40 done, 2 running, 0 failed, {38 - ended} waiting"
        notebook.until(lambda said=said: bar.get_attribute("aria-valuetext") == said, 5, said)
        assert [panel.number(name) for name in ("done", "running", "failed", "waiting")] == [
            f"{ended}/40", "2", "0", str(38 - ended)
        ]  # fmt: skip
        widths = bar.locator("> div").evaluate_all("parts => parts.map(part => part.getBoundingClientRect().width)")
        whole = bar.bounding_box()
        assert whole is not None
        assert widths == pytest.approx([whole["width"] * ended / 40, whole["width"] * 2 / 40], abs=2)
        seen.append(widths[0])
        notebook.shot(f"moment-{moment}")
    assert len(set(seen)) == 3
    gate.open(40)
    notebook.wait(0)
    assert notebook.text(0).rstrip().endswith("39")
    assert panel.root.count() == 0, "at its end it is static"
    assert "done after" in notebook.page.locator(".burla-summary").inner_text()


def test_a_quick_job_shows_what_it_prints_and_no_panel(open_notebook: OpenNotebook):
    quick = "from burla import remote_parallel_map\nlen(remote_parallel_map(lambda x: print('here', x), range(90)))"
    notebook = open_notebook(quick, quick)
    notebook.run(0)  # this one may start the cluster
    shown = notebook.run(1).split("\n")
    assert sorted(shown[:-1]) == sorted(f"here {x}" for x in range(90))
    assert shown[-1] == "90"
    assert notebook.output(1).locator(".burla-panel, .burla-summary").count() == 0


def test_the_log_shows_every_line_with_its_input_and_filters(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    notebook = open_notebook(gated(ledger, gate) + "remote_parallel_map(call, range(30));", "'untouched'")
    notebook.start(0)
    gate.open(29)
    panel = Panel(notebook).wait()
    panel.fold("Log")
    count = panel.root.locator(".burla-log-count")
    notebook.until(lambda: "60 lines" in count.inner_text(), 20, "all lines")

    panel.root.get_by_label("Only input").fill("7")
    notebook.until(lambda: sorted(panel.rows()) == [("7", "begin 7"), ("7", "careful 7")], 5, "lines of one input")
    notebook.shot("one-input")
    panel.root.get_by_label("Only stream").select_option("stderr")
    notebook.until(lambda: panel.rows() == [("7", "careful 7")], 5, "lines of one stream")
    panel.root.get_by_label("Only input").fill("")
    panel.root.get_by_label("Only lines that contain").press_sequentially("add")
    notebook.until(lambda: count.inner_text() == "0 of 60 lines", 5, "lines that nobody wrote")
    assert notebook.page.locator(".jp-CodeCell").count() == 2, "keys of the log are no commands to the notebook"
    panel.root.get_by_label("Only lines that contain").fill("CAREFUL 2")
    notebook.until(lambda: len(panel.rows()) == 11, 5, "lines with a text: 2 and 20 to 29")
    assert count.inner_text() == "11 of 60 lines"
    gate.open(30)
    notebook.wait(0)


def test_the_log_follows_until_it_is_scrolled_back(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    notebook = open_notebook(gated(ledger, gate) + "remote_parallel_map(call, range(60));")
    notebook.start(0)
    gate.open(30)
    panel = Panel(notebook).wait()
    panel.fold("Log")
    follow, view = panel.root.get_by_label("Follow"), panel.root.locator(".burla-log-view")
    count = panel.root.locator(".burla-log-count")
    notebook.until(lambda: count.inner_text() == "64 lines" and panel.rows(), 10, "lines of the calls so far")
    newest = panel.rows()[-1]
    gate.open(40)
    notebook.until(lambda: count.inner_text() == "84 lines" and panel.rows()[-1] != newest, 10, "newer lines in sight")
    assert follow.is_checked()
    view.hover()
    notebook.page.mouse.wheel(0, -600)
    notebook.until(lambda: not follow.is_checked(), 5, "that it follows no more")
    notebook.page.wait_for_timeout(300)  # wheels are smooth
    kept, top = panel.rows(), view.evaluate("view => view.scrollTop")
    gate.open(59)
    notebook.until(lambda: count.inner_text() == "120 lines", 10, "more lines")
    assert view.evaluate("view => view.scrollTop") == top
    assert panel.rows() == kept
    follow.check()
    notebook.until(lambda: panel.rows() != kept, 5, "the newest lines")
    gate.open(60)
    notebook.wait(0)


FAILING = """import time
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
    panel = Panel(notebook).wait()
    panel.fold("Failures")
    for kind in ("ValueError", "KeyError"):
        panel.root.locator(".burla-failures", has_text=kind).wait_for(timeout=40_000)
    panel.root.locator(".burla-failures summary").first.click()
    traceback = panel.root.locator(".burla-traceback pre").first
    traceback.wait_for(timeout=5_000)
    first, failed = traceback.inner_text(), int(panel.number("failed"))
    notebook.shot("groups")
    notebook.until(lambda: int(panel.number("failed")) > failed + 2, 10, "more failures")
    assert traceback.is_visible(), "what is unfolded stays so while failures come"
    assert traceback.inner_text() == first
    notebook.wait(0)
    summary = notebook.page.locator(".burla-summary")
    shown = summary.inner_text()
    assert "7 × ValueError at line 5 of a cell: bad input 1 (inputs 1, 6, 11, 16" in shown
    assert "4 × KeyError at line 6 of a cell: 'key' (inputs 8, 15, 22, 29)" in shown
    assert "raise ValueError" not in shown, "folded"
    summary.locator("summary", has_text="ValueError").click()
    notebook.until(lambda: 'raise ValueError(f"bad input {x}")' in summary.inner_text(), 5, "a traceback")
