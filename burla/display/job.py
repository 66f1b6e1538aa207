"""Jobs as text and as static HTML. Time is passed in."""

from __future__ import annotations

import html as _html

from burla.display import table as tables
from burla.display.progress import duration_text, size_text, used_text
from burla.protocol import JobInfo, JobList, JobState, Snapshot

COLUMNS = ("id", "function", "status", "done", "failed", "age", "kept until", "size")
RIGHT = frozenset({"done", "failed", "age", "size"})
COLOURS = {JobState.DONE: "#2e7d32", JobState.FAILED: "#c62828", JobState.CANCELLED: "#757575"}
RUNNING_COLOUR = "#1565c0"


def line(job_id: str, function_name: str, snapshot: Snapshot | None) -> str:
    """Return a job as one line."""
    return f"<burla job {job_id}: {_visible(function_name)}, {_standing(snapshot)}>"


def html(job_id: str, function_name: str, snapshot: Snapshot | None) -> str:
    """Return a job as a small table with a bar, which stays as it is."""
    state = snapshot.state if snapshot else JobState.WAITING
    of = max(1, snapshot.total) if snapshot else 1
    percent = 100 * snapshot.done / of if snapshot else 0.0
    name, what, number = (_html.escape(text) for text in (_visible(function_name), _standing(snapshot), job_id))
    colour = COLOURS.get(state, RUNNING_COLOUR)
    return (
        '<div style="font-family:sans-serif;max-width:36em;padding:0.5em 0">'
        f'<div><b>{name}</b> <code style="opacity:0.7">{number}</code></div>'
        '<div style="background:rgba(128,128,128,0.25);height:6px;margin:4px 0">'
        f'<div style="background:{colour};height:6px;width:{percent:.1f}%"></div></div>'
        f"<div>{what}</div></div>"
    )


def table(jobs: JobList, now_s: float) -> str:
    """Return a list of jobs as a table, with what is kept for how long. `now_s`: wall clock."""
    rows = [_row(info, now_s) for info in jobs.jobs]
    shown = tables.text_table(COLUMNS, rows, RIGHT) if rows else "No jobs."
    return "\n".join([shown, kept(jobs), *(f"Note: {one}" for one in jobs.remarks)])


def html_table(jobs: JobList, now_s: float) -> str:
    """Return the same as `table`, as HTML."""
    rows = [_row(info, now_s) for info in jobs.jobs]
    shown = tables.html_table(COLUMNS, rows, RIGHT) if rows else "<p>No jobs.</p>"
    notes = [kept(jobs), *(f"Note: {one}" for one in jobs.remarks)]
    return shown + "".join(f"<p>{_html.escape(note)}</p>" for note in notes)


def kept(jobs: JobList) -> str:
    """Return in words how long jobs are kept."""
    if jobs.copies:
        return (
            f"The cluster is not up: these are the copies at {jobs.copies}, {size_text(jobs.used_bytes)} in all. They "
            "stay until they are deleted there."
        )
    return (
        f"Jobs are kept for {days(jobs.keep_s)} after their end, at most {size_text(jobs.limit_bytes)} in all: the "
        f"oldest go first. Now: {size_text(jobs.used_bytes)}."
    )


def sheet(info: JobInfo, now_s: float) -> str:
    """Return all there is to know of one job, a line each. `now_s`: wall clock."""
    shot = info.snapshot
    lines = [
        ("job", info.id),
        ("function", _visible(info.function_name)),
        ("status", shot.state.value),
        ("done", f"{shot.done:,}/{shot.total:,}"),
        ("failed", f"{shot.failed:,}"),
        ("running", f"{shot.running:,} on {shot.nodes} nodes" if shot.running else "0"),
        ("owner", info.owner),
        ("detached", "yes" if info.detached else "no: it ends with its client"),
        ("on error", info.on_error),
        ("age", duration_text(max(0.0, now_s - info.created_at_s))),
        ("kept until", _until(info, now_s)),
        ("size", size_text(info.size_bytes)),
    ]
    if shot.usd is not None:
        lines.append(("cost", used_text(shot.node_s, shot.usd)))
    if info.resumed is not None:
        lines.append(("results of", info.resumed))
    if shot.remark is not None:
        lines.append(("now", shot.remark))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name + ':':<{width}}{value}" for name, value in lines)


def days(seconds: float) -> str:
    """Return `7 days`, `1 day`, or a duration."""
    number = seconds / 86_400
    return f"{number:g} day{'s' if number != 1 else ''}" if number >= 1 else duration_text(seconds)


def _row(info: JobInfo, now_s: float) -> tuple[str, ...]:
    shot = info.snapshot
    return (
        info.id,
        _visible(info.function_name),
        shot.state.value,
        f"{shot.done:,}/{shot.total:,}",
        f"{shot.failed:,}",
        duration_text(max(0.0, now_s - info.created_at_s)),
        _until(info, now_s),
        size_text(info.size_bytes),
    )


def _until(info: JobInfo, now_s: float) -> str:
    if info.kept_until_s is None:
        return "deleted" if info.snapshot.state.ended else "its end"
    left_s = info.kept_until_s - now_s
    return f"in {duration_text(left_s)}" if left_s > 0 else "now"


def _standing(snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return "status not known yet"
    failed = f", {snapshot.failed:,} failed" if snapshot.failed else ""
    remark = f" ({snapshot.remark})" if snapshot.remark else ""
    return f"{snapshot.state.value}, {snapshot.done:,}/{snapshot.total:,} done{failed}{remark}"


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in text)
