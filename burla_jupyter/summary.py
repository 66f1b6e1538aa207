"""What stays in the notebook of a job's view: plain HTML and plain text, which need neither kernel nor JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from burla.display.progress import Progress, duration_text
from burla_jupyter import markup
from burla_jupyter.log import Line


@dataclass(frozen=True, slots=True)
class End:
    """How the view of a job ended. `only_in_log`: lines that are not in the cell's own output."""

    standing: str  # "done", "failed", "interrupted", …
    kept: bool  # the cluster has the job still
    lines: Sequence[Line]  # the last
    total_lines: int
    only_in_log: int


def standing(progress: Progress, error: BaseException | None) -> str:
    """Return in words how a job stands that is shown no longer."""
    state = progress.state
    if state is not None and state.ended:
        return state.value
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "not read to its end"
    return "failed" if error is not None else "done"


def text(progress: Progress, end: End, now_s: float) -> str:
    """Return the summary as plain text."""
    lines = [f"burla: {markup.visible(progress.function_name)}: {_sentence(progress, end, now_s)}"]
    for group in progress.failures[: markup.GROUPS]:
        where = f" at {markup.place(group)}" if group.line else ""
        lines.append(f"  {group.count:,} × {group.type_name}{where}: {group.message.strip()[:120]}")
    if end.kept and progress.job_id is not None:
        lines.append(f"To come back: burla.attach({progress.job_id!r})")
    return "\n".join(lines)


def html(progress: Progress, end: End, now_s: float) -> str:
    """Return the summary as HTML."""
    name = escape(markup.visible(progress.function_name))
    parts = [
        f"<div><b>{name}</b> {escape(_sentence(progress, end, now_s))}</div>",
        f'<div style="padding:4px 0">{markup.bar(progress)}</div>',
    ]
    if progress.failures:
        parts.append(markup.failures(progress.failures))
    if end.lines:
        parts.append(_log(end))
    if progress.job_id is not None:
        parts.append(f'<div style="padding:2px 0">{_whereabouts(progress.job_id, end.kept)}</div>')
    style = f"{markup.TEXT};line-height:1.5;max-width:1000px;padding:4px 8px"
    return f'<div class="burla-summary" style="{style}">{"".join(parts)}</div>'


def _sentence(progress: Progress, end: End, now_s: float) -> str:
    total = "?" if progress.total is None else f"{progress.total:,}"
    parts = [
        f"{end.standing} after {duration_text(progress.elapsed_s(now_s))}: "
        f"{progress.done - progress.failed:,}/{total} calls done"
    ]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.retries:
        parts.append(f"{progress.retries:,} retried")
    if progress.cost:
        parts.append(progress.cost)
    return ", ".join(parts)


def _log(end: End) -> str:
    of = "" if len(end.lines) == end.total_lines else f"the last {len(end.lines):,} of "
    title = f"Log: {of}{end.total_lines:,} line{'s' if end.total_lines != 1 else ''}"
    if end.only_in_log:
        title += f", {end.only_in_log:,} of which are not in the cell's output"
    opened = " open" if end.only_in_log else ""
    return (
        f'<details{opened} style="margin:2px 0"><summary style="cursor:pointer">{title}</summary>'
        f"{markup.log_lines(end.lines)}</details>"
    )


def _whereabouts(job_id: str, kept: bool) -> str:
    code = f'<code style="{markup.CODE};background:transparent;color:inherit;padding:0">'
    if not kept:
        return f"job {code}{job_id}</code>"
    python = f'burla.attach("{job_id}")'
    return (
        f"job {code}{job_id}</code>. To come back: {code}%burla attach {job_id}</code> or {code}{escape(python)}</code>"
    )
