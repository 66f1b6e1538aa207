"""The errors of `serialize`: which object is to blame, and where it hangs."""

from __future__ import annotations

import dis
import functools
import inspect
import reprlib
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from burla import errors
from burla.serialize import ATOMIC, LruWrapper, Unpicklable, function_name, is_importable, size_bytes

_MAX_OBJECTS = 200_000  # the search for a path ends here: an error message may take a second, not a minute

_CONTAINERS = (dict, list, tuple, set, frozenset)

Step = tuple[str, Any]  # a format of `key` and `of`, and the key


def type_name(value: Any) -> str:
    """Return the full name of a value's type, without `builtins` and `__main__`."""
    kind = type(value)
    prefix = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    return prefix + kind.__qualname__


def short(value: Any) -> str:
    """Return a repr of at most about 80 characters; never raises."""
    shortener = reprlib.Repr()
    shortener.maxother = shortener.maxstring = 80
    try:
        return shortener.repr(value)
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        return f"<{type(value).__name__} object, whose repr() raised {type(error).__name__}>"


def function_not_picklable(function: Callable[..., Any], error: Unpicklable) -> errors.FunctionNotPicklable:
    name = function_name(function)
    path = find_path(function, error.culprit, _root_label(function))
    return errors.FunctionNotPicklable(
        f"the function {name} cannot be sent: {_blame(path, error)}. Create it inside the function (to do so once a "
        "process, in a helper with functools.cache), or pass what is needed to create it.",
        path=path,
        culprit_type=type_name(error.culprit),
    )


def function_too_big(function: Callable[..., Any], size: int, limit_bytes: int) -> errors.FunctionTooBig:
    largest = _largest(function)
    captured = "; ".join(f"{path}: {_size(part)}" for path, part in largest)
    return errors.FunctionTooBig(
        f"the function {function_name(function)} is {_size(size)} pickled, over the limit of {_size(limit_bytes)}. "
        + (f"The largest objects it captures: {captured}. " if captured else "")
        + "Load large data inside the function, or pass the path of a file.",
        size_bytes=size,
        limit_bytes=limit_bytes,
        largest=largest,
    )


def input_not_picklable(value: Any, index: int, error: Unpicklable) -> errors.InputNotPicklable:
    path = find_path(value, error.culprit, "the input")
    return errors.InputNotPicklable(
        f"input {index}, of type {type_name(value)}, cannot be sent: {_blame(path, error)}. Nothing has run. Pass what "
        "is needed to create it, and create it inside the function.",
        index=index,
        path=path,
        culprit_type=type_name(error.culprit),
    )


def input_too_big(value: Any, index: int, size: int, limit_bytes: int) -> errors.InputTooBig:
    return errors.InputTooBig(
        f"input {index}, of type {type_name(value)}, is {_size(size)} pickled, over the limit of {_size(limit_bytes)}. "
        "Nothing has run. Split it, or pass the path of a file and load it inside the function.",
        index=index,
        size_bytes=size,
        limit_bytes=limit_bytes,
    )


def result_not_picklable(value: Any, index: int, error: Unpicklable) -> errors.ResultNotPicklable:
    path = find_path(value, error.culprit, "the result")
    culprit = error.culprit
    if isinstance(culprit, types.GeneratorType):
        hint = "Return list(...) of the generator"
    elif isinstance(culprit, (types.CoroutineType, types.AsyncGeneratorType)):
        hint = "Await it inside the function and return its value"
    elif hasattr(type(culprit), "fileno") or hasattr(type(culprit), "acquire"):
        hint = "Open files, connections and locks stay in their process: return what was read, or a path"
    else:
        hint = "Return plain data that describes it"
    return errors.ResultNotPicklable(
        f"the call of input {index} returned a value of type {type_name(value)} that cannot come back: "
        f"{_blame(path, error)}. {hint}.",
        index=index,
        type_name=type_name(value),
    )


def argument_mismatch(
    function: Callable[..., Any], value: tuple[Any, ...], index: int
) -> errors.ArgumentMismatch | None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C have none
        return None
    try:
        signature.bind(*value)
    except TypeError as error:
        bare = []
        for parameter in signature.parameters.values():
            default = parameter.empty if parameter.default is parameter.empty else _Dots()
            bare.append(parameter.replace(default=default, annotation=parameter.empty))
        shown = signature.replace(parameters=bare, return_annotation=signature.empty)
        count = "1 value" if len(value) == 1 else f"{len(value)} values"
        return errors.ArgumentMismatch(
            f"input {index} is a tuple of {count}, which are passed as separate arguments, and do not fit "
            f"{function_name(function)}{shown}: {error}. To pass a tuple as one argument, wrap it: "
            "(your_tuple,).",
            index=index,
        )
    return None


class _Dots:
    """Stands for a default in a signature: the default's own repr may be endless."""

    def __repr__(self) -> str:
        return "..."


def find_path(root: Any, culprit: Any, label: str) -> str:
    """Return where `culprit` hangs in `root`, which is called `label`."""
    nodes: list[tuple[Any, int, Step]] = [(root, -1, (label, None))]  # object, position of its parent, step
    seen = {id(root)}
    waiting = deque([0])
    while waiting and len(nodes) < _MAX_OBJECTS:
        position = waiting.popleft()
        if nodes[position][0] is culprit:
            return _render(nodes, position)
        try:
            children = list(_children(nodes[position][0]))
        except Exception:  # noqa: BLE001 - attributes of a user's object may raise; the error to explain matters more
            continue
        for child, step in children:
            if type(child) not in ATOMIC and id(child) not in seen:
                seen.add(id(child))
                waiting.append(len(nodes))
                nodes.append((child, position, step))
    return f"something in {label}"


def _largest(function: Callable[..., Any]) -> list[tuple[str, int]]:
    """Return path and size of the three largest objects that a function captures, code itself left out."""
    nodes: list[tuple[Any, int, Step]] = [(function, -1, (_root_label(function), None))]
    seen: set[int] = set()
    sizes: list[tuple[str, int]] = []
    for position, (value, parent, _) in enumerate(nodes):  # grows while it is walked
        of_method = isinstance(nodes[parent][0], types.MethodType) and not isinstance(value, _CONTAINERS)
        if position and not of_method and not _is_code(value):
            try:
                sizes.append((_render(nodes, position), size_bytes(value)))
            except Unpicklable:  # an attribute that __getstate__ leaves out
                pass
            continue
        for child, step in _children(value, reduce=False):
            if id(child) not in seen and not isinstance(child, types.ModuleType):
                seen.add(id(child))
                nodes.append((child, position, step))
    return sorted(sizes, key=lambda entry: -entry[1])[:3]


def function_parts(function: Callable[..., Any]) -> dict[str, int]:
    """Return the globals and closure variables that travel with a function, with the size of their pickles in bytes.

    Raises FunctionNotPicklable, which names what cannot travel.
    """
    if not isinstance(function, types.FunctionType) or is_importable(function):
        return {}
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    parts = {name: cell.cell_contents for name, cell in closure}
    for name in _global_names(function.__code__) & function.__globals__.keys():
        parts[name] = function.__globals__[name]
    try:
        return {name: size_bytes(parts[name]) for name in sorted(parts)}
    except Unpicklable as error:
        raise function_not_picklable(function, error) from error.__cause__


def _is_code(value: Any) -> bool:
    if isinstance(value, (types.FunctionType, type)):
        return not is_importable(value)
    return isinstance(value, (types.MethodType, functools.partial, LruWrapper))


def _children(value: Any, reduce: bool = True) -> Iterator[tuple[Any, Step]]:
    """Yield what hangs directly on a value when it is pickled, the most readable way to it first."""
    if isinstance(value, types.FunctionType):
        if not is_importable(value):
            yield from _of_function(value)
    elif isinstance(value, type):
        if not is_importable(value):
            yield from ((base, ("base class {key} of {of}", base.__name__)) for base in value.__bases__)
            yield from ((child, ("attribute '.{key}' of {of}", name)) for name, child in vars(value).items())
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__, ("{of}", None)
    elif isinstance(value, property):
        yield from ((part, ("{of}", None)) for part in (value.fget, value.fset, value.fdel))
    elif isinstance(value, types.MethodType):
        yield value.__func__, ("{of}", None)
        yield value.__self__, ("argument 'self' of {of}", None)
    elif isinstance(value, functools.partial):
        yield value.func, (function_name(value), None)
        yield from ((child, ("argument [{key}] of {of}", i)) for i, child in enumerate(value.args))
        yield from ((child, ("argument {key} of {of}", repr(name))) for name, child in value.keywords.items())
    elif isinstance(value, LruWrapper):
        yield value.__wrapped__, ("{of}", None)
    elif not isinstance(value, types.ModuleType):
        yield from _of_data(value, reduce)


def _of_function(function: types.FunctionType) -> Iterator[tuple[Any, Step]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield cell.cell_contents, ("closure variable {key} of {of}", repr(name))
        except ValueError:  # an empty cell
            continue
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name], ("global {key} used by {of}", repr(name))
    for i, default in enumerate(function.__defaults__ or ()):
        yield default, ("{of}.__defaults__[{key}]", i)
    for attribute in ("__kwdefaults__", "__annotations__"):
        for name, value in (getattr(function, attribute) or {}).items():
            yield value, ("{of}." + attribute + "[{key}]", repr(name))
    for name, value in vars(function).items():
        yield value, ("attribute '.{key}' of {of}", name)


def _global_names(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    return names.union(*(_global_names(const) for const in code.co_consts if isinstance(const, types.CodeType)))


def _of_data(value: Any, reduce: bool) -> Iterator[tuple[Any, Step]]:
    if isinstance(value, dict):
        yield from ((child, ("item [{key}] of {of}", short(key))) for key, child in value.items())
        yield from ((key, ("key {key} of {of}", short(key))) for key in value)
    elif isinstance(value, (list, tuple, deque)):
        yield from ((child, ("item [{key}] of {of}", i)) for i, child in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((child, ("element {key} of {of}", short(child))) for child in value)
    if type(value) in _CONTAINERS:
        return
    yield from ((child, ("attribute '.{key}' of {of}", name)) for name, child in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType) and hasattr(value, name):
                yield getattr(value, name), ("attribute '.{key}' of {of}", name)
    yield type(value), ("class {key}", type(value).__name__)
    if reduce:
        try:
            reduced = value.__reduce_ex__(5)
        except Exception:  # noqa: BLE001 - then it is itself the culprit, or leads to none
            return
        if isinstance(reduced, tuple):
            yield from ((part, ("part of {of}", None)) for part in reduced[1:3])
            yield from ((list(part), ("part of {of}", None)) for part in reduced[3:5] if part is not None)


def _root_label(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        return f"partial({function_name(function)})"
    return function_name(function) if hasattr(function, "__name__") else f"the {type(function).__name__} object"


def _render(nodes: list[tuple[Any, int, Step]], position: int) -> str:
    _, parent, (template, key) = nodes[position]
    if parent < 0:
        return template
    owner = nodes[parent][0]
    if parent == 0 and isinstance(owner, types.MethodType) and template.startswith("argument 'self'"):
        return "argument 'self'"
    of = _render(nodes, parent)
    if isinstance(owner, types.FunctionType) and of != function_name(owner):
        of = f"{function_name(owner)} ({of})"
    return template.replace("{of}", of).replace("{key}", str(key))


def _blame(path: str, error: Unpicklable) -> str:
    return f"{path} is of type {type_name(error.culprit)} ({short(error.culprit)}) and cannot be pickled ({error})"


def _size(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{size / 1e3:,.0f} kB"
