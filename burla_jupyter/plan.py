"""A `%%burla` cell of this notebook, ready to run: its options, its code, and what travels with it."""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

import burla
from burla_jupyter import options as _options
from burla_jupyter.cell import FUTURES, MAGIC, Body, Header, parse_body, parse_header, split
from burla_jupyter.names import names_of
from burla_jupyter.options import Options
from burla_jupyter.remote import MapCell, RunCell, show_lines
from burla_jupyter.results import described

FUTURE_FLAGS = functools.reduce(operator.or_, FUTURES.values())
PROVIDED = ("get_ipython", "exit", "quit", "open")  # IPython's own, of which a node has others


@dataclass(frozen=True)
class Plan:
    """A cell, before anything runs.

    `sent`: names that travel with it; `shared`: those that a function of the notebook changes, and its name.
    """

    shell: InteractiveShell
    options: Options
    header: Header | None
    body: Body
    filename: str
    sent: tuple[str, ...]
    shared: dict[str, str]
    cell: MapCell | RunCell

    def inputs(self) -> Iterator[tuple[Any, ...]]:
        """Return the arguments of each call, evaluated as they are asked for."""
        if self.header is None:
            return iter([()])
        return eval(self.header.code, self.shell.user_ns)()

    def known_count(self) -> int | None:
        """Return how many calls there will be, if that is known without evaluating anything: `for x in xs`."""
        if self.header is None:
            return 1
        loop = ast.parse(f"[0 for {self.header.text}]", mode="eval").body
        assert isinstance(loop, ast.ListComp)
        [first, *others] = loop.generators
        if others or first.ifs or not isinstance(first.iter, ast.Name):
            return None
        elements: Any = self.shell.user_ns.get(first.iter.id)
        return len(elements) if isinstance(elements, (list, tuple, range, dict, set)) else None

    def sizes(self) -> dict[str, int]:
        """Return the size of what travels, by name, in bytes. Raises FunctionNotPicklable, which names the culprit."""
        return burla.function_parts(self.cell.names)

    def described_input(self, values: tuple[Any, ...]) -> str:
        """Return an input as `a = 1, k = 'x'`."""
        targets = self.header.targets if self.header is not None else ()
        return ", ".join(f"{name} = {described(value)}" for name, value in zip(targets, values, strict=True))


def make_plan(shell: InteractiveShell, parser: Any, line: str, cell: str) -> Plan:
    """Return what a cell asks for. Raises Refused, SyntaxError."""
    text = f"{MAGIC}{line}\n{cell}"
    number = len(shell.user_ns.get("In", "0")) - 1  # execution_count is that of the next cell in newer IPythons
    filename = shell.compile.cache(text, number)
    names = _visible(shell)
    column = split(line)
    given = line if column is None else line[: column - len("for")]
    if column is not None:
        _options.refuse_after_for(line[column:])
    options = _options.parse(parser, given, names, is_map=column is not None)
    header = None if column is None else parse_header(line, column, filename)
    flags = shell.compile.flags & FUTURE_FLAGS
    body = parse_body(cell, header, names, filename, shell.transform_cell, flags)
    text = f"# {MAGIC}{line}{body.text}"
    show_lines(filename, text)  # IPython shows lines of a traceback only if all of them are Python
    sent = tuple(dict.fromkeys([*body.read, *options.ship]))
    common = {
        "name": f"cell {number}",
        "code": body.code,
        "names": _holder(sent, shell.user_ns),
        "filename": filename,
        "text": text,
        "rich": getattr(shell, "kernel", None) is not None and options.spinner,
    }
    if header is None:
        made = RunCell(**common, wanted=None if options.detach else options.out, by_name=not options.detach)
    else:
        made = MapCell(**common, targets=header.targets, own_copy=body.changed)
    shared = {name: function for name, function in _changed_by(sent, names).items() if name not in body.changed}
    return Plan(shell, options, header, body, filename, sent, shared, made)


def _visible(shell: InteractiveShell) -> dict[str, Any]:
    """Return the names of the notebook, without those that IPython put there and that mean something else on a node."""
    hidden = shell.user_ns_hidden
    return {
        name: value
        for name, value in shell.user_ns.items()
        if not (name in PROVIDED and hidden.get(name) is value) and value is not display
    }


def _changed_by(used: Iterable[str], notebook: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the notebook that its functions change, those in `used` and what they use, and by which."""
    found: dict[str, str] = {}
    waiting, seen = list(used), set[str]()
    while waiting:
        name = waiting.pop()
        function = notebook.get(name)
        if name in seen or not isinstance(function, types.FunctionType) or function.__module__ != "__main__":
            continue
        seen.add(name)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):  # its lines are not known, or a lambda stands in the middle of one
            continue
        names = names_of(tree.body)
        waiting += names.read
        changed = (one for one in names.changed if one in notebook and not isinstance(notebook[one], types.ModuleType))
        found |= {one: name for one in changed if one not in found}
    return found


def _holder(names: tuple[str, ...], notebook: dict[str, Any]) -> types.FunctionType:
    """Return a function of the notebook that uses these names."""
    tree = ast.parse("def cell(): return ()")
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = [ast.Return(ast.Tuple([ast.Name(name, ast.Load()) for name in names], ast.Load()))]
    module = compile(ast.fix_missing_locations(tree), "<names>", "exec", dont_inherit=True)
    code = next(const for const in module.co_consts if isinstance(const, types.CodeType))
    holder = types.FunctionType(code, notebook)
    holder.__module__ = "__main__"  # so that it travels by value
    return holder
