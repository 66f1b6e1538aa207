"""Cancel, Detach and ■ while the cell blocks, with the versions of ipykernel that differ in what they let through."""

from __future__ import annotations

import time

import pytest

import burla
from tests.browser.conftest import OpenNotebook
from tests.browser.lab import Notebook
from tests.browser.live import Panel, last_tick_s, ticking
from tests.conftest import Ledger, wait_until

STOP_S = 5
TICKING_MAP = "remote_parallel_map(lambda x: tick(x) if x else 'done', range(3))"
NEWEST = "python3"


def wait_for_the_end_of(notebook: Notebook, ledger: Ledger, asked_s: float) -> None:
    """Return when the cell has ended; fail if a call went on for longer than it may."""
    notebook.wait(0, 15)
    while time.time() < asked_s + STOP_S + 0.5:
        notebook.page.wait_for_timeout(100)
    assert last_tick_s(ledger) < asked_s + STOP_S


@pytest.mark.parametrize(
    ("app", "kernel"), [("lab", NEWEST), ("notebook", NEWEST), ("lab", "ipykernel 7.3.0")], ids=str
)
def test_cancel_stops_the_calls_while_the_cell_blocks(
    open_notebook: OpenNotebook, ledger: Ledger, app: str, kernel: str
):
    """It asks once more; what was finished stays."""
    notebook = open_notebook(
        ticking(ledger) + TICKING_MAP, "import sys; sys.last_value.burla_results", app=app, kernel=kernel
    )
    notebook.start(0)
    panel = Panel(notebook)
    button = panel.wait_button("Cancel")
    notebook.until(lambda: panel.number("done") == "1/3", 10, "the first result")
    button.click()
    notebook.until(lambda: panel.button("Really cancel?").count(), 5, "the question")
    notebook.shot("asked")
    clicked_s = time.time()
    panel.button("Really cancel?").click()
    wait_for_the_end_of(notebook, ledger, clicked_s)
    assert "JobCancelled" in notebook.text(0)
    assert "cancelled after" in notebook.page.locator(".burla-summary").inner_text()
    assert notebook.run(1) == "{0: 'done'}"


@pytest.mark.parametrize("kernel", [NEWEST, "ipykernel 7.3.0"], ids=str)
def test_detach_lets_the_job_go_on_without_the_cell(open_notebook: OpenNotebook, ledger: Ledger, kernel: str):
    notebook = open_notebook(ticking(ledger) + "remote_parallel_map(tick, range(2))", kernel=kernel)
    notebook.start(0)
    panel = Panel(notebook)
    panel.wait_button("Detach").click()
    notebook.until(lambda: panel.button("Detached").count(), 10, "that it is detached")
    assert "burla.attach" in panel.root.inner_text()
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


def test_where_presses_do_not_get_through_the_panel_says_what_to_do(open_notebook: OpenNotebook, ledger: Ledger):
    notebook = open_notebook(ticking(ledger) + TICKING_MAP, kernel="ipykernel 6.31.0")
    notebook.start(0)
    panel = Panel(notebook).wait()
    notebook.until(lambda: "■" in panel.root.locator(".burla-note").inner_text(), 10, "a word on the buttons")
    assert not panel.button("Cancel").is_enabled() and not panel.button("Detach").is_enabled()
    notebook.shot("deaf")
    pressed_s = time.time()
    notebook.interrupt()
    wait_for_the_end_of(notebook, ledger, pressed_s)
    assert "KeyboardInterrupt" in notebook.text(0)


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_an_interrupt_stops_the_calls_and_keeps_what_was_finished(
    open_notebook: OpenNotebook, ledger: Ledger, app: str
):
    notebook = open_notebook(ticking(ledger) + TICKING_MAP, "import sys; sys.last_value.burla_results", app=app)
    notebook.start(0)
    panel = Panel(notebook).wait()
    notebook.until(lambda: panel.number("done") == "1/3", 10, "the first result")
    pressed_s = time.time()
    notebook.interrupt()
    wait_for_the_end_of(notebook, ledger, pressed_s)
    assert "KeyboardInterrupt" in notebook.text(0)
    assert "interrupted after" in notebook.page.locator(".burla-summary").inner_text()
    assert notebook.run(1) == "{0: 'done'}"


def test_a_keyboard_is_enough(open_notebook: OpenNotebook, ledger: Ledger):
    """Tab reaches the buttons, the folds and the fields of the log, in the order in which they are seen."""
    notebook = open_notebook(ticking(ledger) + TICKING_MAP)
    notebook.start(0)
    panel = Panel(notebook)
    panel.wait_button("Cancel").focus()
    reached = []
    active = "document.activeElement"
    for _ in range(5):
        reached.append(notebook.page.evaluate(f"{active}.ariaLabel || {active}.innerText"))
        if reached[-1] == "Log":
            notebook.page.keyboard.press("Enter")
            panel.root.locator(".burla-log").wait_for(timeout=5_000)
        notebook.page.keyboard.press("Tab")
    assert reached == ["Cancel", "Detach", "Slowest calls", "Failures", "Log"]
    assert notebook.page.evaluate(f"{active}.ariaLabel") == "Only input"
    panel.button("Cancel").focus()
    notebook.page.keyboard.press("Enter")
    notebook.until(lambda: panel.button("Really cancel?").count(), 5, "the question")
    pressed_s = time.time()
    notebook.page.keyboard.press("Enter")
    wait_for_the_end_of(notebook, ledger, pressed_s)
    assert "JobCancelled" in notebook.text(0)
