"""What programs rely on: the public names, the signature of the call, its errors, and that importing costs nothing."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest

import burla
from burla import errors

ERRORS = {
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
    "FunctionNotPicklable",
    "FunctionTooBig",
    "InputNotPicklable",
    "InputTooBig",
    "InvalidType",
    "InvalidValue",
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
}
FUNCTIONS = {
    "cluster_status",
    "clusters",
    "collect_garbage",
    "create_cluster",
    "delete_cluster",
    "configure",
    "function_parts",
    "growth_plan",
    "scale_cluster",
    "stop_cluster",
    "attach",
    "current_job",
    "jobs",
    "remote_parallel_map",
    "submit",
    "use",
}
HEAVY = {
    "IPython",
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "cryptography",
    "dask",
    "distributed",
    "ipywidgets",
    "logging",
    "multiprocessing",
    "numpy",
    "pandas",
    "psutil",
    "rich",
    "socket",
    "ssl",
    "subprocess",
    "tornado",
}


def test_the_public_names():
    assert set(burla.__all__) == ERRORS | FUNCTIONS | {"__version__", "ErrorGroup", "Job"}
    assert dir(burla) == sorted(burla.__all__)
    for name in burla.__all__:
        assert getattr(burla, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        burla.no_such_name  # noqa: B018


def test_the_signature_of_the_call():
    parameters = inspect.signature(burla.remote_parallel_map).parameters.values()
    assert [(one.name, one.default) for one in parameters] == [
        ("function_", inspect.Parameter.empty),
        ("inputs", inspect.Parameter.empty),
        ("func_cpu", 1),
        ("func_ram", "dynamic"),
        ("func_gpu", None),
        ("image", None),
        ("grow", False),
        ("max_parallelism", None),
        ("detach", False),
        ("generator", False),
        ("spinner", True),
    ]
    assert {one.kind for one in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_submit_takes_the_options_of_the_call_by_name():
    parameters = inspect.signature(burla.submit).parameters
    assert list(parameters)[:2] == ["function_", "inputs"]
    named = {name: one.default for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == {
        "func_cpu": 1,
        "func_ram": "dynamic",
        "func_gpu": None,
        "image": None,
        "grow": False,
        "max_parallelism": None,
        "detach": True,
        "on_error": "raise",
        "packages": (),
        "env_vars": {},
        "max_cost_usd": None,
        "max_minutes": None,
        "resume": None,
    }


def test_what_a_job_offers():
    offered = {name for name in vars(burla.Job) if not name.startswith("_")} - {"of", "told"}
    assert offered == {
        "id", "function_name", "status", "progress", "results", "result", "iter_results", "errors", "logs", "input",
        "wait", "follow", "cancel", "delete", "detach", "grow", "retry_failed",
    }  # fmt: skip


def test_every_error_can_be_imported_from_burla_and_derives_from_one():
    defined = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }
    assert set(defined) == ERRORS
    for name, value in defined.items():
        assert getattr(burla, name) is value and issubclass(value, burla.BurlaError)


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_survive_pickling_with_their_facts(name: str):
    error = getattr(burla, name)("what happened", index=3, path="a.b")
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, copy.index, copy.path) == ("what happened", ("what happened",), 3, "a.b")
    assert copy.__notes__ == ["a note"]


@pytest.mark.parametrize("statement", ["import burla", "import burla.errors"])
def test_importing_burla_imports_nothing_heavy(statement: str):
    program = f"""
import sys
before = set(sys.modules)
{statement}
print("\\n".join(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "burla" in imported
    assert imported & HEAVY == set()
    assert {name for name in imported if name.startswith("burla.")} <= {"burla.errors"}
