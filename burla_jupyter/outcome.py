"""What a cell that ran once on a node brings back: names that it assigned or changed, and its last value."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import types
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from burla_jupyter import node
from burla_jupyter.contents import Contents

VALUE = "__burla_value__"  # of the last expression
LEFT = "__burla_left__"  # of an error: the Outcome of the cell that failed with it
COMPARED_BYTES = 100_000_000  # what pickles to more is not compared with what it was
ATOMIC = (int, float, complex, str, bytes, bool, type(None))
CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


class Before:
    """The names that a cell sees, before it runs."""

    def __init__(self, names: Mapping[str, Any], compare: bool):
        self.values = dict(names)
        data = {name: value for name, value in names.items() if compare and not isinstance(value, ATOMIC + CODE)}
        self.digests = {name: _digest(value) for name, value in data.items()}


@dataclass
class Outcome:
    """What came of a cell. `names`: pickles of what was assigned or changed by name, and of the last value.

    Names that still mean the object that was sent come back as its Contents. `lost`: names that cannot, and why;
    `large`: those that were too large to be compared with what they were before; `shown`: the last value as a MIME
    bundle, if it cannot come back itself.
    """

    names: tuple[str, ...]
    data: bytes
    deleted: tuple[str, ...]
    lost: dict[str, str]
    large: tuple[str, ...]
    shown: dict[str, Any] | None

    @classmethod
    def of(
        cls, names: MutableMapping[str, Any], before: Before, wanted: tuple[str, ...] | None, by_name: bool
    ) -> Outcome:
        """Return what a cell left in its names."""
        value = names.pop(VALUE, None)
        now = {name: one for name, one in names.items() if not (name.startswith("__") and name.endswith("__"))}
        same = {name for name in now if name in before.values and now[name] is before.values[name]}
        digests = {name: (was, _digest(now[name])) for name, was in before.digests.items() if name in same}
        large = [name for name, pair in digests.items() if None in pair]
        changed = {name for name, (was, new) in digests.items() if was != new} - {*large}
        lost: dict[str, str] = {}
        if wanted is None:
            back = {name: one for name, one in now.items() if name not in same or name in changed}
        else:
            back = {name: now[name] for name in wanted if name in now}
            lost = {name: "the cell does not assign it" for name in wanted if name not in now}
        if value is not None:
            back[VALUE] = value
        kept = same - changed - {*large} if by_name and wanted is None else set()
        if by_name:
            for name in back.keys() & same:
                back[name] = Contents.of(back[name]) or back[name]
            kept |= {name for name, one in back.items() if isinstance(one, Contents)}
        data, unpicklable = _pack(back, {id(now[name]): name for name in kept if not isinstance(now[name], ATOMIC)})
        lost |= {name: why for name, why in unpicklable.items() if name != VALUE}
        deleted = [name for name in before.values.keys() - now.keys() if not name.startswith("__")]
        return cls(
            tuple(name for name in back if name not in unpicklable),
            data,
            tuple(deleted) if wanted is None else (),
            lost,
            tuple(large),
            node.bundle(value) if VALUE in unpicklable else None,
        )

    def load(self, notebook: dict[str, Any]) -> dict[str, Any]:
        """Return the names with their values, VALUE among them; functions among these get the notebook as globals."""
        return _Loader(self.data, notebook).load()

    def __repr__(self) -> str:
        shown = [name for name in self.names if name != VALUE]
        what = f"assigned {', '.join(shown)}" if shown else "assigned nothing"
        return f"<outcome of a cell: {what}{', and has a value' if VALUE in self.names else ''}>"


class _Hash:
    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self.size_bytes = 0

    def write(self, data: Any) -> None:
        self.size_bytes += memoryview(data).nbytes
        if self.size_bytes > COMPARED_BYTES:
            raise _TooLarge
        self.hash.update(data)


class _TooLarge(Exception):
    pass


def _digest(value: Any) -> bytes | None:
    """Return what stays the same while a value does; None: it is too large to say. Empty if it cannot be pickled."""
    import cloudpickle

    sink = _Hash()
    try:
        cloudpickle.Pickler(sink, 5).dump(value)
    except _TooLarge:
        return None
    except Exception:  # noqa: BLE001 - it came here, so it has changed; what is wrong shows when it is packed
        return b""
    return sink.hash.digest()


def _pack(values: dict[str, Any], known: dict[int, str]) -> tuple[bytes, dict[str, str]]:
    """Return a pickle of all values that can be pickled, and why the others cannot. `known`: names by object id."""
    try:
        return _dump(values, known), {}
    except Exception:  # noqa: BLE001 - one of them is to blame: below
        pass
    why: dict[str, str] = {}
    for name, value in values.items():
        try:
            _dump(value, known)
        except Exception as error:  # noqa: BLE001 - a user's class may raise anything
            why[name] = f"{type(error).__name__}: {error}"
    return _dump({name: value for name, value in values.items() if name not in why}, known), why


def _dump(value: Any, known: dict[int, str]) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, obj: Any) -> str | None:
            return known.get(id(obj))

    file = io.BytesIO()
    Pickler(file, 5).dump(value)
    return file.getvalue()


class _Loader(pickle.Unpickler):
    """Loads what a node packed: a function of the notebook, or one that the cell defined, belongs to the notebook."""

    def __init__(self, data: bytes, notebook: dict[str, Any]):
        super().__init__(io.BytesIO(data))
        self._notebook = notebook
        self._sent = dict(notebook)

    def persistent_load(self, pid: str) -> Any:
        return self._sent[pid]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        if module_name == "cloudpickle.cloudpickle" and global_name == "_make_function":
            return functools.partial(self._make_function, found)
        if module_name == "cloudpickle.cloudpickle" and global_name == "_function_setstate":
            return functools.partial(self._set_state, found)
        return found

    def _make_function(self, make: Any, code: types.CodeType, there: dict[str, Any], *rest: Any) -> Any:
        return make(code, self._notebook if there.get("__name__") == "__main__" else there, *rest)

    def _set_state(self, set_state: Any, function: types.FunctionType, state: tuple[Any, dict[str, Any]]) -> None:
        if function.__globals__ is self._notebook:  # what it has already is newer
            used = state[1]["__globals__"]
            state[1]["__globals__"] = {name: value for name, value in used.items() if name not in self._notebook}
        set_state(function, state)
