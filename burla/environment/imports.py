"""Which modules code imports: of a function as it is in memory, of a module as its file stands."""

from __future__ import annotations

import ast
import dis
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burla.serialize import is_importable

MOST_OBJECTS = 10_000  # of what a function captures; a list of a million numbers needs no look at each
ATOMIC = (int, float, complex, str, bytes, bool, type(None))


def imported_by(function: Any) -> set[str]:
    """Return the dotted names of modules that a function imports, or that what goes with it by value refers to."""
    names: set[str] = set()
    seen: set[int] = set()
    waiting = [function]
    while waiting and len(seen) < MOST_OBJECTS:
        found = waiting.pop()
        if isinstance(found, ATOMIC) or id(found) in seen:
            continue
        seen.add(id(found))
        waiting += _look(found, names)
    names.discard("__main__")
    return names


def _look(found: Any, names: set[str]) -> Iterator[Any]:
    """Note the modules that an object refers to by name; yield the objects that it refers to."""
    match found:
        case types.ModuleType():
            names.add(found.__name__)
        case types.CodeType():
            names.update(_of_code(found))
            yield from (const for const in found.co_consts if isinstance(const, types.CodeType))
        case functools.partial():
            yield from (found.func, found.args, found.keywords)
        case types.MethodType():
            yield from (found.__func__, found.__self__)
        case types.FunctionType() | type() if is_importable(found):
            names.add(found.__module__)
        case types.FunctionType():
            yield from (found.__code__, found.__defaults__, found.__kwdefaults__, vars(found))
            yield from (found.__globals__[name] for name in _global_names(found.__code__) if name in found.__globals__)
            for cell in found.__closure__ or ():
                try:
                    yield cell.cell_contents
                except ValueError:
                    continue  # not assigned yet
        case type():
            names.add(found.__module__)
            yield from (found.__bases__, dict(vars(found)))
        case dict():
            yield from found.keys()
            yield from found.values()
        case list() | tuple() | set() | frozenset():
            yield from found
        case property():
            yield from (found.fget, found.fset, found.fdel)
        case staticmethod() | classmethod():
            yield found.__func__
        case _:
            yield type(found)
            yield getattr(found, "__wrapped__", None)
            yield getattr(found, "__dict__", None)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _global_names(const)
    return names


def _of_code(code: types.CodeType) -> Iterator[str]:
    constants: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, wanted = constants[-2:] if len(constants) > 1 else (0, None)
            if level == 0:  # what is imported relatively is in a module of its own, and read there
                yield instruction.argval
                yield from (f"{instruction.argval}.{name}" for name in wanted or () if name != "*")
        elif instruction.opname.startswith("LOAD_"):
            constants.append(instruction.argval)


@functools.lru_cache(10_000)
def _imports_of_file(path: str, mtime_ns: int, size_bytes: int, package: str) -> frozenset[str]:
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):  # whoever imports it will be told
        return frozenset()
    return frozenset(_of_tree(tree, package))


def imports_of_file(path: Path, package: str) -> frozenset[str]:
    """Return the dotted names that the file of a module imports anywhere; `package`: the one that it is in."""
    try:
        stat = path.stat()
    except OSError:
        return frozenset()
    return _imports_of_file(str(path), stat.st_mtime_ns, stat.st_size, package)


def _of_tree(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".") if package else []
    parents = parents[: len(parents) + 1 - node.level]
    return ".".join([*parents, *filter(None, [node.module])])
