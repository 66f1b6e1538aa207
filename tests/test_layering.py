"""Who may import whom. A pattern without a dot and star names one module; `own` adds those inside it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parent.parent


def own(*names: str) -> set[str]:
    return {pattern for name in names for pattern in (name, f"{name}.*")}


# importer → what it may import of burla, and of other distributions at the top of a module or inside a function
BASE = {
    "burla.blobs",
    "burla.bucket",
    "burla.ranges",
    "burla.images",
    "burla.outputs",
    "burla.errors",
    "burla.protocol",
    "burla.serialize",
    "burla.serialize_*",
    "burla.config",
    "burla.channel",
}
# what a node makes of a description; the description itself is the client's
MADE = {f"burla.environment.{name}" for name in ("disk", "model", "installer", "prepare")}
DASK = {"dask", "distributed", "tornado", "psutil"}
ANY = {"*"}
LAYERS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "burla.errors": (BASE, set(), set()),
    "burla.protocol": (BASE, set(), set()),
    "burla.serialize": (BASE, {"cloudpickle", "tblib"}, {"cloudpickle", "tblib"}),
    "burla.serialize_*": (BASE, {"cloudpickle", "tblib"}, {"cloudpickle", "tblib"}),
    "burla.config": (BASE, set(), set()),
    "burla.images": (set(), set(), set()),
    "burla.channel": (BASE, set(), set()),
    "burla.blobs": (BASE, set(), set()),
    "burla.bucket": (BASE, set(), {"fsspec"}),
    "burla.ranges": (BASE, set(), set()),
    "burla.outputs": (BASE, set(), set()),
    "burla.configured": (BASE, set(), set()),
    "burla.options": (BASE | {"burla.configured"}, set(), set()),
    "burla.environment": (BASE | own("burla.environment"), {"packaging"}, {"packaging"}),
    "burla.environment.disk": (BASE, set(), set()),
    "burla.environment.model": (BASE, set(), set()),
    "burla.environment.installer": (BASE, set(), set()),
    "burla.environment.prepare": (BASE | MADE | {"burla.environment.installed"}, set(), set()),
    "burla.resume": (BASE, set(), set()),
    "burla.job_parts": (BASE | own("burla.display"), set(), set()),
    "burla.display": (BASE | own("burla.display"), {"rich"}, {"rich"}),
    "burla.node": (BASE | own("burla.node") | MADE, DASK, DASK | {"pynvml"}),
    "burla.node.setting": (BASE | own("burla.node") | MADE | {"burla"}, {"cloudpickle"}, set()),  # these travel
    "burla.node.child": (
        {
            "burla.errors",
            "burla.protocol",
            "burla.serialize",
            "burla.serialize_*",
            "burla.node.elsewhere",
            "burla.node.shared",
            "burla.node.stdio",
        },
        set(),
        set(),
    ),
    "burla.node.elsewhere": ({"burla.protocol"}, set(), set()),
    "burla.node.shared": (set(), set(), set()),
    "burla.node.stdio": (set(), set(), set()),
    "burla.head": (BASE | own("burla.head"), DASK, DASK),
    "burla.head.vault": (BASE, set(), {"cryptography"}),
    "burla.head.plugin": (BASE | own("burla.head") | {"burla.node.plugin"}, DASK, DASK),  # it installs the node side
    "burla.head.guest": (BASE | own("burla.head") | {"burla.node.plugin"}, DASK, DASK),
    "burla.clusters": (
        BASE | own("burla.clusters") | {"burla.head.plugin", "burla.head.main", "burla.node.main", "burla.node.node"},
        DASK,
        ANY,
    ),
    "burla.clusters.machine": (
        BASE | own("burla.clusters", "burla.head") | {"burla.node.main", "burla.node.node"},
        DASK,
        DASK,
    ),
    "burla.clusters.package": ({"burla"}, set(), set()),  # its version
    "burla.clusters.carrier": (set(), {"distributed"}, set()),  # it goes to where there is nothing of ours
    "burla.clusters.bootstrap": (set(), {"distributed"}, {"distributed"}),  # so does it
    # imported inside functions only: its packages are optional
    "burla.clusters.aws": (BASE | own("burla.clusters"), {"botocore", "dask_cloudprovider"}, ANY),
    "burla.clusters.aws_account": (BASE | own("burla.clusters"), {"aiobotocore", "dask_cloudprovider"}, ANY),
    "burla.clusters.azure": (BASE | own("burla.clusters"), set(), ANY),
    "burla.clusters.azure_account": (BASE | own("burla.clusters"), set(), ANY),
    "burla.clusters.azure_client": (BASE | own("burla.clusters"), {"azure"}, ANY),
    "burla.clusters.azure_vm": (BASE | own("burla.clusters"), {"dask_cloudprovider"}, ANY),
    "burla.clusters.gcp": (BASE | own("burla.clusters"), set(), ANY),
    "burla.clusters.gcp_account": (BASE | own("burla.clusters"), set(), ANY),
    "burla.clusters.gcp_client": (
        BASE | own("burla.clusters"),
        {"google", "google_auth_httplib2", "googleapiclient", "httplib2"},
        ANY,
    ),
    "burla.clusters.gcp_vm": (BASE | own("burla.clusters"), {"dask_cloudprovider"}, ANY),
    "burla.clusters.aws_client": (BASE | own("burla.clusters"), {"aiobotocore", "botocore"}, ANY),
    "burla.client": (BASE | own("burla.client", "burla.clusters"), DASK, DASK),
    "burla.client.copies": (BASE | own("burla.client", "burla.clusters") | {"burla.head.copied"}, set(), set()),
    "burla.client.outcome": (BASE | own("burla.client") | {"burla.environment.hints"}, set(), set()),
    "burla.growth": (BASE | own("burla.client", "burla.clusters") | {"burla.options"}, set(), set()),
    "burla.equip": (BASE | own("burla.client", "burla.environment"), set(), set()),
    "burla.job": (
        BASE
        | own("burla.client", "burla.display")
        | {
            "burla.configured",
            "burla.equip",
            "burla.follower",
            "burla.growth",
            "burla.job_parts",
            "burla.job_reader",
            "burla.views",
        },
        set(),
        set(),
    ),
    "burla.job_reader": (BASE | own("burla.client") | {"burla.job_parts"}, set(), set()),
    "burla.job_list": (BASE | own("burla.client", "burla.display") | {"burla.job"}, set(), set()),
    "burla.begin": (
        BASE | own("burla.client", "burla.display") | {"burla.equip", "burla.growth", "burla.options", "burla.resume"},
        set(),
        set(),
    ),
    "burla.lookup": (BASE | own("burla.client") | {"burla.begin", "burla.job", "burla.job_list"}, set(), set()),
    "burla.api": (own("burla"), ANY, ANY),
    "burla.follower": (BASE | own("burla.client", "burla.clusters", "burla.display"), set(), set()),
    "burla.follow": (BASE | own("burla.client", "burla.display") | {"burla.follower", "burla.job"}, set(), set()),
    "burla.views": (BASE | own("burla.display") | {"burla_jupyter.view"}, set(), {"IPython"}),
    "burla.known": (BASE | own("burla.client", "burla.clusters", "burla.display"), set(), set()),
    "burla.cluster_state": (BASE | own("burla.client", "burla.clusters") | {"burla.cloud_state"}, set(), set()),
    "burla.cloud_api": (BASE | own("burla.clusters") | {"burla.options"}, set(), set()),
    "burla.cloud_state": (BASE | own("burla.clusters", "burla.display"), set(), set()),
    "burla.cloud_garbage": (BASE | own("burla.clusters", "burla.display"), set(), set()),
    "burla.cli": (own("burla"), ANY, ANY),
    "burla.cli_cluster": (own("burla"), ANY, ANY),
    "burla.cli_clusters": (own("burla"), ANY, ANY),
    "burla.cli_jobs": (own("burla"), ANY, ANY),
    "burla": (own("burla"), ANY, ANY),
    "burla_jupyter": (own("burla_jupyter") | {"burla", "burla.display.progress"}, ANY, ANY),
}


def layer_of(module: str) -> str:
    """Return the entry of LAYERS for `module`: its own, else the one of the package it is in."""
    if module in LAYERS:
        return module
    if module.startswith("burla.serialize_"):
        return "burla.serialize_*"
    package = module.rpartition(".")[0]
    assert package not in ("", "burla"), f"{module} has no layer: give it one in {Path(__file__).name}"
    return layer_of(package)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(tree: ast.AST, package: str, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Yield every module that is imported, whether a function does it, and the line."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from ((name if is_module(name) or name in LAYERS else base, inside, node.lineno) for name in names)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(node, package, inside or function)


def violations(path: Path) -> Iterator[str]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    module = package if parts[-1] == "__init__" else ".".join(parts)
    ours, at_top, in_functions = LAYERS[layer_of(module)]
    for name, inside, line in imports(ast.parse(path.read_bytes()), package):
        first = name.partition(".")[0]
        if first in ("burla", "burla_jupyter"):
            allowed = any(fnmatchcase(name, pattern) for pattern in ours)
        else:
            others = in_functions if inside else at_top
            allowed = first in sys.stdlib_module_names or bool({first, "*"} & others)
        if not allowed:
            yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_modules_import_only_what_their_layer_may():
    paths = [path for package in ("burla", "burla_jupyter") for path in sorted((ROOT / package).rglob("*.py"))]
    assert paths
    assert [line for path in paths for line in violations(path)] == []
