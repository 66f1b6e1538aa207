"""Run mode: the cell runs once, and what it did to names happens here."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from burla_jupyter.outcome import COMPARED_BYTES, VALUE, Outcome

HEAP_TYPE = 1 << 9  # of type.__flags__: made by a class statement


def bring(shell: InteractiveShell, outcome: Outcome) -> Any:
    """Assign here what a cell assigned on its node, say what is missing, and return its value."""
    values = outcome.load(shell.user_ns)
    value = values.pop(VALUE, None)
    for name, new in values.items():
        if name in outcome.in_place and _update(shell.user_ns.get(name), new):
            continue
        shell.push({name: new})
    for name in outcome.deleted:
        shell.user_ns.pop(name, None)
    for name, why in outcome.lost.items():
        print(f"burla: {name} did not come back. {why}", file=sys.stderr)
    if outcome.large:
        print(
            f"burla: {', '.join(outcome.large)}: too large to see whether the cell changed it (over "
            f"{COMPARED_BYTES / 1e6:.0f} MB), so it did not come back. If it is to: %%burla -o NAME",
            file=sys.stderr,
        )
    if outcome.shown is not None:
        print("burla: the last value cannot come here; this is how it shows on its node", file=sys.stderr)
        display(outcome.shown, raw=True)
    return value


def _update(old: Any, new: Any) -> bool:
    """Make an object what its changed copy is, for all that refers to it; return whether that is possible."""
    kind = type(new)
    if type(old) is not kind:
        return False
    if kind in (list, bytearray):
        old[:] = new
    elif kind is deque:
        old.clear()
        old.extend(new)
    elif kind in (dict, set):
        old.clear()
        old.update(new)
    elif _is_plain(kind):
        vars(old).clear()
        vars(old).update(vars(new))
    else:
        return False
    return True


def _is_plain(kind: type) -> bool:
    """Whether all that instances hold is in their `__dict__`."""
    bases = kind.__mro__[:-1]
    return all(base.__flags__ & HEAP_TYPE and "__slots__" not in vars(base) for base in bases) and (
        kind.__reduce_ex__ is object.__reduce_ex__ and not hasattr(kind, "__setstate__")
    )
