"""What a `%%burla` cell says, before anything runs: where its options end, its loop, what its body needs. Pure.

Line 1 of a cell is the line of the magic, so that every position is the one that the user sees.
"""

from __future__ import annotations
import __future__

import ast
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from burla_jupyter import escapes
from burla_jupyter.errors import Refused
from burla_jupyter.names import in_scope, names_of
from burla_jupyter.outcome import CODE, VALUE

MAGIC = "%%burla "
FUTURES = {name: getattr(__future__, name).compiler_flag for name in __future__.all_feature_names}
WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|{[^{}]*}|[^\s"'])+|["']""")
OF_MODULES = {"__builtins__", "__builtin__", "__loader__", "__spec__"}  # each process has its own


@dataclass(frozen=True)
class Header:
    """The loop of a map: the names that it binds, and code of a function that returns their values, as tuples."""

    targets: tuple[str, ...]
    text: str
    code: types.CodeType


@dataclass(frozen=True)
class Body:
    """A cell's body, compiled: as a function of the targets, or in run mode as a module; and its text as Python.

    `read`: names of the notebook that it needs; `assigned`: names that it assigns; `changed`: notebook names whose
    change is lost, in a map because calls have their own copy of them; `gives_none`: every call returns None.
    """

    code: types.CodeType
    tree: ast.Module
    text: str
    read: tuple[str, ...]
    assigned: tuple[str, ...]
    changed: tuple[str, ...]
    gives_none: bool


def split(line: str) -> int | None:
    """Return the column behind the `for` that ends the options; None: there is none. In a value it stands in quotes."""
    for word in WORD.finditer(line):
        if word.group() == "for":
            return word.end()
    return None


def parse_header(line: str, column: int, filename: str) -> Header:
    """Compile what stands in the magic's line from `column` on, behind `for`. Raises Refused, SyntaxError."""
    text = line[column:].strip()
    if not text:
        raise Refused("after `for` comes a loop: %%burla for x in xs")
    behind = len(MAGIC) + column - len("([0 for")
    try:  # so that columns are those of the cell
        loop = ast.parse(f"({' ' * behind}[0 for{line[column:]}\n])", filename, "eval").body
    except SyntaxError as error:
        raise _explained(error, text, MAGIC + line) from None
    if not isinstance(loop, ast.ListComp):
        raise Refused(f"`for {text}` is not a loop: write `for x in xs`, also with `if`, or with a second `for`.")
    targets = tuple(dict.fromkeys(_targets(loop)))
    if not targets:
        raise Refused(f"`for {text}` binds no name. Write `for _ in xs` if the cell needs none.")
    if any(isinstance(node, ast.Await) or getattr(node, "is_async", 0) for node in in_scope([loop])):
        raise Refused("`await` cannot stand in the line of %%burla: put the values into a variable in a cell before.")
    # in a function, so that nothing that it binds appears in the notebook
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    element = ast.Tuple([ast.Name(name, ast.Load()) for name in targets], ast.Load())
    function = ast.Lambda(nothing, ast.GeneratorExp(element, loop.generators))
    tree = ast.fix_missing_locations(ast.Expression(ast.copy_location(function, loop)))
    code = compile(tree, filename, "eval", dont_inherit=True)
    return Header(targets, text, _as_module(_as_module(code, "<lambda>"), "<genexpr>"))


def _targets(loop: ast.ListComp) -> list[str]:
    bound = [part.target for part in loop.generators]
    bound += [node.target for node in ast.walk(loop) if isinstance(node, ast.NamedExpr)]
    names = [node for target in bound for node in ast.walk(target) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    return [node.id for node in names if isinstance(node.ctx, ast.Store)]


def _explained(error: SyntaxError, text: str, line: str) -> Exception:
    if re.search(r"\bin\b", text) is None:
        return Refused(f"`for {text}` has no `in`: write `for x in xs`.")
    if text.endswith(":"):
        return Refused("the line of %%burla ends without a colon: %%burla for x in xs")
    if "was never closed" in (error.msg or "") or "does not match opening" in (error.msg or "") or text[-1] in "([{,\\":
        return Refused(
            "all of the `for` has to stand in the first line of the cell. "
            "Put what is long into a variable, in a cell before."
        )
    if error.lineno != 1:
        error.lineno, error.offset = 1, len(line)
    error.text, error.end_lineno, error.end_offset = line + "\n", None, None
    return error


def parse_body(
    cell: str,
    header: Header | None,
    namespace: Mapping[str, Any],
    filename: str,
    transform: Callable[[str], str],
    flags: int = 0,
) -> Body:
    """Compile the lines below the magic. `namespace`: of the notebook; `transform`: makes IPython's escapes Python.

    Raises Refused, SyntaxError.
    """
    targets = () if header is None else header.targets
    tree, text = escapes.parse(cell, transform, filename)
    if not tree.body:
        raise Refused("the cell has nothing to run below its first line.")
    tree = ast.fix_missing_locations(escapes.Shell({*namespace, *targets, *_bound_anywhere(tree)}).visit(tree))
    _refuse_misplaced(tree, header)
    flags |= _take_futures(tree) if header is not None else 0
    names = names_of(tree.body, targets)
    declared = {name for node in in_scope(tree.body) if isinstance(node, ast.Global) for name in node.names}
    changed = {name for name in names.changed if not isinstance(namespace.get(name), types.ModuleType)}
    read = [name for name in names.read if name in namespace and name not in OF_MODULES]
    if header is None:
        code, gives_none = _compile_module(tree, filename, flags), False
        changed = {name for name in changed if isinstance(namespace.get(name), CODE)}
    else:
        gives_none = _gives_none(tree.body)
        rebound = (names.assigned.keys() & (names.at_once | declared) & namespace.keys()) - {*targets}
        changed |= rebound
        read = [name for name in read if name in names.at_once or name not in names.assigned]
        code = _compile_function(tree, targets, sorted(rebound - declared), filename, flags)
    read += [name for name in changed if name in namespace and name not in read]
    return Body(
        code, tree, text, tuple(read), tuple(names.assigned), tuple(sorted(changed & namespace.keys())), gives_none
    )


def _bound_anywhere(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.alias(name=name, asname=asname):
                found.add(asname or name.partition(".")[0])
    return found


def _refuse_misplaced(tree: ast.Module, header: Header | None) -> None:
    for node in in_scope(tree.body):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and header is not None:
            raise Refused(
                f"line {node.lineno}: the body of a loop is a function, which cannot import *: "
                "import the names, or put this line into a cell before."
            )
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            raise Refused(f"line {node.lineno}: a cell cannot `yield`: collect the values in a list, and end with it.")
        if isinstance(node, ast.Return) and header is None:
            raise Refused(
                f"line {node.lineno}: without a `for` the cell runs once, as if it ran here, and cannot `return`: "
                "end it with the value. To run it for every x: %%burla for x in xs"
            )


def _take_futures(tree: ast.Module) -> int:
    """Take out `from __future__ import ...`, which no function may have; return the flags that it stands for."""
    found = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    tree.body = [node for node in tree.body if node not in found] or [ast.copy_location(ast.Pass(), found[0])]
    flags = 0
    for alias in (alias for node in found for alias in node.names):
        flags |= FUTURES.get(alias.name, 0)
    return flags


def _compile_function(
    tree: ast.Module, targets: tuple[str, ...], rebound: list[str], filename: str, flags: int
) -> types.CodeType:
    """Return the code of a function that returns the last expression. `rebound`: notebook names that it assigns."""
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Return(last.value), last)
    arguments = ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in targets], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    kind = ast.AsyncFunctionDef if _awaits(tree.body) else ast.FunctionDef
    as_globals = [ast.Global(rebound)] if rebound else []
    function = kind(name="cell", args=arguments, body=[*as_globals, *tree.body], decorator_list=[])
    function.type_params = []  # pyright: ignore[reportAttributeAccessIssue] - Python 3.12 asks for it
    function.lineno, function.col_offset = 1, 0  # as a module's: IPython counts lines from here
    module = ast.Module([function], [])
    compiled = compile(ast.fix_missing_locations(module), filename, "exec", flags, dont_inherit=True)
    return next(const for const in _as_module(compiled, "cell").co_consts if isinstance(const, types.CodeType))


def _as_module(code: types.CodeType, name: str) -> types.CodeType:
    """Return code whose function of this name is shown as what it is to the user: lines of the cell itself."""
    consts = list(code.co_consts)
    for number, const in enumerate(consts):
        if isinstance(const, types.CodeType):
            if const.co_name == name:
                consts[number] = const.replace(co_name="<module>", co_qualname="<module>")
                break
            if const.co_name == "<module>":
                consts[number] = _as_module(const, name)
    return code.replace(co_consts=tuple(consts))


def _compile_module(tree: ast.Module, filename: str, flags: int) -> types.CodeType:
    """Return the code of a module that puts the value of the last expression into VALUE."""
    last = tree.body[-1]
    shown = tree.body
    if isinstance(last, ast.Expr):
        target = ast.Name(VALUE, ast.Store())
        shown = [*tree.body[:-1], ast.fix_missing_locations(ast.copy_location(ast.Assign([target], last.value), last))]
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    return compile(ast.Module(shown, []), filename, "exec", flags, dont_inherit=True)


def _awaits(body: list[ast.stmt]) -> bool:
    return any(
        isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith))
        or (isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp)) and node.generators[0].is_async)
        for node in in_scope(body)
    )


def _gives_none(body: list[ast.stmt]) -> bool:
    for node in in_scope(body):
        if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
            return False
    last = body[-1]
    return not (isinstance(last, ast.Expr) and not _is_none(last.value))


def _is_none(value: ast.expr) -> bool:
    match value:
        case ast.Constant(value=None) | ast.Call(func=ast.Name(id="print" | "display")):
            return True
    return False
