"""func_cpu, func_ram, func_gpu, image, grow and max_parallelism: what bounds how many calls run at once, and where.

The cluster of these tests has four slots, on however few CPUs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.system import MEMORY_LIMIT

import burla
from burla import NoCompatibleNodes, NoNodes, config, remote_parallel_map
from burla.client import current
from burla.protocol import GetNeed, GetStatus
from tests.conftest import Ledger, Scripts, home, wait_until

CPUS = 4
THREAD_COUNTS = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "TBB_NUM_THREADS",
]
AT_ONCE_S = 10  # generous for what takes milliseconds, and far from START_TIMEOUT_S


@pytest.fixture(scope="module", autouse=True)
def four_slots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, home(patch):
        patch.setenv("BURLA_LOCAL_CPUS", str(CPUS))
        yield


def most_at_once(ledger: Ledger, expected: int, **options: Any) -> int:
    """Run calls that wait for each other until so many have started, and a little for more; return how many ran."""
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import time
        from pathlib import Path

        write("+")
        until = time.monotonic() + 10
        while Path(entries).read_text().count("+") < expected and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        write("-")
        return x

    count = 2 * CPUS + 1
    assert remote_parallel_map(call, range(count), **options) == list(range(count))
    assert sorted(ledger.entries()) == ["+"] * count + ["-"] * count
    return max(itertools.accumulate(1 if entry == "+" else -1 for entry in ledger.entries()))


# func_cpu -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("func_cpu", "expected"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_func_cpu_bounds_how_many_calls_run_at_once(func_cpu: int, expected: int, ledger: Ledger):
    assert most_at_once(ledger, expected, func_cpu=func_cpu) == expected


@pytest.mark.parametrize("func_cpu", [1, 2, 3])
def test_a_call_sees_its_cpus_whatever_the_environment_of_the_caller_says(
    func_cpu: int, monkeypatch: pytest.MonkeyPatch
):
    for name in THREAD_COUNTS:
        monkeypatch.setenv(name, "9")

    def look(names: list[str]) -> tuple[list[str | None], int]:
        import os

        return [os.environ.get(name) for name in names], len(os.sched_getaffinity(0))

    ((threads, affinity),) = remote_parallel_map(look, [THREAD_COUNTS], func_cpu=func_cpu)
    assert threads == [str(func_cpu)] * len(THREAD_COUNTS)
    assert affinity == min(func_cpu, len(os.sched_getaffinity(0)))


def test_the_environment_of_the_caller_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    remote_parallel_map(abs, [-1], func_cpu=2)
    assert os.environ["OMP_NUM_THREADS"] == "9"


# func_ram -------------------------------------------------------------------------------------------------------------


def test_func_ram_reserves(ledger: Ledger):
    total_gb = MEMORY_LIMIT // 10**9
    func_ram = total_gb // 2 + 1
    assert most_at_once(ledger, 1, func_ram=func_ram) == 1


def test_func_ram_that_fits_often_leaves_the_bound_to_the_cpus(ledger: Ledger):
    func_ram = MEMORY_LIMIT // 10**9 // CPUS
    if not func_ram:
        pytest.skip("the machine has less than 4 GB")
    assert most_at_once(ledger, CPUS, func_ram=func_ram) == CPUS


# max_parallelism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_parallelism", "expected"), [(1, 1), (3, 3), (100, 4)])
def test_max_parallelism_is_reached_and_never_passed(max_parallelism: int, expected: int, ledger: Ledger):
    assert most_at_once(ledger, expected, max_parallelism=max_parallelism) == expected


def test_max_parallelism_and_func_cpu_both_hold(ledger: Ledger):
    assert most_at_once(ledger, 1, max_parallelism=1, func_cpu=2) == 1


def test_max_parallelism_holds_while_calls_crash_and_run_again(ledger: Ledger):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import os
        import time
        from pathlib import Path

        write(f"+{x}")
        time.sleep(0.05)
        first = Path(entries).read_text().splitlines().count(f"+{x}") == 1
        write("-")
        if first and x % 2:
            os._exit(1)
        return x

    assert remote_parallel_map(call, range(12), max_parallelism=2) == list(range(12))
    running = itertools.accumulate(-1 if entry == "-" else 1 for entry in ledger.entries())
    assert max(running) == 2


# what no node has -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"func_cpu": CPUS + 1}, "func_cpu=5"),
        ({"func_ram": 100_000}, "func_ram=100000 GB"),
        ({"func_gpu": "A100"}, "func_gpu='A100_40G'"),
        ({"func_gpu": "H100"}, "func_gpu='H100_80G'"),
        ({"image": "python:3.12"}, "image='python:3.12'"),
        ({"func_cpu": 7, "func_gpu": "A100_80G"}, "func_cpu=7, func_gpu='A100_80G'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_node_has_is_an_error_at_once(options: dict[str, Any], asked: str, ledger: Ledger):
    write = ledger.writer()
    began = time.monotonic()
    with pytest.raises(NoCompatibleNodes) as caught:
        remote_parallel_map(lambda x: write(x), [1], **options)
    assert time.monotonic() - began < AT_ONCE_S
    error = caught.value
    text = str(error)
    assert asked in text and asked in error.asked
    assert f"1 node: {CPUS} CPUs, " in text and "GB RAM, no GPU, no image" in text and error.available in text
    assert "grow" not in text  # it would not help here
    assert not ledger.entries()


def test_an_error_about_the_nodes_comes_at_the_call_of_a_generator_too():
    with pytest.raises(NoCompatibleNodes, match="func_cpu=5"):
        remote_parallel_map(abs, [1], func_cpu=CPUS + 1, generator=True)


def test_growing_where_nothing_grows_is_told_once_and_the_job_runs(scripts: Scripts):
    done = scripts.run(
        """\
        from burla import remote_parallel_map

        print(remote_parallel_map(abs, range(-200, 0), grow=True) == list(range(200, 0, -1)))
        """
    )
    assert (done.returncode, done.stdout) == (0, "True\n")
    (notice,) = done.stderr.splitlines()
    assert "cannot grow" in notice and "runs on what is there" in notice


def test_what_other_jobs_hold_is_not_there_for_a_job_that_may_grow(ledger: Ledger):
    """And what has ended needs nothing."""
    write = ledger.writer()

    def hold(x: int) -> None:
        import time

        write("+")
        time.sleep(600)

    other = burla.submit(hold, [1], func_cpu=3, func_ram=1, detach=False)
    wait_until(lambda: ledger.entries() == ["+"], 10, "the call")
    job = burla.submit(hold, range(9), func_ram=2, max_parallelism=5, detach=False)
    wait_until(lambda: ledger.entries() == ["+", "+"], 10, "the next")
    ask = current.connection(print).ask
    need = ask(GetNeed(job.id))
    assert (need.func_ram_bytes, need.max_parallelism, need.unfinished, need.cpus) == (2 * 10**9, 5, 9, CPUS)
    [node], [whole] = need.nodes, ask(GetStatus()).nodes
    assert (whole.cpus - node.cpus, whole.ram_bytes - node.ram_bytes) == (3, 10**9)
    other.cancel()
    job.cancel()
    assert ask(GetNeed(job.id)).unfinished == 0
    with pytest.raises(burla.UnknownJob):
        ask(GetNeed("no-such-job"))


def test_growing_does_not_help_a_call_that_fits_nowhere():
    with pytest.raises(NoCompatibleNodes, match="func_cpu=5"):
        remote_parallel_map(abs, [1], func_cpu=CPUS + 1, grow=True)


# no node at all -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def empty_scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a plain Dask scheduler without workers, that this process uses."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    with running([*command, "--no-dashboard", "--scheduler-file", str(file)], tmp_path):
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), 30, "the scheduler")
        address = json.loads(file.read_text())["address"]
        burla.use(address)
        try:
            yield address
        finally:
            burla.use(None)


def test_without_any_node_a_call_gives_up_after_the_start_timeout(
    empty_scheduler: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(config, "START_TIMEOUT_S", 1.5)
    began = time.monotonic()
    with pytest.raises(NoNodes) as caught:
        remote_parallel_map(abs, [1], func_cpu=64)
    assert time.monotonic() - began >= 1.5
    assert 1.5 <= caught.value.waited_s < 15
    assert "no node" in str(caught.value) and "none came in" in str(caught.value)


def test_a_node_that_comes_and_does_not_fit_is_told_before_the_start_timeout(empty_scheduler: str, tmp_path: Path):
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", empty_scheduler, "--nthreads", "1", "--no-nanny"]
    with running([*worker, "--no-dashboard"], tmp_path), pytest.raises(NoCompatibleNodes) as caught:
        remote_parallel_map(abs, [1], func_cpu=2)
    assert caught.value.asked == "func_cpu=2" and "1 node: 1 CPU, " in str(caught.value)
