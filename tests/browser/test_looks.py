"""What the eye wants of the view: nothing overlaps, is cut off, is hard to read, or jumps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Locator

from tests.browser.conftest import OpenNotebook
from tests.browser.live import Gate, Panel, gated
from tests.conftest import Ledger

LOOKS = Path(__file__).with_name("looks.js").read_text()
ENOUGH = 4.5  # of contrast, as WCAG's level AA asks for text
THEMES = ["JupyterLab Light", "JupyterLab Dark"]

# calls that take long, that fail in two ways with long messages, and that print long lines
BUSY = """import time
from burla import submit
def work(x):
    print("measured", x, "and so " * (1 + 30 * (x % 9 == 5)))
    time.sleep(0.2 if x % 4 else 2.5)
    if x % 5 == 1: raise ValueError(f"bad input {x} with quite a long message that goes on and on and on and on and on")
    if x % 7 == 1: {}["key"]
    return x
job = submit(work, range(32), on_error="continue", detach=False)
try:
    job.follow()
except Exception:
    pass
"""


def complaints(element: Locator) -> list[str]:
    """Return what is wrong with the looks of an element."""
    return element.evaluate(f"(root, enough) => ({LOOKS})(root, enough)", ENOUGH)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [700, 1400])
def test_the_view_is_good_to_look_at_while_it_runs_and_afterwards(open_notebook: OpenNotebook, width: int, theme: str):
    notebook = open_notebook(BUSY, width=width, height=1300, theme=theme)
    notebook.start(0)
    panel = Panel(notebook).wait()
    assert complaints(panel.root) == []
    for name in ("Slowest calls", "Failures", "Log"):
        panel.fold(name)
    for kind in ("ValueError", "KeyError"):
        panel.root.locator(".burla-failures", has_text=kind).wait_for(timeout=15_000)
    panel.root.locator(".burla-failures summary").first.click()
    notebook.until(lambda: panel.root.locator(".burla-slowest td").count(), 10, "slow calls")
    panel.root.locator(".burla-log-row").first.wait_for(timeout=40_000)
    notebook.shot("running")
    assert complaints(panel.root) == []
    panel.button("Detach").click()
    notebook.until(lambda: "To come back" in panel.root.inner_text(), 5, "what detached means")
    assert complaints(panel.root) == []
    panel.button("Cancel").click()
    notebook.until(lambda: "Press once more" in panel.root.inner_text(), 5, "the question")
    notebook.shot("asked")
    assert complaints(panel.root) == []
    notebook.wait(0)
    summary = notebook.page.locator(".burla-summary")
    for fold in summary.locator("summary").all():
        fold.click()
    summary.scroll_into_view_if_needed()
    notebook.shot("ended")
    assert complaints(summary) == []


@pytest.mark.parametrize("theme", THEMES)
def test_what_is_left_of_a_view_is_good_to_look_at_in_a_notebook_that_is_not_trusted(
    open_notebook: OpenNotebook, theme: str
):
    """Jupyter takes some styles away there."""
    notebook = open_notebook(BUSY.replace("2.5", "0.3"), width=700, theme=theme, app="notebook")
    notebook.run(0)
    notebook.save()
    notebook.distrust()
    notebook.open()
    summary = notebook.page.locator(".burla-summary")
    summary.wait_for(timeout=40_000)
    for fold in summary.locator("summary").all():
        fold.click()
    notebook.shot("not-trusted")
    assert complaints(summary) == []


PICTURE = Path(__file__).parents[2] / "notebooks" / "live_view.png"
SAMPLE = """%%burla -o estimates for seed in range(96)
rng = random.Random(seed)
points = 8_000_000 if seed % 16 == 15 else 800_000
inside = sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(points))
print(f"{points:,} points: pi is about {4 * inside / points:.4f}")
4 * inside / points"""


def test_the_picture_of_the_readme_shows_a_real_run(open_notebook: OpenNotebook):
    """With BURLA_SAVE_NOTEBOOKS set, it is saved anew."""
    notebook = open_notebook("import random\n%load_ext burla_jupyter", SAMPLE, width=1000, height=1000)
    notebook.run(0)
    notebook.start(1)
    panel = Panel(notebook, 1).wait()
    panel.fold("Slowest calls")
    panel.fold("Log")
    notebook.until(lambda: panel.root.locator(".burla-slowest td").count(), 30, "slow calls")
    notebook.until(lambda: len(panel.rows()) > 8, 30, "lines")
    path = notebook.shot("picture")
    box, cell = panel.root.bounding_box(), notebook.cell(1).bounding_box()
    assert complaints(panel.root) == []
    assert box is not None and cell is not None
    left, top = cell["x"], cell["y"]
    size = {"x": left, "y": top, "width": cell["width"], "height": box["y"] + box["height"] + 8 - top}
    notebook.page.screenshot(path=PICTURE if os.environ.get("BURLA_SAVE_NOTEBOOKS") else path, clip=size)
    notebook.wait(1)


# where the parts of the view are in every frame that shows it; as one text for each arrangement that was seen
WATCH = """() => {
  const parts = ".burla-head, .burla-head button, .burla-bar, .burla-numbers > div, .burla-note, .burla-fold-head";
  window.seen = new Set();
  function look() {
    const panel = document.querySelector(".burla-panel");
    if (panel?.checkVisibility()) {
      const whole = panel.getBoundingClientRect();
      const boxes = [...panel.querySelectorAll(parts)].map(part => part.getBoundingClientRect());
      const round = boxes.map(box => [box.left, box.top - whole.top, box.width, box.height].map(Math.round).join(" "));
      window.seen.add([...round, Math.round(whole.height)].join("; "));
    }
    requestAnimationFrame(look);
  }
  look();
}"""


@pytest.mark.parametrize("width", [700, 1400])
def test_nothing_jumps_while_numbers_grow_buttons_ask_and_notes_come(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate, width: int
):
    notebook = open_notebook(gated(ledger, gate) + "remote_parallel_map(call, range(990))", width=width)
    notebook.page.evaluate(WATCH)
    notebook.start(0)
    panel = Panel(notebook).wait()
    for ended in (1, 12, 130, 950):
        gate.open(ended)
        notebook.until(lambda ended=ended: panel.number("done") == f"{ended}/990", 30, f"{ended} calls on the page")
    panel.wait_button("Cancel").click()
    notebook.until(lambda: "Press once more" in panel.root.inner_text(), 5, "the question")
    panel.button("Detach").click()
    notebook.until(lambda: panel.button("Detached").count(), 5, "that it is detached")
    notebook.until(lambda: panel.button("Cancel").count(), 10, "the end of the question")
    notebook.shot("late")
    seen = notebook.page.evaluate("[...window.seen]")
    assert len(seen) == 1, "\n".join(seen[:5])
    gate.open(990)
    notebook.wait(0)
