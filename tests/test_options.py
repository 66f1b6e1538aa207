"""Values that are not allowed: told before anything starts, with the parameter, the value and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import burla
from burla import BurlaError, InvalidType, InvalidValue, options, remote_parallel_map
from burla.client import current
from tests.conftest import cluster_processes, end_cluster

CPUS_ALLOWED = "an integer of at least 1: CPUs a call"
RAM_ALLOWED = '"dynamic", or an integer of at least 1: GB a call'
GPUS_ALLOWED = "None or one of A100, A100_40G, A100_80G, H100, H100_80G, H200, B200, L4, T4, V100, any."
IMAGE_ALLOWED = "the name of a container image, or None"
PARALLELISM_ALLOWED = "None, or an integer of at least 1: calls at once"
BAD = [
    ("func_cpu", 0, ValueError, CPUS_ALLOWED),
    ("func_cpu", -1, ValueError, CPUS_ALLOWED),
    ("func_cpu", True, TypeError, CPUS_ALLOWED),
    ("func_cpu", "x", TypeError, CPUS_ALLOWED),
    ("func_cpu", 1.5, TypeError, CPUS_ALLOWED),
    ("func_cpu", None, TypeError, CPUS_ALLOWED),
    ("func_ram", 0, ValueError, RAM_ALLOWED),
    ("func_ram", -4, ValueError, RAM_ALLOWED),
    ("func_ram", "4GB", ValueError, RAM_ALLOWED),
    ("func_ram", True, TypeError, RAM_ALLOWED),
    ("func_ram", 0.5, TypeError, RAM_ALLOWED),
    ("func_ram", None, TypeError, RAM_ALLOWED),
    ("func_gpu", "RTX", ValueError, GPUS_ALLOWED),
    ("func_gpu", "", ValueError, GPUS_ALLOWED),
    ("func_gpu", 1, TypeError, GPUS_ALLOWED),
    ("image", "", ValueError, IMAGE_ALLOWED),
    ("image", " ", ValueError, IMAGE_ALLOWED),
    ("image", 5, TypeError, IMAGE_ALLOWED),
    ("max_parallelism", 0, ValueError, PARALLELISM_ALLOWED),
    ("max_parallelism", -2, ValueError, PARALLELISM_ALLOWED),
    ("max_parallelism", True, TypeError, PARALLELISM_ALLOWED),
    ("max_parallelism", "all", TypeError, PARALLELISM_ALLOWED),
    ("max_parallelism", 2.0, TypeError, PARALLELISM_ALLOWED),
    ("grow", "yes", TypeError, "True or False"),
    ("detach", 1, TypeError, "True or False"),
    ("generator", None, TypeError, "True or False"),
    ("spinner", 0, TypeError, "True or False"),
    ("inputs", 5, TypeError, "iterable"),
    ("inputs", None, TypeError, "iterable"),
    ("function_", "print", TypeError, "callable"),
    ("function_", None, TypeError, "callable"),
]


@pytest.fixture
def nothing_may_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A BURLA_HOME where whatever starts leaves a trace."""
    home = tmp_path / "home"
    monkeypatch.setenv("BURLA_HOME", str(home))
    current.forget()
    yield
    started = home.exists() or cluster_processes(os.environ)
    if started:
        end_cluster(os.environ)
    current.forget()
    assert not started


@pytest.mark.usefixtures("nothing_may_start")
@pytest.mark.parametrize(("parameter", "value", "kind", "allowed"), BAD, ids=[f"{row[0]}={row[1]!r}" for row in BAD])
def test_a_bad_value_is_told_with_its_parameter_and_what_is_allowed(
    parameter: str, value: Any, kind: type[Exception], allowed: str
):
    taken = []
    arguments = {"function_": abs, "inputs": (taken.append(x) or x for x in range(3)), parameter: value}
    with pytest.raises(kind) as caught:
        remote_parallel_map(**arguments)
    assert isinstance(caught.value, InvalidValue if kind is ValueError else InvalidType)
    assert isinstance(caught.value, BurlaError)
    text = str(caught.value)
    assert text.startswith(f"{parameter}={value!r}: ") and allowed in text
    assert not taken


@pytest.mark.usefixtures("nothing_may_start")
def test_a_bad_value_is_told_even_without_inputs():
    with pytest.raises(InvalidValue, match="func_cpu=0"):
        remote_parallel_map(abs, [], func_cpu=0)


@pytest.mark.usefixtures("nothing_may_start")
def test_a_bad_value_is_told_at_the_call_of_a_generator():
    with pytest.raises(InvalidValue, match="func_cpu=0"):
        remote_parallel_map(abs, [1], func_cpu=0, generator=True)


@pytest.mark.usefixtures("nothing_may_start")
@pytest.mark.parametrize(
    ("parameter", "value", "kind", "allowed"),
    [
        ("on_error", "ignore", ValueError, '"raise" (the first failure stops the job) or "continue"'),
        ("on_error", None, TypeError, '"raise" (the first failure stops the job) or "continue"'),
        ("resume", 5, TypeError, "the id of a job, a Job, or None"),
        ("func_cpu", 0, ValueError, CPUS_ALLOWED),
        ("inputs", 5, TypeError, "iterable"),
    ],
)
def test_submit_tells_of_a_bad_value_before_anything_starts(
    parameter: str, value: Any, kind: type[Exception], allowed: str
):
    taken = []
    arguments = {"function_": abs, "inputs": (taken.append(x) or x for x in range(3)), parameter: value}
    with pytest.raises(kind) as caught:
        burla.submit(**arguments)
    assert isinstance(caught.value, InvalidValue if kind is ValueError else InvalidType)
    assert str(caught.value).startswith(f"{parameter}={value!r}: ") and allowed in str(caught.value)
    assert not taken


@pytest.mark.usefixtures("nothing_may_start")
def test_attach_and_jobs_tell_of_a_bad_value_before_anything_starts():
    with pytest.raises(InvalidType, match="job_id=5: it must be the id of a job"):
        burla.attach(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="status='finished': it must be one of receiving, waiting, running"):
        burla.jobs(status=["done", "finished"])
    with pytest.raises(InvalidValue, match="limit=0"):
        burla.jobs(limit=0)


def checked(**values: Any) -> options.Options:
    defaults = {"func_cpu": 1, "func_ram": "dynamic", "func_gpu": None, "image": None, "max_parallelism": None}
    flags = {"grow": False, "detach": False, "generator": False, "spinner": True}
    return options.check(abs, [1], **{**defaults, **flags, **values})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("A100", "A100_40G"),
        ("A100_40G", "A100_40G"),
        ("A100_80G", "A100_80G"),
        ("H100", "H100_80G"),
        ("H100_80G", "H100_80G"),
        ("H200", "H200"),
        ("B200", "B200"),
        ("L4", "L4"),
        ("T4", "T4"),
        ("V100", "V100"),
        ("any", "any"),
        (None, None),
    ],
)
def test_short_names_of_gpus_mean_a_kind(name: str | None, kind: str | None):
    assert checked(func_gpu=name).func_gpu == kind


def test_spellings_of_an_image_mean_the_same():
    assert checked(image=" docker.io/library/python:3.11").image == checked(image="python:3.11").image == "python:3.11"


def test_func_ram_is_in_gb_of_a_thousand_million_bytes():
    assert checked(func_ram=3).func_ram_bytes == 3_000_000_000
    assert checked(func_ram="dynamic").func_ram_bytes is None


def test_numbers_of_numpy_are_integers_too():
    wanted = checked(func_cpu=numpy.int64(2), func_ram=numpy.uint8(1), max_parallelism=numpy.int32(3))
    assert (wanted.func_cpu, wanted.func_ram_bytes, wanted.max_parallelism) == (2, 10**9, 3)
    assert type(wanted.func_cpu) is int and type(wanted.max_parallelism) is int
