"""A page under a flood of output stays one that can be used."""

from __future__ import annotations

import statistics

from tests.browser.conftest import OpenNotebook
from tests.browser.live import Panel

LINES_PER_S = 50_000
SECONDS = 6

# two calls that together print so many lines in every second
FLOOD = f"""import time
from burla import remote_parallel_map
def pour(x):
    began, n = time.monotonic(), 0
    while time.monotonic() < began + {SECONDS}:
        while n < (time.monotonic() - began) * {LINES_PER_S // 2}:
            print("line", n, "of a flood of output that is no use to anybody")
            n += 1
        time.sleep(0.01)
    return n
poured = sum(remote_parallel_map(pour, range(2)))
print("poured", poured)
"""

# how long the page took from one frame to the next, and from a press of a key to its frame, in ms
WATCH = """() => {
  window.gaps = [];
  window.lags = [];
  let last = performance.now();
  function frame(now) { window.gaps.push(now - last); last = now; requestAnimationFrame(frame); }
  requestAnimationFrame(frame);
  addEventListener("keydown", press => {
    requestAnimationFrame(() => window.lags.push(performance.now() - press.timeStamp));
  }, true);
}"""


def test_a_flood_of_50_000_lines_a_second_leaves_the_page_responsive(open_notebook: OpenNotebook):
    """Frames and keys come as ever, the cell's own output stays short, and the log has the last line."""
    notebook = open_notebook(FLOOD)
    notebook.start(0)
    panel = Panel(notebook).wait()
    assert panel.root.locator(".burla-log").is_visible(), "the log is unfolded when output floods"
    notebook.shot("first")
    top = panel.root.evaluate(
        "panel => panel.getBoundingClientRect().top - panel.closest('.jp-Cell').getBoundingClientRect().top"
    )
    assert top < 1200, "lines do not push it out of sight"
    panel.root.scroll_into_view_if_needed()
    notebook.page.evaluate(WATCH)
    for _ in range(25):
        notebook.page.keyboard.press("Shift")
        notebook.page.wait_for_timeout(100)
    gaps, lags = notebook.page.evaluate("[window.gaps, window.lags]")
    before = panel.root.locator(".burla-log-count").inner_text()
    notebook.shot("flood")
    print(f"frames {statistics.median(gaps):.0f} ms, keys {statistics.median(lags):.0f} ms, {before}")
    notebook.until(lambda: before != panel.root.locator(".burla-log-count").inner_text(), 3, "more of the flood")
    assert statistics.median(gaps) < 60
    assert statistics.median(lags) < 60
    assert sorted(gaps)[int(0.95 * len(gaps))] < 250
    assert "the log of the job" in notebook.text(0)
    notebook.wait(0)
    shown = notebook.text(0)
    poured = int(shown.rsplit("poured ", 1)[1])
    assert poured > 0.9 * LINES_PER_S * SECONDS, "that was no flood"
    assert f"{poured:,} lines" in shown, "every line was counted"
    assert len(shown.splitlines()) < 5_000
    assert notebook.file.stat().st_size < 2_000_000
