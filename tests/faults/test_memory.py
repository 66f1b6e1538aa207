"""A node that runs short of memory: in a cgroup with a real limit, with calls that really use it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import burla
from burla import OutOfMemory, remote_parallel_map
from tests.conftest import Home, Ledger, end_cluster, wait_until
from tests.faults import memory_runs
from tests.faults.memory_limit import Group, NoCgroup, limited, start_cluster

LIMIT_BYTES = 1_000_000_000


@pytest.fixture
def group(own_home: Home, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Group]:
    """A local cluster of 4 slots that may use 1 GB, or as much as the test says."""
    monkeypatch.setenv("BURLA_LOCAL_CPUS", "4")
    try:
        with limited(getattr(request, "param", LIMIT_BYTES)) as made:
            start_cluster(made)
            yield made
            end_cluster(os.environ)
    except NoCgroup as why:
        pytest.skip(f"no memory cgroup can be made here: {why}")


def holder(ledger: Ledger, seconds: float = 0.3) -> Callable[[int, int], int]:
    """Return a function that notes its index, and holds so many MB for a while."""
    write = ledger.writer()

    def hold(index: int, size_mb: int) -> int:
        import time

        write(index)
        held = bytearray()
        for _ in range(size_mb // 10):
            held += b"1" * 10_000_000
        time.sleep(seconds)
        return index

    return hold


class Peak:
    """The most that a group uses, looked at all the time."""

    def __init__(self, group: Group):
        self.used_bytes = 0
        self._group = group
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self.used_bytes = max(self.used_bytes, self._group.used_bytes)


def test_calls_that_do_not_fit_beside_each_other_all_finish_and_harm_nothing_else(
    group: Group, own_home: Home, ledger: Ledger, capsys: pytest.CaptureFixture[str]
):
    """20 calls of 300 MB, on a node with 1 GB and 4 CPUs, beside a job of small calls that takes as long."""
    before = {kind: process.pid for kind, process in own_home.processes().items()}
    small = burla.submit(holder(Ledger(ledger.path.with_name("small")), 0.05), [(i, 1) for i in range(100)])
    with Peak(group) as peak:
        assert remote_parallel_map(holder(ledger, 1.0), [(i, 300) for i in range(20)]) == list(range(20))
    assert small.results() == list(range(100))
    assert {kind: process.pid for kind, process in own_home.processes().items()} == before
    assert peak.used_bytes < LIMIT_BYTES
    assert len(ledger.entries()) > 20, "it was short of memory"
    assert capsys.readouterr().err.count("is short of memory: the call of input ") == 1


def test_when_memory_is_plenty_again_more_calls_run(group: Group, ledger: Ledger):
    """The first four do not fit beside each other, with head and node; three of them would."""
    write = ledger.writer()

    def hold(index: int) -> None:
        import time

        write(index)
        held = bytearray()
        for _ in range(22 if index < 4 else 1):
            held += b"1" * 10_000_000
        time.sleep(1.0 if index < 4 else 0.4)

    job = burla.submit(hold, range(400))
    wait_until(lambda: len(set(ledger.entries())) < len(ledger.entries()), 30, "a call that begins again")
    wait_until(lambda: 0 < job.progress.running < 3, 10, "fewer at once")
    wait_until(lambda: job.progress.running >= 3, 60, "three at once")
    job.cancel()


def test_a_call_whose_room_others_have_waits_for_them_and_is_not_blamed(group: Group, ledger: Ledger, tmp_path: Path):
    """One of 560 MB beside two of 380 MB that stay for longer than it could be tried again and again."""
    gate, write = str(tmp_path / "gate"), ledger.writer()

    def hold(size_mb: int, waits: bool) -> int:
        import os
        import time

        write(size_mb)
        held = bytearray()
        for _ in range(size_mb // 10):
            held += b"1" * 10_000_000
        until = time.monotonic() + (60 if waits else 1)
        while time.monotonic() < until and not os.path.exists(gate):
            time.sleep(0.05)
        return size_mb

    others = burla.submit(hold, [(380, True)] * 2)
    wait_until(lambda: group.used_bytes > 780_000_000, 30, "the others")
    one = burla.submit(hold, [(560, False)], on_error="continue")
    wait_until(lambda: "560" in ledger.entries(), 30, "its first try")
    time.sleep(20)  # a wrong blame came within 15 s
    assert one.progress.failed == 0 and ledger.entries().count("560") < 4
    Path(gate).touch()
    assert others.results(timeout_s=60) == [380, 380] and one.results(timeout_s=60) == [560]


def outcomes(job: burla.Job, count: int) -> dict[int, BaseException | int]:
    """Return what became of each call."""
    job.wait()
    found: dict[int, BaseException | int] = {}
    for index in range(count):
        try:
            found[index] = job.result(index)
        except OutOfMemory as error:
            found[index] = error
    return found


def test_a_call_that_no_node_has_memory_for_is_named_with_its_peak_and_the_limit(group: Group, ledger: Ledger):
    job = burla.submit(holder(ledger), [(i, 2000 if i == 3 else 50) for i in range(8)], on_error="continue")
    found = outcomes(job, 8)
    error = found.pop(3)
    assert found == {index: index for index in range(8) if index != 3}
    assert isinstance(error, OutOfMemory) and error.index == error.burla_input_index == 3
    assert error.limit_bytes == LIMIT_BYTES // 4096 * 4096, "the kernel counts in pages"
    assert LIMIT_BYTES // 2 < error.peak_bytes <= LIMIT_BYTES
    assert "input 3" in str(error) and "larger machine" in str(error)
    assert ledger.entries().count("3") <= 3, "it is not tried for ever"


def test_a_call_that_the_kernel_ends_for_want_of_memory_is_named_too(group: Group, ledger: Ledger):
    """It grows so fast that the kernel is often first."""
    write = ledger.writer()

    def grab(index: int) -> int:
        write(index)
        return len(b"1" * (3_000_000_000 if index == 2 else 1000))

    before = group.kills
    for _ in range(12):
        ledger.path.unlink(missing_ok=True)
        job = burla.submit(grab, range(5), on_error="continue")
        found = outcomes(job, 5)
        error = found.pop(2)
        assert found == dict.fromkeys((0, 1, 3, 4), 1000)
        assert isinstance(error, OutOfMemory) and error.burla_input_index == 2
        assert error.peak_bytes > LIMIT_BYTES // 2
        assert ledger.entries().count("2") <= 3
        if group.kills > before:
            return
    pytest.fail("the kernel was never first")


@pytest.mark.parametrize("group", [5 * LIMIT_BYTES], indirect=True)
def test_the_kernel_keeps_a_call_within_its_func_ram_however_fast_it_grows(group: Group):
    """Where cgroups can be made below the node's; no call ever has more, and nothing of them is left."""

    def grab(index: int) -> int:
        return len(b"1" * (4_000_000_000 if index == 2 else 100_000_000))

    with Peak(group) as peak:
        job = burla.submit(grab, range(5), func_ram=1, max_parallelism=1, on_error="continue")
        found = outcomes(job, 5)
    error = found.pop(2)
    assert found == dict.fromkeys((0, 1, 3, 4), 100_000_000)
    assert isinstance(error, OutOfMemory) and error.limit_bytes == 1_000_000_000
    assert peak.used_bytes < 1_000_000_000 + 300_000_000, "with head and node"
    made = [folder for folder in group.folder.iterdir() if folder.is_dir()]
    assert len(made) == 1, "that of the node"
    wait_until(lambda: not any(one.is_dir() for one in made[0].iterdir()), 10, "the end of the groups of calls")


@pytest.mark.parametrize("group", [3 * LIMIT_BYTES], indirect=True)
def test_a_call_over_its_func_ram_ends_alone_and_is_not_tried_again(group: Group, ledger: Ledger):
    sizes = [1500 if index == 5 else 200 for index in range(12)]
    job = burla.submit(holder(ledger), list(enumerate(sizes)), func_ram=1, on_error="continue")
    found = outcomes(job, 12)
    error = found.pop(5)
    assert found == {index: index for index in range(12) if index != 5}
    assert isinstance(error, OutOfMemory) and error.burla_input_index == 5
    assert error.limit_bytes == 1_000_000_000 <= error.peak_bytes
    assert "func_ram of 1.00 GB" in str(error) and "func_ram=2" in str(error)
    assert sorted(map(int, ledger.entries())) == list(range(12)), "each ran once"


@pytest.mark.parametrize("group", [memory_runs.LIMIT_BYTES], indirect=True)
def test_at_random_no_call_is_blamed_for_what_others_use(group: Group):
    """`python -m tests.faults.memory_runs` makes more runs."""
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    assert [wrong for run in range(5) for wrong in memory_runs.random_run(random.Random(f"{seed} {run}"))] == []
