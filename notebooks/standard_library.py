"""Parse every .py file of the Python standard library, in parallel: `python notebooks/standard_library.py`."""

import ast
import sysconfig
import time
import warnings
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from burla import remote_parallel_map

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}


def examine(name):
    """Runs once a file, on the cluster. What it prints appears here, while the other calls go on."""
    source = (LIBRARY / name).read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # the library's own tests have files that are wrong on purpose
        return {"name": name, "error": type(error).__name__}

    functions, classes, imports = [], 0, set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions.append((node.end_lineno - node.lineno + 1, node.name))
            case ast.ClassDef():
                classes += 1
            case ast.Import():
                imports |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(level=0):
                imports.add(node.module.partition(".")[0])

    lines = len(source.splitlines())
    if lines > 3000:
        print(f"{name}: {lines:,} lines, {len(functions)} functions, {classes} classes")
    longest = max(functions, default=(0, ""))
    return {
        "name": name,
        "lines": lines,
        "functions": len(functions),
        "classes": classes,
        "longest": longest,
        "imports": imports,
    }


paths = (path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))
names = sorted(str(path) for path in paths if not NOT_OURS & set(path.parts))

began = time.perf_counter()
results = remote_parallel_map(examine, names)
seconds = time.perf_counter() - began

broken = [result for result in results if "error" in result]
parsed = [result for result in results if "error" not in result]
longest = max(parsed, key=lambda result: result["longest"])
imports = Counter(name for result in parsed for name in result["imports"])

table = Table("what", "how much", title=f"The standard library in {LIBRARY}")
for what in ("lines", "functions", "classes"):
    table.add_row(what, f"{sum(result[what] for result in parsed):,}")
table.add_row("longest function", "{1}, {0} lines, in {name}".format(*longest["longest"], name=longest["name"]))
table.add_row("most common imports", ", ".join(f"{name} {count}" for name, count in imports.most_common(10)))
table.add_row("files", f"{len(parsed):,} parsed in {seconds:.1f} s")
table.add_row("files that do not parse", ", ".join(Path(result["name"]).name for result in broken) or "none")
Console().print(table)
