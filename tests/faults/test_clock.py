"""The wall clock jumps by an hour while jobs run, processes die and nobody calls: nothing of ours follows it."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import burla
from burla.clusters.supervisor import DASK_SETTINGS
from tests.conftest import Home, Ledger, Scripts, cluster_processes, wait_until

HOUR_S = 3600

# what each process imports first; who has seen the clock jump says so
SITE = """
import os, time
_file, _seen = os.environ.get("SHIFTED_CLOCK"), os.environ.get("SHIFTED_CLOCK", "") + ".seen"
_time, _time_ns = time.time, time.time_ns
def _shift():
    try:
        with open(_file) as file:
            shift = float(file.read() or 0)
    except (OSError, TypeError):
        return 0.0
    if shift:
        try:
            os.close(os.open(f"{_seen}/{os.getpid()}_{shift:g}", os.O_CREAT))
        except OSError:
            pass
    return shift
time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
"""


@dataclass
class Clock:
    """The wall clock of all processes that are started from now on."""

    path: Path

    def shift(self, seconds: float) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.path)

    def seen(self, pid: int, seconds: float) -> bool:
        """Whether a process has looked at the clock while it was wrong by so much."""
        return (self.path.with_suffix(".seen") / f"{pid}_{seconds:g}").exists()


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    (tmp_path / "clock.seen").mkdir()
    monkeypatch.setenv("SHIFTED_CLOCK", str(tmp_path / "clock"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    return Clock(tmp_path / "clock")


CLIENT = """
    import os, sys, time
    import burla

    def call(x):
        fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{x} {time.time()}\\n".encode())
        os.close(fd)
        print("call", x)
        time.sleep(0.1)
        return x

    LEDGER = sys.argv[1]
    results = []
    for result in burla.remote_parallel_map(call, range(240), detach=sys.argv[2] == "True", generator=True):
        time.time()
        results.append(result)
    print(sorted(results) == list(range(240)), flush=True)
"""


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_a_job_whose_head_dies_while_the_clock_is_wrong_notices_nothing(
    own_home: Home, clock: Clock, scripts: Scripts, ledger: Ledger, detach: bool
):
    """All processes of the cluster and the client see each jump; the head is killed after the second and the third."""
    client = scripts.start(CLIENT, str(ledger.path), str(detach))
    calls = 10
    for turn, jump_s in enumerate((HOUR_S, -HOUR_S, HOUR_S)):
        wait_until(lambda: len(ledger.entries()) >= calls, 30, "calls")  # noqa: B023 - it is waited for here
        before = own_home.processes()
        clock.shift(jump_s)
        for kind in ("head", "node"):
            wait_until(lambda: clock.seen(before[kind].pid, jump_s), 10, f"that the {kind} sees the jump")  # noqa: B023
        wait_until(lambda: clock.seen(client.pid, jump_s), 10, "that the client sees the jump")  # noqa: B023
        if turn:
            before["head"].kill()
        calls = len(ledger.entries()) + 40
    clock.shift(0)
    out, err = client.communicate(timeout=60)
    *lines, last = out.splitlines()
    assert last == "True", err
    assert Counter(lines) == Counter(f"call {x}" for x in range(240))
    assert not [line for line in err.splitlines() if "burla.attach" not in line and "started a local" not in line]
    entries = [line.split() for line in ledger.entries()]
    assert Counter(int(x) for x, _ in entries) == Counter(range(240)), "no call ran again"
    times = [float(at) for _, at in entries]
    assert max(times) - min(times) > 2 * HOUR_S - 60, "the calls saw the jumps"


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_an_idle_cluster_and_what_it_keeps_outlast_a_jump(own_home: Home, clock: Clock, jump_s: int):
    """Neither its idle end nor the retention of days comes for it, nor does a job seem to be of the future."""
    job = burla.submit(abs, [-1])
    assert job.results(timeout_s=30) == [1]
    before = {kind: process.pid for kind, process in own_home.processes().items()}
    clock.shift(jump_s)
    wait_until(lambda: clock.seen(before["head"], jump_s), 10, "that the head sees the jump")
    time.sleep(2.5)  # two looks at leases and idleness
    assert {kind: process.pid for kind, process in own_home.processes().items()} == before
    (listed,) = burla.jobs()
    assert listed.id == job.id and listed.results() == [1]
    assert burla.remote_parallel_map(abs, [-2]) == [2]


def test_a_cluster_ends_when_it_is_idle_whatever_the_clock_says(
    own_home: Home, clock: Clock, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BURLA_LOCAL_IDLE_S", "2")
    assert scripts.run("import burla; print(burla.remote_parallel_map(abs, [-1]))").stdout == "[1]\n"
    clock.shift(-HOUR_S)
    wait_until(lambda: not cluster_processes(own_home.environ), 15, "the end of the idle cluster")


def test_dask_gives_up_no_worker_by_the_wall_clock():
    assert DASK_SETTINGS["distributed.scheduler.worker-ttl"] is None
