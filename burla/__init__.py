"""Run a Python function on many machines as if it ran here: `remote_parallel_map(function, inputs)`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burla.api import attach, current_job, jobs, remote_parallel_map, submit, use
    from burla.cloud_api import create_cluster, delete_cluster, scale_cluster
    from burla.cloud_garbage import collect_garbage
    from burla.cluster_state import cluster_status, stop_cluster
    from burla.configured import configure
    from burla.display.failures import ErrorGroup
    from burla.errors import (
        ArgumentMismatch,
        BlobBroken,
        BurlaError,
        CallExited,
        CloudError,
        ClusterBusy,
        ClusterError,
        ClusterLost,
        ClusterStartFailed,
        EnvironmentFailed,
        EnvironmentNeeded,
        FunctionNotPicklable,
        FunctionTooBig,
        InputNotPicklable,
        InputTooBig,
        InvalidType,
        InvalidValue,
        JobCancelled,
        JobUnfinished,
        LimitReached,
        MissingExtra,
        NoCompatibleNodes,
        NoNodes,
        NoResult,
        OutOfMemory,
        PythonMismatch,
        RemoteError,
        ResultNotPicklable,
        StoreBusy,
        StoreDamaged,
        StoreFull,
        StoreUnknown,
        StoreUnreachable,
        UnknownCluster,
        UnknownJob,
        UnsafeFiles,
        WorkerCrashed,
    )
    from burla.growth import growth_plan
    from burla.job import Job
    from burla.known import clusters
    from burla.serialize_report import function_parts

__version__ = "0.1.0"
__all__ = [
    "ArgumentMismatch",
    "BlobBroken",
    "BurlaError",
    "CallExited",
    "CloudError",
    "ClusterBusy",
    "ClusterError",
    "ClusterLost",
    "ClusterStartFailed",
    "EnvironmentFailed",
    "EnvironmentNeeded",
    "ErrorGroup",
    "FunctionNotPicklable",
    "FunctionTooBig",
    "InputNotPicklable",
    "InputTooBig",
    "InvalidType",
    "InvalidValue",
    "Job",
    "JobCancelled",
    "JobUnfinished",
    "LimitReached",
    "MissingExtra",
    "NoCompatibleNodes",
    "NoNodes",
    "NoResult",
    "OutOfMemory",
    "PythonMismatch",
    "RemoteError",
    "ResultNotPicklable",
    "StoreBusy",
    "StoreDamaged",
    "StoreFull",
    "StoreUnknown",
    "StoreUnreachable",
    "UnknownCluster",
    "UnknownJob",
    "UnsafeFiles",
    "WorkerCrashed",
    "__version__",
    "attach",
    "cluster_status",
    "clusters",
    "collect_garbage",
    "configure",
    "create_cluster",
    "current_job",
    "delete_cluster",
    "function_parts",
    "growth_plan",
    "jobs",
    "remote_parallel_map",
    "scale_cluster",
    "stop_cluster",
    "submit",
    "use",
]
_MODULES = {
    "ErrorGroup": "burla.display.failures",
    "cluster_status": "burla.cluster_state",
    "stop_cluster": "burla.cluster_state",
    "function_parts": "burla.serialize_report",
    "collect_garbage": "burla.cloud_garbage",
    "create_cluster": "burla.cloud_api",
    "delete_cluster": "burla.cloud_api",
    "scale_cluster": "burla.cloud_api",
    "growth_plan": "burla.growth",
    "Job": "burla.job",
    "attach": "burla.api",
    "configure": "burla.configured",
    "current_job": "burla.api",
    "jobs": "burla.api",
    "remote_parallel_map": "burla.api",
    "submit": "burla.api",
    "use": "burla.api",
}  # of all others: burla.errors


def __getattr__(name: str) -> Any:
    # importing burla must cost next to nothing: what it takes is imported when it is used
    if name not in __all__:
        raise AttributeError(f"module 'burla' has no attribute {name!r}")
    if name == "clusters":
        return importlib.import_module("burla.clusters")  # the package itself is called
    value = getattr(importlib.import_module(_MODULES.get(name, "burla.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _refuse_namesake() -> None:
    """Another product has the name `burla` on the package index; both cannot be importable as `burla`."""
    import sys
    from pathlib import Path

    for entry in {str(Path(__file__).resolve().parents[1]), *sys.path}:
        found = next(Path(entry).glob("burla-[0-9]*.dist-info"), None) if entry else None
        if found is not None:
            raise ImportError(
                f"another product that is called 'burla' is installed here too ({found}), and overwrites parts of "
                "burla-dask. Uninstall both, then install burla-dask again: pip uninstall burla burla-dask"
            )


_refuse_namesake()
