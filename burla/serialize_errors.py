"""Exceptions as bytes: each one a record that refers to others by number, so that cycles and awkward classes survive.

`serialize_rebuild` makes exceptions of the records again.
"""

from __future__ import annotations

import io
import pickle
import traceback
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from burla import errors
from burla.serialize import ATOMIC, Pickler
from burla.serialize_report import short, type_name

FAILURES = (Exception, SystemExit, GeneratorExit)  # what a user's class may raise while it is made; not Ctrl-C
set_attribute = BaseException.__setattr__  # frozen dataclasses, too, can be exceptions
SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)


class Frame(NamedTuple):
    file: str
    function: str
    line: int
    first_line: int  # of the function
    module: str


@dataclass(slots=True)
class Record:
    type_name: str
    message: str
    text: str  # the formatted traceback
    frames: list[Frame]
    make: bytes | None  # pickle of (function, arguments); None: cannot be sent
    why: str  # ... because of this
    state: bytes | None
    slots: bytes | None
    notes: list[str]
    cause: int | None
    context: int | None
    suppress_context: bool


def dump(error: BaseException, index: int, strip_files: tuple[str, ...]) -> bytes:
    if not isinstance(error, Exception):
        error = _exited(error, index)
    return pickle.dumps((index, _Dumper(strip_files).records(error)), 5)


def _exited(error: BaseException, index: int) -> errors.CallExited:
    name = type_name(error)
    code = getattr(error, "code", None) if isinstance(error, SystemExit) else None
    exited = errors.CallExited(
        f"the call of input {index} raised {name}({'' if code is None else short(code)}), which ends a program and not "
        "a call. Return a value, or raise an Exception.",
        index=index,
        type_name=name,
        code=code if type(code) in ATOMIC else short(code),
    )
    return exited.with_traceback(error.__traceback__)


class _Dumper:
    def __init__(self, strip_files: tuple[str, ...]):
        self.strip_files = strip_files
        self.errors: list[BaseException] = []
        self.numbers: dict[int, int] = {}

    def records(self, error: BaseException) -> list[Record]:
        self.number(error)
        records = []
        for found in self.errors:  # grows while it is walked
            records.append(self._record(found))
        return records

    def number(self, error: BaseException) -> int:
        if id(error) not in self.numbers:
            self.numbers[id(error)] = len(self.errors)
            self.errors.append(error)
        return self.numbers[id(error)]

    def _record(self, error: BaseException) -> Record:
        notes = _notes(error)
        make, state, why = self._make(error, notes)
        slots = self._dump_dict(_slots(error), notes) if make else None
        cause, context = error.__cause__, error.__context__
        return Record(
            type_name(error),
            message_of(error),
            _format(error, self.strip_files, chain=error is self.errors[0]),
            _frames(error.__traceback__, self.strip_files),
            make,
            why,
            state,
            slots,
            notes,
            None if cause is None else self.number(cause),
            None if context is None else self.number(context),
            error.__suppress_context__,
        )

    def _make(self, error: BaseException, notes: list[str]) -> tuple[bytes | None, bytes | None, str]:
        reduced = _faithful_reduce(error)
        if reduced is not None:
            function, args, state = reduced
            try:
                make = self._dump((function, args))
                if isinstance(state, dict):
                    return make, self._dump_dict(state, notes), ""
                return make, None if state is None else self._dump(state), ""
            except FAILURES:  # something in it cannot be sent: part by part, below
                pass
        args = tuple(self._argument(i, value, notes) for i, value in enumerate(error.args))
        try:
            new_exception(type(error), args)
            make = self._dump((new_exception, (type(error), args)))
        except FAILURES as failure:
            return None, None, f"{type(failure).__name__}: {message_of(failure)}"
        return make, self._dump_dict(_without_notes(vars(error)), notes), ""

    def _argument(self, i: int, value: Any, notes: list[str]) -> Any:
        if self._can_travel(value):
            return value
        notes.append(f"burla: args[{i}] ({type_name(value)}) could not be sent; its repr stands in its place")
        return short(value)

    def _dump_dict(self, values: dict[str, Any], notes: list[str]) -> bytes:
        try:
            return self._dump(values)
        except FAILURES:
            kept = {}
            for name, value in values.items():
                if self._can_travel(value):
                    kept[name] = value
                else:
                    notes.append(f"burla: attribute {name!r} ({type_name(value)}) could not be sent")
            return self._dump(kept)

    def _can_travel(self, value: Any) -> bool:
        try:
            self._dump(value)
        except FAILURES:
            return False
        return True

    def _dump(self, value: Any) -> bytes:
        file = io.BytesIO()
        _RefPickler(file, self.number).dump(value)
        data = file.getvalue()
        RefUnpickler(data, self.errors.__getitem__).load()  # some pickles can only be made, not loaded
        return data


class _RefPickler(Pickler):
    """Writes an exception as its number."""

    def __init__(self, file: Any, number: Callable[[BaseException], int]):
        super().__init__(file)
        self.number = number

    def persistent_id(self, obj: Any) -> int | None:
        return self.number(obj) if issubclass(type(obj), BaseException) else None


class RefUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, get: Callable[[int], BaseException]):
        super().__init__(io.BytesIO(data))
        self.get = get

    def persistent_load(self, pid: int) -> BaseException:
        return self.get(pid)


def _faithful_reduce(error: BaseException) -> tuple[Any, tuple[Any, ...], Any] | None:
    """Return function, arguments and state of the class's own reduce, if they reproduce type and args."""
    try:
        reduced: Any = error.__reduce_ex__(5)
        if not isinstance(reduced, tuple) or any(part is not None for part in reduced[3:]):
            return None
        function, args = reduced[:2]
        state = reduced[2] if len(reduced) > 2 else None
        twin = function(*args)
        same = type(twin) is type(error) and len(twin.args) == len(error.args)
        if not (same and all(map(_same, twin.args, error.args))):
            return None
    except FAILURES:
        return None
    return function, args, _without_notes(state) if isinstance(state, dict) else state


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and type(one) in ATOMIC and one == other)


def new_exception(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception without its `__init__`, which may want other arguments than those in `args`."""
    try:
        error = cls.__new__(cls, *args)
    except FAILURES:
        builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
        error = builtin.__new__(cls, *args)
    set_attribute(error, "args", args)
    return error


def _slots(error: BaseException) -> dict[str, Any]:
    """Return what an exception holds outside of its `__dict__`: errno, start, name, slots of its class."""
    found: dict[str, Any] = {}
    for cls in type(error).__mro__:
        if cls in (BaseException, BaseExceptionGroup, object):
            continue
        for name, slot in vars(cls).items():
            if not isinstance(slot, SLOTS):
                continue
            if name in ("__dict__", "__weakref__") or (cls is AttributeError and name == "obj"):
                continue  # obj may be the user's whole model
            try:
                value = slot.__get__(error)
            except AttributeError:  # never set
                continue
            if value is not None:
                found.setdefault(name, value)
    return found


def _without_notes(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "__notes__"}


def _notes(error: BaseException) -> list[str]:
    notes = vars(error).get("__notes__")
    return [note if type(note) is str else short(note) for note in notes] if isinstance(notes, (list, tuple)) else []


def message_of(error: BaseException) -> str:
    try:
        return str(error)
    except FAILURES as failure:
        return f"<its str() raised {type(failure).__name__}>"


def _frames(tb: types.TracebackType | None, strip_files: tuple[str, ...]) -> list[Frame]:
    frames = []
    while tb is not None:
        code = tb.tb_frame.f_code
        if frames or code.co_filename not in strip_files:
            module = str(tb.tb_frame.f_globals.get("__name__"))
            line = tb.tb_lineno or 0
            frames.append(Frame(code.co_filename, code.co_name, line, min(code.co_firstlineno, line), module))
        tb = tb.tb_next
    return frames


def _format(error: BaseException, strip_files: tuple[str, ...], chain: bool) -> str:
    try:
        formatted = traceback.TracebackException.from_exception(error)
        waiting: list[traceback.TracebackException | None] = [formatted]
        while waiting:
            part = waiting.pop()
            if part is not None:
                while part.stack and part.stack[0].filename in strip_files:
                    del part.stack[0]
                waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]
        return "".join(formatted.format(chain=chain))
    except Exception as failure:  # noqa: BLE001 - traceback trusts attributes that may be anything
        return (
            f"{type_name(error)}: {message_of(error)} (its traceback cannot be formatted: {type(failure).__name__})\n"
        )
