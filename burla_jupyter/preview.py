"""`--dry-run`: what a cell would send, ask for and do, in words and as plain Python."""

from __future__ import annotations

import ast
import inspect
import textwrap

import burla
from burla_jupyter.plan import Plan

LISTED = 5


def text(plan: Plan) -> str:
    """Return what running a cell would mean; the elements of its loop are not evaluated."""
    sizes = plan.sizes()
    names = f"{size_text(sum(sizes.values()))}: {listed(sizes)}" if sizes else "none"
    asked = ", ".join(f"{name}={value!r}" for name, value in plan.options.resources.items()) or "1 CPU for each call"
    cluster = str(burla.cluster_status()).partition("\n")[0].rstrip(".")
    return "\n".join(
        [
            f"Names that travel   {names}",
            f"Resources           {asked}",
            f"Cluster             {cluster}",
            *([f"Growth              {_growth(plan)}"] if plan.options.resources.get("grow") else []),
            "",
            "As plain Python:",
            "",
            textwrap.indent(as_python(plan), "    "),
        ]
    )


def _growth(plan: Plan) -> str:
    """Return in words what the cluster would boot for the cell."""
    count = plan.known_count()
    if count is None:
        return "as much as its elements need, which are not counted for this; burla.growth_plan counts them"
    options = {name: value for name, value in plan.options.resources.items() if name != "grow"}
    try:
        return str(burla.growth_plan(plan.cell, range(count), **options)).replace("\n", "\n" + " " * 20)
    except burla.InvalidValue as error:
        return str(error)


def as_python(plan: Plan) -> str:
    """Return a program that does about the same without `%%burla`."""
    options = {**plan.options.resources, **({"detach": True} if plan.options.detach else {})}
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    tree = plan.body.tree
    if plan.header is None:
        targets, inputs, names = (), "[()]", plan.options.out or plan.body.assigned
        last = tree.body[-1]
        value = [last.value] if isinstance(last, ast.Expr) else []
        kept = tree.body[: -len(value) or None]
        back = ast.Tuple([*(ast.Name(name, ast.Load()) for name in names), *value], ast.Load())
        tree = ast.Module([*kept, ast.Return(back)], [])
        given = f"{', '.join([*names, *(['value'] * len(value))])}, = " if back.elts else ""
        result = "[0]"
    else:
        targets, result = plan.header.targets, ""
        inputs = f"[({', '.join(targets)}{',' * (len(targets) == 1)}) for {plan.header.text}]"
        given = f"{plan.options.out[0]} = " if plan.options.out else ""
    body = textwrap.indent(ast.unparse(ast.fix_missing_locations(tree)), "    ")
    start = "async def" if plan.cell.code.co_flags & inspect.CO_COROUTINE else "def"
    call = f"{given}burla.remote_parallel_map(cell, {inputs}{arguments}){result}"
    return f"{start} cell({', '.join(targets)}):\n{body}\n\n{call}"


def listed(sizes: dict[str, int]) -> str:
    """Return names with their sizes, the largest first."""
    largest = sorted(sizes, key=lambda name: -sizes[name])
    shown = ", ".join(f"{name} {size_text(sizes[name])}" for name in largest[:LISTED])
    return shown + (f" and {len(largest) - LISTED} more" if len(largest) > LISTED else "")


def size_text(size_bytes: int) -> str:
    """Return `12 bytes`, `3.4 kB` or `1.2 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:,.1f} MB"
