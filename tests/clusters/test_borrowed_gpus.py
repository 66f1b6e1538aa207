"""Dask workers of one machine that all see its GPUs, as a cluster of one worker a GPU does: simulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

import burla
from burla import remote_parallel_map
from tests.conftest import Ledger, wait_until
from tests.nvml import Simulated, simulate

UUIDS = ["GPU-borrowed-0", "GPU-borrowed-1"]


@pytest.fixture
def two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """Two workers of one CPU each, both of which find the same two GPUs."""
    environ = simulate(tmp_path, [Simulated(uuid=uuid) for uuid in UUIDS])
    if environ is None:
        pytest.skip("there is no C compiler")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, burla.use(cluster):
        yield cluster


def test_workers_that_see_the_same_gpus_use_all_of_them_and_never_one_together(
    two_workers: LocalCluster, ledger: Ledger
):
    write, path = ledger.writer(), str(ledger.path)

    def call(x: int) -> str:
        import os
        import time
        from pathlib import Path

        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        write(f"+{gpu}")
        until = time.monotonic() + (20 if x < 2 else 0)
        while Path(path).read_text().count("+") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        write(f"-{gpu}")
        return gpu

    def parent(x: int) -> int:
        import os

        return os.getppid()

    wait_until(lambda: len(set(remote_parallel_map(parent, range(20)))) == 2, 30, "calls on both workers")
    assert set(remote_parallel_map(call, range(20), func_gpu="T4")) == set(UUIDS)
    having: set[str] = set()
    for entry in ledger.entries():
        assert (entry[1:] in having) == (entry[0] == "-"), ledger.entries()
        having ^= {entry[1:]}
