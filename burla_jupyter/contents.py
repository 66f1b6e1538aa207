"""What an object holds: with it the one in the notebook becomes what its copy on a node is, wherever it is used."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import Any

HEAP_TYPE = 1 << 9  # of type.__flags__: made by a class statement
NEW_OBJECT = object().__reduce_ex__(2)[0]  # how instances are unpickled whose class does not say otherwise
DICTS = (dict, defaultdict, OrderedDict, Counter)


@dataclass
class Contents:
    """The contents of one object. References to the object itself are the business of who sends them."""

    held: Any

    @classmethod
    def of(cls, value: Any) -> Contents | None:
        """Return the contents of an object; None: of this kind none can be changed in place."""
        kind = type(value)
        if kind in (list, deque):
            return cls(list(value))
        if kind in DICTS:
            return cls(dict(value))
        if kind in (set, bytearray):
            return cls(kind(value))
        if _is_array(value):
            return cls(value.view())
        state = _state(value)
        return None if state is None else cls(state[0])

    def put_into(self, old: Any) -> Any:
        """Change an object of the same kind; return it, or what takes its place. Raises what its class may raise."""
        kind = type(old)
        if kind in (list, bytearray):
            old[:] = self.held
        elif kind is deque:
            old.clear()
            old.extend(self.held)
        elif kind in (*DICTS, set):
            old.clear()
            old.update(self.held)
        elif _is_array(old):
            if old.shape != self.held.shape or old.dtype != self.held.dtype or not old.flags.writeable:
                return self.held
            old[...] = self.held
        else:
            _set_state(old, self.held)
        return old


def _is_array(value: Any) -> bool:
    return type(value) is getattr(sys.modules.get("numpy"), "ndarray", None)


def _state(value: Any) -> tuple[Any] | None:
    """Return what an instance is unpickled from, if all that it holds is in its `__dict__`."""
    if any(not base.__flags__ & HEAP_TYPE or vars(base).get("__slots__") for base in type(value).__mro__[:-1]):
        return None
    try:
        make, arguments, state, *items = value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - why it cannot be pickled shows when it is
        return None
    plain = make is NEW_OBJECT and len(arguments) == 1 and all(part is None for part in items)
    return (state,) if plain else None


def _set_state(old: Any, state: Any) -> None:
    before = dict(vars(old))
    vars(old).clear()
    try:
        if hasattr(old, "__setstate__"):
            old.__setstate__(state)
        else:
            vars(old).update(state or {})
    except BaseException:
        vars(old).clear()
        vars(old).update(before)
        raise
