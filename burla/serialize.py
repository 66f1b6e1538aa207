"""How functions, inputs, results and exceptions become bytes and come back: the only user of cloudpickle.

A class or function that the other side cannot import goes by value. Its class is set up once a process: what comes back
later neither resets class attributes there nor replaces the methods of the caller's own class here.
"""

from __future__ import annotations

import functools
import io
import operator
import pickle
import sys
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle

from burla import config, errors

ATOMIC = frozenset({int, float, str, bytes, bool, type(None), complex})
LruWrapper = type(functools.lru_cache(len))

_complete: weakref.WeakSet[type] = weakref.WeakSet()  # classes sent by value whose state is set in this process
_class_by_id: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()
_id_by_class: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()

Definitions = dict[int, tuple[type, tuple[Any, ...]]]


class Unpicklable(pickle.PicklingError):
    """A value cannot be pickled because of `culprit`, somewhere in it; the cause is pickle's own error."""

    def __init__(self, culprit: Any, reason: BaseException):
        super().__init__(f"{type(reason).__name__}: {reason}")
        self.culprit = culprit


class Pickler(cloudpickle.Pickler):
    """The pickler of everything that goes by value.

    With `definitions`, each class goes as one ready pickle that the values of a job share: 100 times faster.
    """

    def __init__(self, file: Any, definitions: Definitions | None = None):
        super().__init__(file, protocol=5)
        self.definitions = definitions
        self.last: Any = None  # pickle asks here about each object just before it fails on it

    def reducer_override(self, obj: Any) -> Any:
        self.last = obj
        kind = type(obj)
        if kind is LruWrapper:
            return NotImplemented if is_importable(obj) else _reduce_lru(obj)
        if kind is functools.cached_property:  # in Python 3.11 it has a lock
            return functools.cached_property, (obj.func,), {"attrname": obj.attrname}
        if issubclass(kind, type):
            return self._reduce_class(obj)
        return super().reducer_override(obj)

    def _reduce_class(self, cls: type) -> Any:
        if self.definitions is not None and id(cls) in self.definitions:
            return self.definitions[id(cls)][1]
        reduced = super().reducer_override(cls)
        if not (isinstance(reduced, tuple) and len(reduced) == 6):
            return reduced  # by reference
        _complete.add(cls)
        if self.definitions is None:
            make, args, state, _, _, set_state = reduced
            return make, args, (set_state, state), None, None, _set_class_state
        class_id = _id_by_class.setdefault(cls, uuid.uuid4().hex)
        _class_by_id[class_id] = cls
        self.definitions[id(cls)] = (cls, (_load_class, (class_id, _dump_by_value(cls))))
        return self.definitions[id(cls)][1]


def _set_class_state(cls: type, how: tuple[Callable[[type, Any], Any], Any]) -> None:
    if cls not in _complete:
        how[0](cls, how[1])
        _complete.add(cls)


def _load_class(class_id: str, definition: bytes) -> type:
    cls = _class_by_id.get(class_id)
    if cls is None:
        cls = _class_by_id[class_id] = pickle.loads(definition)
        _id_by_class[cls] = class_id
    return cls


def _reduce_lru(wrapper: Any) -> tuple[Any, ...]:
    state = {key: value for key, value in vars(wrapper).items() if key not in ("__wrapped__", "cache_parameters")}
    return _make_lru, (wrapper.cache_parameters(), wrapper.__wrapped__), state


def _make_lru(parameters: dict[str, Any], wrapped: Callable[..., Any]) -> Any:
    return functools.lru_cache(**parameters)(wrapped)


def is_importable(obj: Any) -> bool:
    """Return whether a function, class or lru_cache wrapper goes by reference to its module."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str) or module == "__main__" or module not in sys.modules:
        return False
    if any(module == name or module.startswith(name + ".") for name in cloudpickle.list_registry_pickle_by_value()):
        return False
    try:
        return operator.attrgetter(obj.__qualname__)(sys.modules[module]) is obj
    except AttributeError:
        return False


class _Sink:
    """Takes what is written while it is within the limit; then only counts, and holds nothing."""

    def __init__(self, limit_bytes: float):
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self.buffer = io.BytesIO()

    def write(self, data: Any) -> None:
        self.size_bytes += memoryview(data).nbytes
        if self.size_bytes <= self.limit_bytes:
            self.buffer.write(data)
        else:
            self.buffer = io.BytesIO()


def _dump_into(sink: _Sink, value: Any, definitions: Definitions | None = None) -> None:
    pickler = Pickler(sink, definitions)
    try:
        pickler.dump(value)
    except Unpicklable:  # of a class definition: names its own culprit
        raise
    except Exception as error:
        too_deep = isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
        raise Unpicklable(value if too_deep else pickler.last, error) from error


def _dump_by_value(value: Any, definitions: Definitions | None = None) -> bytes:
    sink = _Sink(float("inf"))
    _dump_into(sink, value, definitions)
    return sink.buffer.getvalue()


def size_bytes(value: Any) -> int:
    """Return the size of the pickled value, without holding it. Raises Unpicklable."""
    sink = _Sink(0)
    _dump_into(sink, value)
    return sink.size_bytes


def dump_value(value: Any, definitions: Definitions | None = None) -> bytes:
    """Return the pickle of one value, with classes of `__main__` by value. Raises Unpicklable."""
    try:
        data = pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - plain pickle is only the fast way: what really fails does so again below
        return _dump_by_value(value, definitions)
    by_value = cloudpickle.list_registry_pickle_by_value()
    if b"__main__" in data or (by_value and any(name.encode() in data for name in by_value)):
        return _dump_by_value(value, definitions)  # plain pickle may refer to a module that the other side lacks
    return data


def load_value(data: bytes) -> Any:
    """Return the value of a pickle made by `dump_value`."""
    return pickle.loads(data)


# functions ------------------------------------------------------------------------------------------------------------


def function_name(function: Callable[..., Any]) -> str:
    """Return what to call a function in messages: its name, a partial's function's, else its class's."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) and name else type(function).__name__


def dump_function(function: Callable[..., Any], limit_bytes: int = config.FUNCTION_LIMIT_BYTES) -> bytes:
    """Return the pickle of a function. Raises FunctionNotPicklable, or FunctionTooBig over `limit_bytes`."""
    sink = _Sink(limit_bytes)
    try:
        _dump_into(sink, function)
    except Unpicklable as error:
        from burla import serialize_report

        raise serialize_report.function_not_picklable(function, error) from error.__cause__
    if sink.size_bytes > limit_bytes:
        from burla import serialize_report

        raise serialize_report.function_too_big(function, sink.size_bytes, limit_bytes)
    return sink.buffer.getvalue()


def load_function(data: bytes) -> Callable[..., Any]:
    """Return the function of a pickle made by `dump_function`."""
    return pickle.loads(data)


def argument_mismatch(function: Callable[..., Any], value: Any, index: int) -> errors.ArgumentMismatch | None:
    """Return the error for a tuple that does not fit the signature; None if it fits or the signature is unknown."""
    if type(value) is not tuple:  # a named tuple is one argument
        return None
    from burla import serialize_report

    return serialize_report.argument_mismatch(function, value, index)


# inputs and results --------------------------------------------------------------------------------------------------


def load_block(payload: bytes) -> list[Any]:
    """Return the values of a block; with `each`, their pickles."""
    return pickle.loads(payload)


class ResultPacker:
    """Collects results of consecutive calls, from call `first` on; what is not atomic is pickled at once.

    A function may return the same object again and again, and change it: each result is kept as it was returned.
    """

    def __init__(self, first: int = 0, definitions: Definitions | None = None):
        self.first = first
        self.size_bytes = 0  # about, of all that was added
        self._items: list[Any] = []
        self._each = False
        self._definitions: Definitions = {} if definitions is None else definitions

    def __len__(self) -> int:
        return len(self._items)

    def add(self, result: Any) -> None:
        """Add the result of the next call. Raises ResultNotPicklable, and then has not added it."""
        kind = type(result)
        if kind in ATOMIC and not self._each:
            self._items.append(result)
            if kind is str or kind is bytes:
                self.size_bytes += len(result)
            return
        data = dump_result(result, self.first + len(self._items), self._definitions)
        if not self._each:
            self._items = [pickle.dumps(item, 5) for item in self._items]
            self._each = True
        self._items.append(data)
        self.size_bytes += len(data)

    def pack(self) -> tuple[bool, bytes]:
        """Return `each` and the payload of the results so far, and go on with the next call's."""
        packed = self._each, pickle.dumps(self._items, 5)
        self.first += len(self._items)
        self._items, self._each = [], False
        return packed


def dump_result(value: Any, index: int, definitions: Definitions | None = None) -> bytes:
    """Return the pickle of what call `index` returned. Raises ResultNotPicklable."""
    try:
        return dump_value(value, definitions)
    except Unpicklable as error:
        from burla import serialize_report

        raise serialize_report.result_not_picklable(value, index, error) from error.__cause__


def load_results(each: bool, payload: bytes) -> list[Any]:
    """Return the results of a `protocol.Results`."""
    items = pickle.loads(payload)
    return [pickle.loads(item) for item in items] if each else items


def cut_results(payload: bytes, start: int, stop: int) -> bytes:
    """Return the payload of results `start` … `stop - 1` of a payload: a list of pickles, or of atomic values."""
    return pickle.dumps(pickle.loads(payload)[start:stop], 5)


# exceptions -----------------------------------------------------------------------------------------------------------


def dump_exception(error: BaseException, index: int, strip_files: tuple[str, ...] = ()) -> bytes:
    """Return the pickle of what call `index` raised, without leading frames of `strip_files`."""
    from burla import serialize_errors

    return serialize_errors.dump(error, index, strip_files)


def load_exception(data: bytes) -> BaseException:
    """Return the exception of a pickle made by `dump_exception`, or a RemoteError that describes it; never raises."""
    from burla import serialize_rebuild

    return serialize_rebuild.load(data)
