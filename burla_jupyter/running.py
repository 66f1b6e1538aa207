"""Run mode: the cell runs once, and what it did to names happens here."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from burla_jupyter.contents import Contents
from burla_jupyter.outcome import COMPARED_BYTES, LEFT, VALUE, Outcome


def bring_left(shell: InteractiveShell, error: BaseException) -> None:
    """Assign here what a cell had assigned when it failed."""
    left = vars(error).pop(LEFT, None)
    if isinstance(left, Outcome):
        try:
            bring(shell, left)
        except Exception as another:  # noqa: BLE001 - a user's class may raise anything, and why the cell failed matters more
            names = ", ".join(left.names)
            print(f"burla: {names} did not come back. {type(another).__name__}: {another}", file=sys.stderr)


def bring(shell: InteractiveShell, outcome: Outcome) -> Any:
    """Assign here what a cell assigned on its node, say what is missing, and return its value."""
    try:
        values = outcome.load(shell.user_ns)
    except Exception as error:
        names = ", ".join(name for name in outcome.names if name != VALUE) or "its last value"
        note = (
            f"burla: the cell ran, but what it left cannot be loaded here: {names}. To leave some out: %%burla -o a,b"
        )
        vars(error)["__notes__"] = [*vars(error).get("__notes__", ()), note]
        raise
    value = values.pop(VALUE, None)
    for name, new in values.items():
        try:
            shell.push({name: new.put_into(shell.user_ns.get(name)) if isinstance(new, Contents) else new})
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            outcome.lost[name] = f"{type(error).__name__}: {error}"
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
