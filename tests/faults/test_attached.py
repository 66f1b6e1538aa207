"""Processes are killed at random moments while attached jobs run. A ledger says which calls ran, and in which process.

The moments are drawn from a seed: a run is repeated with `BURLA_FAULTS_SEED`, which a failure names.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import burla
from burla import remote_parallel_map
from burla.client import current
from burla.protocol import GetStatus
from tests.conftest import Home, Ledger, Scripts, cluster_processes, lives, process_kind, wait_until

numbers = itertools.count(1)  # of jobs
COUNT = 240  # calls of 5 to 25 ms: about two seconds on the two slots
SLOTS = 2
SEED = int(os.environ.get("BURLA_FAULTS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    print(f"BURLA_FAULTS_SEED={SEED}")  # pytest shows it if the test fails
    return random.Random(f"{SEED} {request.node.name}")


class Job:
    """A job in a thread of this process, so that the test may kill meanwhile."""

    def __init__(self, ledger: Ledger, count: int = COUNT, finish: Path | None = None):
        self.count = count
        self.ledger = ledger
        self.results: list[int] | None = None
        self.error: BaseException | None = None
        self._name = f"job{next(numbers)}"
        self._function = recorded(ledger, self._name, str(finish))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.results = remote_parallel_map(self._function, range(self.count))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def runs(self) -> list[tuple[int, int]]:
        """Input and process of every call that has begun, in the order in which they began."""
        lines = [line.split() for line in self.ledger.entries()]
        return [(int(index), int(pid)) for job, index, pid in lines if job == self._name]

    def wait_for_calls(self, more: int) -> None:
        """Return when so many more calls have begun, or the job is over."""
        target = len(self.runs()) + more
        wait_until(lambda: self.over or len(self.runs()) >= target, 60, f"{more} more calls")

    def wait(self, timeout_s: float = 60) -> None:
        self._thread.join(timeout_s)
        assert self.over, f"the job is still running after {timeout_s} s"

    def check(self, lost: set[int]) -> None:
        """The job is complete; a call ran again only if the process that ran it before was lost."""
        self.wait()
        if self.error is not None:
            raise self.error
        assert self.results == [square(index) for index in range(self.count)]
        pids: dict[int, list[int]] = defaultdict(list)
        for index, pid in self.runs():
            pids[index].append(pid)
        assert sorted(pids) == list(range(self.count))
        needless = {index: ran for index, ran in pids.items() if not set(ran[:-1]) <= lost}
        assert not needless, f"ran again although their process was not killed: {needless}; killed: {lost}"


def square(index: int) -> int:
    return index * index + 1


def recorded(ledger: Ledger, name: str, finish: str) -> Callable[[int], int]:
    """A function that notes its input and process; it is slow until there is a file `finish`."""
    write = ledger.writer()

    def call(index: int) -> int:
        import os
        import random
        import time

        write(f"{name} {index} {os.getpid()}")
        if not os.path.exists(finish):
            time.sleep(random.uniform(0.005, 0.025))
        return index * index + 1

    return call


# what is looked at after every fault ----------------------------------------------------------------------------------


def kinds(home: Home) -> list[str]:
    """The kinds of all processes of the cluster, sorted."""
    try:
        return sorted(process_kind(process) for process in cluster_processes(home.environ))
    except psutil.Error:
        return []  # one ended meanwhile


def pids_in(ledger: Ledger) -> set[int]:
    return {int(line.split()[-1]) for line in ledger.entries()}


def check_idle(home: Home, ledger: Ledger, timeout_s: float = 15) -> None:
    """Nothing is left but the idle cluster: no process that ever ran a call, no second zygote, no orphan."""
    pids = pids_in(ledger)
    wait_until(lambda: not any(map(lives, pids)), timeout_s, "the end of all children of the job")
    idle = sorted(["supervisor", "head", "node", "zygote", *["child"] * SLOTS])
    wait_until(lambda: kinds(home) == idle, timeout_s, f"{idle} instead of {kinds(home)}")


def children(home: Home) -> set[int]:
    """All children, clean ones too."""
    found = set()
    for process in cluster_processes(home.environ):
        try:
            if process_kind(process) == "child":
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def kill(home: Home, kind: str) -> set[int]:
    """Kill a process of the cluster; return the children that go with it."""
    gone = children(home)
    home.processes()[kind].kill()
    return gone | children(home)


@pytest.fixture
def home(own_home: Home, ledger: Ledger) -> Iterator[Home]:
    """A cluster that is up, and that must be idle and whole after the test."""
    assert remote_parallel_map(abs, [-1]) == [1]
    yield own_home
    check_idle(own_home, ledger)


# children, zygote, node: the job goes on ------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(3))
def test_killed_children_cost_a_job_nothing(home: Home, ledger: Ledger, dice: random.Random, turn: int):
    """Children are killed in the middle of calls and between them; no input is hit three times."""
    job = Job(ledger)
    lost: set[int] = set()
    hit: set[int] = set()
    for _ in range(6):
        job.wait_for_calls(dice.randrange(5, 35))
        time.sleep(dice.uniform(0, 0.02))
        running = {pid: index for index, pid in job.runs() if pid not in lost and index not in hit}
        candidates = sorted(pid for pid in running if lives(pid))
        if candidates and not job.over:
            victim = dice.choice(candidates)
            lost.add(victim)
            psutil.Process(victim).kill()
            hit.add(dict(map(reversed, job.runs()))[victim])  # the call it was in at its end
    assert lost
    job.check(lost)


def test_all_children_killed_at_once_cost_a_job_nothing(home: Home, ledger: Ledger, dice: random.Random):
    job = Job(ledger)
    job.wait_for_calls(dice.randrange(5, 100))
    lost = children(home)
    for pid in lost:  # those that wait for work, too
        os.kill(pid, signal.SIGKILL)
    job.check(lost)


@pytest.mark.parametrize("kind", ["zygote", "node"])
def test_a_killed_zygote_or_node_costs_a_job_nothing(home: Home, ledger: Ledger, dice: random.Random, kind: str):
    job = Job(ledger)
    lost: set[int] = set()
    for _ in range(2):
        job.wait_for_calls(dice.randrange(5, 60))
        if not job.over:
            lost |= kill(home, kind)
    job.check(lost)


def test_node_zygote_and_children_killed_in_turn_cost_a_job_nothing(home: Home, ledger: Ledger, dice: random.Random):
    job = Job(ledger, 2 * COUNT)
    lost: set[int] = set()
    kinds_of_fault = ["node", "zygote", "child", "child"]
    dice.shuffle(kinds_of_fault)
    for kind in kinds_of_fault:
        job.wait_for_calls(dice.randrange(20, 80))
        if kind == "child":
            victim = dice.choice(sorted(children(home)) or [0])
            if victim and lives(victim):
                lost.add(victim)
                os.kill(victim, signal.SIGKILL)
        elif kind in home.processes():
            lost |= kill(home, kind)
    job.check(lost)


def test_a_node_killed_while_it_is_idle_is_there_for_the_next_job(home: Home, ledger: Ledger):
    for kind in ("zygote", "node"):
        kill(home, kind)
        Job(ledger, 20).check(set())


# head, supervisor: the job goes on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.parametrize("kind", ["head", "supervisor"])
def test_a_killed_head_or_supervisor_costs_a_job_nothing(
    home: Home, ledger: Ledger, dice: random.Random, kind: str, turn: int
):
    """The node outlives its head, and so do the calls; with its supervisor it ends, and only what ran is run again."""
    job = Job(ledger)
    job.wait_for_calls(dice.randrange(10, 150))
    lost = kill(home, kind) if kind == "supervisor" else set()
    if kind == "head":
        home.processes()[kind].kill()
    job.check(lost)
    Job(ledger, 30).check(set())


def test_a_killed_head_is_replaced_when_nobody_uses_it(home: Home, ledger: Ledger):
    before = home.processes()["head"].pid
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: (head := home.processes().get("head")) and head.pid != before, 15, "another head")
    Job(ledger, 20).check(set())


@pytest.mark.parametrize("kinds", [("head",), ("supervisor",), ("supervisor", "head", "node", "zygote")], ids="+".join)
def test_a_job_right_after_a_kill_does_not_notice_it(home: Home, ledger: Ledger, kinds: tuple[str, ...]):
    """Its process still holds a connection that nobody has found dead yet."""
    found = home.processes()
    for kind in kinds:
        found[kind].kill()
    job = Job(ledger, 20)
    job.wait()
    job.check({pid for _, pid in job.runs()})  # what a dying cluster had begun is run again by the next


# the client: its calls stop -------------------------------------------------------------------------------------------

CLIENT = """
    import os, sys, time
    from burla import remote_parallel_map

    def call(index):
        fd = os.open(sys_argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"client {index} {os.getpid()}\\n".encode())
        os.close(fd)
        time.sleep(3600 if index % 5 == 4 else 0.02)

    sys_argv = sys.argv
    remote_parallel_map(call, range(1000))
"""


@pytest.mark.parametrize("turn", range(2))
def test_calls_of_a_killed_client_stop_within_15_seconds(
    home: Home, ledger: Ledger, scripts: Scripts, dice: random.Random, turn: int
):
    client = scripts.start(CLIENT, str(ledger.path))
    wait_until(lambda: len(ledger.entries()) >= dice.randrange(1, 8), 30, "the first calls")
    time.sleep(dice.uniform(0, 0.3))
    client.kill()
    client.wait()
    pids = pids_in(ledger)
    wait_until(lambda: not any(map(lives, pids)), 15, "the end of the calls")
    begun = len(ledger.entries())
    Job(ledger, 20).check(set())
    assert len(ledger.entries()) == begun + 20, "no call of the dead client has begun since"


def test_the_job_of_a_living_client_does_not_notice_the_death_of_another(
    home: Home, ledger: Ledger, scripts: Scripts, dice: random.Random, tmp_path: Path
):
    other = Ledger(tmp_path / "other")
    client = scripts.start(CLIENT, str(other.path))
    wait_until(lambda: len(other.entries()) >= 3, 30, "the first calls of the other")
    job = Job(ledger, COUNT // 2)
    job.wait_for_calls(dice.randrange(1, 20))
    client.kill()
    job.check(set())
    pids = pids_in(other)
    wait_until(lambda: not any(map(lives, pids)), 15, "the end of the calls of the dead client")


# a node that hangs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_hangs_for_25_seconds_comes_back_and_finishes(home: Home, ledger: Ledger, dice: random.Random):
    """It is given up after 20 s; what its children report afterwards is dropped, and every call has one result."""
    job = Job(ledger, 3 * COUNT)
    job.wait_for_calls(dice.randrange(20, 100))
    lost = children(home)
    node = home.processes()["node"]
    node.suspend()
    try:
        time.sleep(25)
    finally:
        node.resume()
    job.check(lost)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[psutil.Process]]:
    """Two workers of a Dask cluster, one slot each, in use for the calls of this process."""
    where = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(where), "--no-dashboard"]
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0"], *[["worker", "--nthreads", "1", "--no-nanny"]] * 2]
    started: list[subprocess.Popen[bytes]] = []
    log = open(tmp_path / "dask.log", "wb")
    try:
        for command in commands:
            full = [sys.executable, "-m", "dask", *command, *common]
            started.append(subprocess.Popen(full, cwd=tmp_path, stdout=log, stderr=log))
        wait_until(where.exists, 30, "the scheduler")
        burla.use(json.loads(where.read_text())["address"])
        wait_until(lambda: nodes_joined() == 2, 30, "both workers")
        yield [psutil.Process(process.pid) for process in started[1:]]
    finally:
        burla.use(None)
        for process in reversed(started):
            process.kill()
            process.wait()


def nodes_joined() -> int:
    """How many nodes the head in use has at this moment."""
    return len(current.connection(lambda text: None).ask(GetStatus()).nodes)


@pytest.mark.slow
def test_calls_of_a_node_that_hangs_run_on_another_and_its_late_reports_are_dropped(
    workers: list[psutil.Process], ledger: Ledger, dice: random.Random, tmp_path: Path
):
    """The hanging one is woken while the job still runs, and then reports what is not its own any more."""
    finish = tmp_path / "finish"
    job = Job(ledger, 8000, finish)
    job.wait_for_calls(dice.randrange(20, 100))
    hanging = dice.choice(workers)
    hanging.suspend()
    lost = {process.pid for process in hanging.children(recursive=True)}
    wait_until(lambda: nodes_joined() == 1, 40, "that the head gives the node up")
    job.wait_for_calls(50)
    assert not job.over and not {pid for _, pid in job.runs()[-20:]} & lost
    hanging.resume()
    wait_until(lambda: nodes_joined() == 2, 20, "that the node joins again")
    job.wait_for_calls(20)
    assert not job.over
    finish.touch()
    job.check(lost)
    wait_until(lambda: not any(map(lives, {pid for _, pid in job.runs()})), 15, "the end of all children")
