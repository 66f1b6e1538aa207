"""Jobs at once on one cluster of eight slots, on however few CPUs: their calls sleep."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator

import pytest

import burla
from burla import Job, remote_parallel_map
from tests.conftest import Ledger, home, wait_until

pytestmark = pytest.mark.local

SLOTS = 8
HUGE = 100_000


@pytest.fixture(scope="module", autouse=True)
def eight_slots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, home(patch):
        patch.setenv("BURLA_LOCAL_CPUS", str(SLOTS))
        yield


@pytest.fixture
def huge() -> Iterator[Job]:
    """A job of 1,000 seconds of calls of 10 ms that has all slots."""
    job = burla.submit(time.sleep, [0.01] * HUGE, detach=False)
    wait_until(lambda: job.progress.running == SLOTS, what="the huge job in every slot")
    yield job
    job.cancel()
    job.wait()


def marking(ledger: Ledger) -> Callable[[int, int], int]:
    write = ledger.writer()

    def call(x: int, width: int) -> int:
        import time

        write(width)
        time.sleep(0.03)
        write(-width)
        return x

    return call


def test_a_small_job_is_done_while_a_huge_one_runs(huge: Job):
    remote_parallel_map(time.sleep, [0.1] * 10)
    assert huge.status == "running" and huge.progress.done < HUGE / 10


def test_jobs_of_unlike_width_fill_the_node_and_never_overfill_it(ledger: Ledger):
    call = marking(ledger)
    jobs = {
        width: burla.submit(call, [(x, width) for x in range(600 // width)], func_cpu=width, detach=False)
        for width in (1, 2, 4)
    }
    for width, job in jobs.items():
        assert job.results() == list(range(600 // width))
    used = list(itertools.accumulate(map(int, ledger.entries())))
    assert max(used) == SLOTS and used[-1] == 0
    together = [entry for entry in ledger.entries()[: len(used) // 2] if int(entry) > 0]
    assert set(together) == {"1", "2", "4"}, "all of them at once"


@pytest.mark.slow
def test_a_job_that_needs_all_slots_has_its_turn_beside_one_that_goes_on_and_on(huge: Job):
    def cpus(x: int) -> str:

        return os.environ["OMP_NUM_THREADS"]

    assert remote_parallel_map(cpus, range(3), func_cpu=SLOTS) == [str(SLOTS)] * 3
    done = huge.progress.done
    assert huge.status == "running" and done < HUGE / 2
    wait_until(lambda: huge.progress.done > done, what="the huge job, again")
