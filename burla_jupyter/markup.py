"""Parts of a job's view as HTML with styles of its own, the same while it runs and in a saved notebook.

Colours come from the notebook's theme where it has one; text has that of its surroundings, so that it can be read on
light and on dark. The colours of the bar were chosen to stand out from both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from burla import ErrorGroup
from burla.display.progress import Progress, duration_text, rate_text
from burla_jupyter.log import Line

DONE, RUNNING, FAILED, WAITING = "#2e9d4e", "#3584e4", "#e0403a", "rgba(128,128,128,0.3)"
TEXT = "color:var(--jp-ui-font-color1,inherit);font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px"
CODE = "font-family:var(--jp-code-font-family,monospace);font-size:12px"
BOX = f"{CODE};color:inherit;background:transparent;margin:4px 0;overflow:auto;white-space:pre"
BORDER = "border:1px solid var(--jp-border-color2,rgba(128,128,128,0.5))"
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
CELL_LINE = re.compile(r"\d+\.py:(\d+)")
GROUPS = 20  # of more failure groups only the number is shown


def bar(progress: Progress) -> str:
    """Return how many calls are done, running, failed and waiting as a bar."""
    total, failed = progress.total or 0, progress.failed
    done = progress.done - failed
    parts = [(DONE, done), (FAILED, failed), (RUNNING, progress.running)]
    said = f"{done:,} of {total:,} done, {progress.running:,} running, {failed:,} failed, {progress.waiting:,} waiting"
    segments = "".join(
        f'<div style="background:{colour};width:{100 * count / total:.2f}%"></div>'
        for colour, count in parts
        if count and total
    )
    percent = round(100 * (progress.fraction or 0.0))
    return (
        f'<div class="burla-bar" role="progressbar" aria-label="Calls" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-valuetext="{said}" '
        f'style="display:flex;height:10px;overflow:hidden;background:{WAITING}">{segments}</div>'
    )


def numbers(progress: Progress, now_s: float) -> str:
    """Return the counts and times of a job; every number keeps its place while it changes."""
    total = "?" if progress.total is None else f"{progress.total:,}"
    rate_per_s, eta_s = progress.rate_per_s(now_s), progress.eta_s(now_s)
    ended = progress.state is not None and progress.state.ended
    cells = [
        ("done", f"{progress.done - progress.failed:,}/{total}", DONE),
        ("running", f"{progress.running:,}", RUNNING),
        ("failed", f"{progress.failed:,}", FAILED),
        ("waiting", f"{progress.waiting:,}", WAITING),
        ("rate", "–" if rate_per_s is None else rate_text(rate_per_s), None),
        ("elapsed", duration_text(progress.elapsed_s(now_s)), None),
        ("left", "–" if eta_s is None or ended else duration_text(eta_s), None),
        ("retries", f"{progress.retries:,}", None),
    ]
    return (
        '<div class="burla-numbers" style="display:grid;gap:0 8px;'
        "grid-template-columns:minmax(120px,2fr) repeat(7,minmax(56px,1fr));"
        'font-variant-numeric:tabular-nums;line-height:18px;padding:4px 0">'
        + "".join(_cell(*cell) for cell in cells)
        + "</div>"
    )


def _cell(name: str, value: str, colour: str | None) -> str:
    mark = f'<span style="background:{colour};display:inline-block;height:8px;width:8px"></span> ' if colour else ""
    return (
        f'<div style="white-space:nowrap"><div style="font-size:11px">{mark}{name}</div>'
        f'<div class="burla-{name}" style="font-size:14px;font-weight:600">{value}</div></div>'
    )


def slowest(calls: Sequence[tuple[int, float]]) -> str:
    """Return the calls that take long, as a table."""
    if not calls:
        return f'<div style="{TEXT}">No call takes longer than a moment.</div>'
    rows = "".join(
        f'<tr><td style="text-align:right;padding:0 16px 0 0">{index:,}</td>'
        f'<td style="text-align:right">{duration_text(seconds)}</td></tr>'
        for index, seconds in calls
    )
    head = (
        '<tr><th style="text-align:right;padding:0 16px 0 0">input</th>'
        '<th style="text-align:right">running for</th></tr>'
    )
    return f'<table style="{TEXT};font-variant-numeric:tabular-nums;border-collapse:collapse">{head}{rows}</table>'


def group_title(group: ErrorGroup) -> str:
    """Return in a line what failed, how often and for which inputs."""
    where = f" at {place(group)}" if group.line else ""
    message = group.message.strip().split("\n")[0]
    text = escape(visible(f"{group.type_name}{where}: {message:.120}" if message else f"{group.type_name}{where}"))
    if not group.count:
        return text
    more = ", …" if group.count > len(group.inputs) else ""
    inputs = ", ".join(map(str, group.inputs)) + more
    return f"<b>{group.count:,} ×</b> {text} (input{'s' if group.count > 1 else ''} {inputs})"


def place(group: ErrorGroup) -> str:
    """Return where a group failed; a kernel gives cells file names that say nothing."""
    cell = CELL_LINE.fullmatch(group.line)
    return f"line {cell[1]} of a cell" if cell else group.line


def group_text(group: ErrorGroup) -> str:
    """Return the traceback of a group, or what there is instead."""
    text = escape(visible(group.traceback or group.message))
    return f'<pre style="{BOX};{BORDER};max-height:240px;padding:6px">{text}</pre>'


def failures(groups: Sequence[ErrorGroup]) -> str:
    """Return groups of failures, their tracebacks folded."""
    shown = "".join(
        f'<details style="margin:2px 0"><summary style="cursor:pointer">{group_title(one)}</summary>'
        f"{group_text(one)}</details>"
        for one in groups[:GROUPS]
    )
    more = f"<div>and {len(groups) - GROUPS:,} more kinds of failures</div>" if len(groups) > GROUPS else ""
    return f'<div style="{TEXT}">{shown}{more}</div>'


def log_lines(lines: Iterable[Line]) -> str:
    """Return lines of the log, each with the index of its input."""
    text = "\n".join(f"{line.input_index:>6}  {line.text}" for line in lines)
    return (
        # upside down, so that the last lines are in sight first
        f'<div class="burla-lines" style="display:flex;flex-direction:column-reverse;{BORDER};max-height:252px;'
        f'overflow:auto"><pre style="{BOX};overflow:visible;padding:0 6px">{escape(visible(text))}</pre></div>'
    )


def visible(text: str) -> str:
    """Return text without escape sequences, other control characters and lone surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in ESCAPE.sub("", text))
