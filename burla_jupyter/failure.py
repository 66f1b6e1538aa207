"""What a failed cell shows: the lines of the cell, and which input it was."""

from __future__ import annotations

import functools
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burla import BurlaError, Job
from burla_jupyter.plan import Plan
from burla_jupyter.remote import Cell
from burla_jupyter.results import Finished

HERE = tuple(str(Path(__file__).with_name(name)) for name in ("magic.py", "local.py"))  # what runs cells here


@dataclass(frozen=True, repr=False)
class Failed:
    """The last cell that failed: what it was, its job and the input of the failed call, if these are known."""

    plan: Plan
    error: BaseException
    job: Job | None
    index: int | None
    values: tuple[Any, ...] | None

    def __repr__(self) -> str:
        return f"<failed {self.plan.cell.name}: {type(self.error).__name__}>"


def explain(plan: Plan, error: BaseException, job: Job | None) -> Failed:
    """Put onto an exception what the notebook knows of it, and have IPython show it from the cell's own lines on."""
    facts = vars(error)
    notes = [note for note in facts.pop("__notes__", ()) if not str(note).startswith("burla: raised by the call of")]
    index = getattr(error, "burla_input_index", None)
    index = getattr(error, "index", None) if index is None and isinstance(error, BurlaError) else index
    values = None if job is None or index is None else _input(job, index)
    if plan.header is not None and job is not None and index is not None:
        which = "" if values is None else f": {plan.described_input(values)}"
        notes.append(f"burla: raised by the call of input {index}{which}")
    if isinstance(error, NameError) and (name := _missing(error, plan)) is not None:
        notes.append(
            f"burla: the notebook has a variable {name!r}. A name that stands only in a string does not travel by "
            f"itself: %%burla --ship {name}"
        )
    if job is not None:
        facts["burla_job"] = job
        facts.setdefault("burla_results", Finished(job))
        if isinstance(error, KeyboardInterrupt):
            notes.append(f"burla: job {job.id} was stopped. What had finished: error.burla_results, or burla.attach()")
    if notes:
        facts["__notes__"] = notes
    facts["_render_traceback_"] = functools.partial(_render, plan, error)
    return Failed(plan, error, job, index, values)


def _input(job: Job, index: int) -> tuple[Any, ...] | None:
    try:
        return job.input(index)
    except (BurlaError, OSError, LookupError):  # there is a failure to show already
        return None


def _missing(error: NameError, plan: Plan) -> str | None:
    """Return the name that an error misses, if the notebook has it and did not send it."""
    named = [error.name] if error.name else re.findall(r"'(\w+)'", str(error))  # pandas gives no name
    return next((name for name in named if name in plan.shell.user_ns and name not in plan.sent), None)


def own_traceback(error: BaseException, filename: str) -> types.TracebackType | None:
    """Return the part of a traceback that begins in the code of a cell, without what runs it; None: there is none."""
    frames: list[types.TracebackType] = []
    tb = error.__traceback__
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    files = [one.tb_frame.f_code.co_filename for one in frames]
    here = max((number for number, file in enumerate(files) if file in HERE), default=-1) + 1
    if filename not in files[here:]:
        return None
    first = files.index(filename, here)
    last = next((number for number in range(first, len(files)) if files[number] in Cell.machinery_files), len(files))
    own = None
    for one in reversed(frames[first:last]):
        own = types.TracebackType(own, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return own


def _render(plan: Plan, error: BaseException) -> list[str]:
    tb = own_traceback(error, plan.filename)
    renderer = plan.shell.InteractiveTB
    if tb is None:
        return renderer.get_exception_only(type(error), error)
    return renderer.structured_traceback(type(error), error, tb)
