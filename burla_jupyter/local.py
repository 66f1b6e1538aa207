"""`--local`: the cell runs in the notebook's process, of a map the first call alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from typing import Any

from burla_jupyter.outcome import VALUE
from burla_jupyter.plan import Plan
from burla_jupyter.remote import MapCell


def run(plan: Plan) -> Any:
    """Run a cell here; return its value. The first call of a map leaves the notebook's names as they are."""
    names = plan.shell.user_ns
    if isinstance(plan.cell, MapCell):
        return _call_first(plan, plan.cell, names)
    try:
        if plan.cell.code.co_flags & inspect.CO_COROUTINE:
            _await(eval(plan.cell.code, names))
        else:
            exec(plan.cell.code, names)
        return names.get(VALUE)
    finally:
        names.pop(VALUE, None)


def _call_first(plan: Plan, cell: MapCell, names: dict[str, Any]) -> Any:
    first = next(plan.inputs(), None)
    if first is None:
        return None
    result = call(cell, first, names)
    if plan.options.out is None:
        return result
    plan.shell.push({plan.options.out[0]: [result]})
    return None


def call(cell: MapCell, values: tuple[Any, ...], names: dict[str, Any]) -> Any:
    """Return the result of one call of a map, made here; `names`, the notebook's, stay as they are."""
    before = cell.own()
    try:
        cell.restore()
        result = cell.function()(*values)
        return _await(result) if inspect.iscoroutine(result) else result
    finally:
        names.update(before)


def _await(coroutine: Any) -> Any:
    """Run a coroutine to its end in a thread: in this one a notebook's event loop runs already."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
