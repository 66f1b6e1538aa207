"""What the eye wants of the view: nothing overlaps, is cut off, hard to read or jumps; and it bears a flood of output."""

from __future__ import annotations

import statistics

import pytest

from tests.browser.conftest import OpenNotebook
from tests.browser.lab import Notebook
from tests.browser.live import Panel

# ruff: noqa: E501 - JavaScript
ENOUGH = 4.5  # of contrast, as WCAG's level AA asks for text

BUSY = """
import time
from burla import submit
def work(x):
    time.sleep(0.15 if x % 4 else 1.6)
    print("measured", x)
    if x % 5 == 1: raise ValueError(f"bad input {x} with quite a long message that goes on and on and on and on and on")
    if x % 7 == 1: {}["key"]
    return x
job = submit(work, range(40), on_error="continue", detach=False)
try:
    job.follow()
except Exception:
    pass
"""

# of each piece of text: its contrast against what is painted behind it
CONTRAST = """root => {
  const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] + b[i] * (1 - a[3]));
  const light = c => { const f = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const behind = e => { const chain = []; for (; e; e = e.parentElement) chain.push(parse(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((below, one) => over(one, below), [255, 255, 255]); };
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('style') || e.closest(':disabled')) continue;
    const back = behind(e), [a, b] = [light(over(parse(getComputedStyle(e).color), back)), light(back)];
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), text.slice(0, 40)]);
  }
  return found;
}"""

# texts that are wider than what they stand in and cannot be scrolled to, or that stick out of the view
CUT = """root => {
  const whole = root.getBoundingClientRect();
  return [...root.querySelectorAll('*')].filter(e => e.getClientRects().length && !e.closest('.burla-log-view, pre, style'))
    .filter(e => e.getBoundingClientRect().right > whole.right + 1
      || (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && getComputedStyle(e).overflowX !== 'visible'))
    .map(e => `${e.tagName} ${e.className}: ${e.textContent.slice(0, 40)}`);
}"""

# pairs of texts that are painted over each other
OVERLAPS = """root => {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), boxes = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('style, .burla-log-view, select, pre')) continue;
    if (e.closest('.burla-fold-body') && !e.closest('.burla-fold-body').clientHeight) continue;
    const range = document.createRange(); range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects()) boxes.push([box, text.slice(0, 30)]);
  }
  const found = [];
  boxes.forEach(([a, one], i) => boxes.slice(i + 1).forEach(([b, other]) => {
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 1 && y > 3) found.push(`${one} | ${other}`);
  }));
  return found;
}"""


def assert_good_to_look_at(notebook: Notebook, selector: str) -> None:
    root = notebook.page.locator(selector).first
    contrasts = root.evaluate(CONTRAST)
    assert contrasts and [one for one in contrasts if one[0] < ENOUGH] == []
    assert root.evaluate(CUT) == []
    assert root.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
@pytest.mark.parametrize("width", [700, 1400])
def test_the_view_is_good_to_look_at_while_it_runs_and_afterwards(open_notebook: OpenNotebook, width: int, theme: str):
    notebook = open_notebook(BUSY, width=width, theme=theme)
    notebook.start(0)
    panel = notebook.page.locator(".burla-panel")
    panel.wait_for(timeout=40_000)
    heights = set()
    for _ in range(20):
        box = panel.bounding_box()
        assert box is not None
        heights.add(round(box["height"]))
        notebook.page.wait_for_timeout(50)
    assert len(heights) == 1, "it does not jump while it updates"
    for name in ("Slowest", "Failures", "Log"):
        Panel(notebook).fold(name)
    panel.locator(".burla-failures", has_text="ValueError").wait_for(timeout=10_000)
    panel.locator(".burla-log-row").first.wait_for(timeout=10_000)
    notebook.shot("running")
    assert_good_to_look_at(notebook, ".burla-panel")
    notebook.wait(0)
    notebook.page.locator(".burla-summary summary").first.click()
    notebook.page.locator(".burla-summary").scroll_into_view_if_needed()
    notebook.shot("ended")
    assert_good_to_look_at(notebook, ".burla-summary")


FLOOD = """
import time
from burla import remote_parallel_map
def pour(x):
    until = time.monotonic() + 5
    n = 0
    while time.monotonic() < until:
        for _ in range(250):
            print("line", n, "of a flood of output that is no use to anybody")
            n += 1
        time.sleep(0.005)
    return n
print(sum(remote_parallel_map(pour, range(2))))
"""

# how long the page took from one frame to the next, in ms
FRAMES = """seconds => new Promise(done => {
  const gaps = []; let last = performance.now(); const end = last + 1000 * seconds;
  function frame(now) { gaps.push(now - last); last = now; now < end ? requestAnimationFrame(frame) : done(gaps); }
  requestAnimationFrame(frame);
})"""


def test_a_flood_of_50_000_lines_a_second_leaves_the_page_responsive(open_notebook: OpenNotebook):
    """Frames come as ever, the cell's own output stays short, and the log has the last line."""
    notebook = open_notebook(FLOOD)
    notebook.start(0)
    panel = notebook.page.locator(".burla-panel")
    panel.wait_for(timeout=40_000)
    gaps = notebook.page.evaluate(FRAMES, 3)
    notebook.shot("flood")
    assert statistics.median(gaps) < 60
    assert sorted(gaps)[int(0.95 * len(gaps))] < 250
    assert "the log of the job" in notebook.text(0)
    notebook.wait(0)
    poured = int(notebook.text(0).split("\\n")[-1].split()[-1])
    assert poured > 250_000, "that was 50,000 lines a second"
    assert len(notebook.text(0).splitlines()) < 5_000
