"""A Dask scheduler and workers that somebody else started: `burla.use(address)` and the same call."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from distributed import Client

import burla
from burla import InvalidType, WorkerCrashed, remote_parallel_map
from burla.clusters import borrowed
from tests.conftest import Ledger, Scripts, cluster_processes, process_kind, wait_until
from tests.dask_clusters import HandStarted, children


def where() -> set[int]:
    """Return the pids above one call: of its zygote, its node, …"""

    def call(x: int) -> list[int]:
        import psutil

        return [process.pid for process in psutil.Process().parents()]

    return set(remote_parallel_map(call, [0])[0])


def test_an_address_or_a_client_is_used_and_none_goes_back(cluster: HandStarted):
    workers = {process.pid for process in cluster.processes}
    try:
        burla.use(cluster.address)
        assert where() & workers
        with Client(cluster.address, set_as_default=False) as client:
            burla.use(client)
            assert where() & workers
        burla.use(None)
        above = where()
        local = {process.pid for process in cluster_processes(os.environ) if process_kind(process) == "node"}
        assert above & local and not above & workers
    finally:
        burla.use(None)


@pytest.mark.parametrize("wrong", [5, b"tcp://127.0.0.1:1", object])
def test_what_is_no_cluster_is_refused_and_changes_nothing(in_use: HandStarted, wrong: object):
    with pytest.raises(InvalidType, match=r"address of a Dask scheduler, a distributed\.Client"):
        burla.use(wrong)
    assert where() & {process.pid for process in in_use.processes}


def test_an_address_where_nobody_answers_is_an_oserror(in_use: HandStarted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(borrowed, "ANSWER_S", 1.0)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        burla.use("tcp://127.0.0.1:1")
    assert where() & {process.pid for process in in_use.processes}


def test_results_and_prints_come_from_both_workers(in_use: HandStarted, capfd: pytest.CaptureFixture[str]):
    def call(x: int) -> tuple[int, int]:
        import os
        import sys
        import time

        time.sleep(0.02)
        print("out", x)
        print("err", x, file=sys.stderr)
        return x * 2, os.getppid()

    results = remote_parallel_map(call, range(40))
    assert [result for result, _ in results] == [x * 2 for x in range(40)]
    assert len({parent for _, parent in results}) == 2, "the children of both workers"
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == sorted(f"out {x}" for x in range(40))
    assert sorted(captured.err.splitlines()) == sorted(f"err {x}" for x in range(40))


def test_an_exception_is_raised_here(in_use: HandStarted):
    class Mine(Exception):
        pass

    def call(x: int) -> int:
        if x == 3:
            raise Mine("three")
        return x

    with pytest.raises(Mine, match="three") as raised:
        remote_parallel_map(call, range(10))
    assert raised.value.burla_input_index == 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_call_that_kills_its_process_is_named_and_the_workers_live(in_use: HandStarted):
    def call(x: int) -> int:
        import os
        import signal

        if x == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with pytest.raises(WorkerCrashed) as raised:
        remote_parallel_map(call, range(5))
    assert (raised.value.index, raised.value.signal) == (2, signal.SIGKILL)
    assert all(process.poll() is None for process in in_use.processes)
    assert remote_parallel_map(abs, [-1]) == [1]


def test_nested_calls_run_on_the_same_workers(in_use: HandStarted):
    def outer(x: int) -> list[list[int]]:
        import psutil

        from burla import remote_parallel_map

        def inner(y: int) -> list[int]:
            import psutil

            return [y, *(process.pid for process in psutil.Process().parents())]

        return [[x, *(process.pid for process in psutil.Process().parents())], *remote_parallel_map(inner, [x, x])]

    workers = {process.pid for process in in_use.processes}
    for x, calls in enumerate(remote_parallel_map(outer, range(3))):
        assert [call[0] for call in calls] == [x] * 3
        assert all(set(call) & workers for call in calls)


def test_a_job_that_lasts_shows_as_a_dask_task_on_each_worker(in_use: HandStarted, tmp_path: Path):
    """It makes a busy cluster look busy, to a dashboard and to adaptive scaling."""

    def call(path: str) -> bool:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.02)
        return True

    with Client(in_use.address, set_as_default=False) as client:

        def shown() -> list[str]:
            processing = client.processing()
            assert processing is not None
            return [key for keys in processing.values() for key in keys if "burla-lease" in str(key)]

        assert remote_parallel_map(abs, [-1]) == [1]
        assert shown() == []
        results = remote_parallel_map(call, [str(tmp_path / "go")] * 2, generator=True)
        wait_until(lambda: len(shown()) == 2, 15, "two tasks")
        processing = client.processing()
        assert processing is not None
        assert all(len(keys) == 1 for keys in processing.values()), "one a worker"
        (tmp_path / "go").touch()
        assert list(results) == [True, True]
        wait_until(lambda: not shown(), 15, "the end of the tasks")


def test_a_second_process_uses_it_at_the_same_time(in_use: HandStarted, scripts: Scripts):
    script = scripts.start(
        """
        import sys, time
        import burla
        burla.use(sys.argv[1])
        def call(x):
            time.sleep(0.005)
            print("theirs", x)
            return "theirs", x
        results = burla.remote_parallel_map(call, range(100))
        assert results == [("theirs", x) for x in range(100)]
        """,
        in_use.address,
    )

    def call(x: int) -> tuple[str, int]:
        import time

        time.sleep(0.005)
        return "ours", x

    while script.poll() is None:
        assert remote_parallel_map(call, range(50)) == [("ours", x) for x in range(50)]
    out, err = script.communicate(timeout=60)
    assert err == "" and script.returncode == 0
    assert sorted(out.splitlines()) == sorted(f"theirs {x}" for x in range(100))


def test_closing_the_generator_stops_the_calls(in_use: HandStarted, ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import os
        import time

        write(os.getpid())
        time.sleep(300 if x else 0)
        return x

    results = remote_parallel_map(call, range(5), generator=True)
    assert next(results) == 0
    wait_until(lambda: len(ledger.entries()) == 3, what="two long calls")
    results.close()
    wait_until(lambda: not any(map(psutil.pid_exists, map(int, ledger.entries()))), 5, "the end of the calls")


def test_the_calls_of_a_worker_that_is_killed_run_elsewhere(in_use: HandStarted, ledger: Ledger):
    write = ledger.writer()

    def parent(x: int) -> int:
        import os
        import time

        time.sleep(0.02)
        return os.getppid()

    def call(x: int) -> int:
        import os
        import time

        write(f"{x} {os.getpid()}")
        time.sleep(0.05)
        return x

    with Client(in_use.address, set_as_default=False) as client:
        victim = in_use.add_worker("--no-nanny")
        client.wait_for_workers(3, timeout=30)
        wait_until(lambda: len(set(remote_parallel_map(parent, range(30)))) == 3, 30, "calls on three workers")
        results = remote_parallel_map(call, range(100), generator=True)
        seen = [next(results) for _ in range(20)]
        family = children(victim.pid)
        victim.kill()
        victim.wait()
        seen += results
    assert sorted(seen) == list(range(100))
    counts = [sum(entry.split()[0] == str(x) for entry in ledger.entries()) for x in range(100)]
    assert min(counts) == 1 and sum(counts) - 100 <= 10, "only what ran there, or had just ended, ran again"
    wait_until(lambda: not any(child.is_running() for child in family), 10, "the end of its children")


def test_a_detached_job_says_which_cluster_it_goes_on_on_and_remembers_it(
    in_use: HandStarted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    gate = tmp_path / "gate"

    def call(x: int, path: str = str(gate)) -> int:
        import os
        import time

        until = time.monotonic() + 30
        while x and not os.path.exists(path) and time.monotonic() < until:
            time.sleep(0.01)
        return x

    results = remote_parallel_map(call, range(3), detach=True, generator=True)
    assert next(results) == 0
    job = burla.current_job()
    assert job is not None and capfd.readouterr().err == (
        f"burla: job {job.id} is safe: it goes on on the cluster {in_use.address} without this process, for as "
        f"long as its scheduler lives, which holds it. To come back: burla.attach({job.id!r})\n"
    )
    results.close()
    burla.use(None)
    gate.touch()
    assert job.results() == [0, 1, 2] and job.status == "done"
    with pytest.raises(burla.UnknownJob):
        burla.attach(job.id)


def test_calls_behind_a_long_one_run_on_the_other_worker(in_use: HandStarted, tmp_path: Path):
    """It holds its worker's only slot until all others have run."""
    gate = str(tmp_path / "gate")

    def call(x: int) -> int:
        import os
        import time

        until = time.monotonic() + 20
        while x == 1500 and not os.path.exists(gate):
            assert time.monotonic() < until, "others wait behind this call"
            time.sleep(0.01)
        return x

    results = remote_parallel_map(call, range(3000), generator=True)
    assert sorted(next(results) for _ in range(2999)) == [x for x in range(3000) if x != 1500]
    (tmp_path / "gate").touch()
    assert list(results) == [1500]
