"""Dask clusters started by hand, in an environment without burla: one for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import burla
from tests.dask_clusters import HandStarted, bare_python, hand_started


@pytest.fixture(scope="session")
def python_without_burla(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bare_python(tmp_path_factory.mktemp("python") / "bare")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, python_without_burla: str) -> Iterator[HandStarted]:
    with hand_started(tmp_path_factory.mktemp("cluster"), python_without_burla) as made:
        yield made


@pytest.fixture
def in_use(cluster: HandStarted) -> Iterator[HandStarted]:
    with burla.use(cluster.address):
        yield cluster
