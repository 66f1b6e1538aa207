"""IPython's additions to Python in a cell: `!command` stays, to run on the node; what needs the notebook is refused."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Container

from IPython.utils.text import DollarFormatter

from burla_jupyter.errors import Refused

ADVICE = {
    "pip": "Install packages where the nodes run; for the local cluster: in the notebook, in a cell of its own.",
    "conda": "Install packages where the nodes run; for the local cluster: in the notebook, in a cell of its own.",
    "cd": "Calls start in the notebook's working directory; os.chdir() changes it for one call.",
    "env": "Calls have the notebook's environment; os.environ[...] = ... changes it for one call.",
}
CONTINUED = re.compile(r"^\s*([\w\s,.\[\]'\"]+=\s*)?[!%]")


def parse(cell: str, transform: Callable[[str], str], filename: str) -> tuple[ast.Module, str]:
    """Return the tree of what stands below the magic's line, and its text as Python with an empty first line.

    Raises SyntaxError with its position.
    """
    skipped = len(cell) - len(cell.lstrip("\n"))  # IPython drops empty lines at the beginning
    source = transform(cell)
    if len(source.splitlines()) < len(cell.strip("\n").splitlines()):
        source = transform(_on_one_line(cell))
    source = "\n" * (1 + skipped) + source  # and no offset afterwards: so a SyntaxError has its line too
    return ast.parse(source, filename), source


def _on_one_line(cell: str) -> str:
    """Join the lines of a `!command` that ends in a backslash, with empty lines after it in their place."""
    lines: list[str] = []
    waiting = 0
    for line in cell.split("\n"):
        if waiting:
            lines[-1] = lines[-1][:-1] + " " + line
        else:
            lines.append(line)
        if CONTINUED.match(lines[-1]) and line.endswith("\\"):
            waiting += 1
        else:
            lines += [""] * waiting
            waiting = 0
    return "\n".join(lines)


class Shell(ast.NodeTransformer):
    """Rewrites what IPython made of escapes. `known`: the names that a `!command` may use as {name} or $name."""

    def __init__(self, known: Container[str]):
        self._known = known

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """Keep the exit code of a command where IPython keeps it."""
        self.generic_visit(node)
        if escape(node.value) != "system":
            return node
        target = ast.copy_location(ast.Name("_exit_code", ast.Store()), node)
        return ast.copy_location(ast.Assign([target], node.value), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Refuse magics, and let Python put values into commands."""
        self.generic_visit(node)
        name = escape(node)
        if name in ("run_line_magic", "run_cell_magic", "magic"):
            raise Refused(_refusal(node, name))
        if name in ("system", "getoutput") and node.args and isinstance(node.args[0], ast.Constant):
            command = node.args[0].value
            if isinstance(command, str):
                node.args[0] = self._expanded(command, node)
        return node

    def _expanded(self, command: str, at: ast.Call) -> ast.expr:
        """Return a command as an f-string, or as it is if that is not what it looks like, such as awk's {print $1}."""
        values: list[ast.expr] = []
        try:
            for text, name, spec, conversion in DollarFormatter().parse(command):
                if text:
                    values.append(ast.Constant(text))
                if name is None:
                    continue
                tree = ast.parse(name.strip(), mode="eval").body
                used = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
                bound = {
                    one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
                }
                if not all(one in self._known or hasattr(builtins, one) for one in used - bound):
                    return ast.Constant(command)
                form = ast.JoinedStr([ast.Constant(spec)]) if spec else None
                values.append(ast.FormattedValue(tree, ord(conversion) if conversion else -1, form))
        except (SyntaxError, ValueError):
            return ast.Constant(command)
        joined = ast.JoinedStr(values)
        for part in ast.walk(joined):
            ast.copy_location(part, at)
        return joined


def escape(node: ast.AST) -> str | None:
    """Return the method of a call `get_ipython().method(...)`, which is what IPython makes of an escape."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name("get_ipython")), attr=name)):
            return name
    return None


def _refusal(node: ast.Call, kind: str) -> str:
    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "magic"
    if name in ("pinfo", "pinfo2", "psearch"):
        return f"line {node.lineno}: help by `?` is shown in the notebook: ask in a cell of its own."
    shown = f"%%{name}" if kind == "run_cell_magic" else f"%{name}"
    advice = ADVICE.get(str(name), "Put it into a cell of its own.")
    return f"line {node.lineno}: {shown} is a magic of the notebook, and does not run on a node. {advice}"
