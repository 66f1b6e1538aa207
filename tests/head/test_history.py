"""Which ended jobs are deleted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from burla.head.history import expired
from burla.head.records import Extent, Status, StoredJob
from burla.protocol import JobState
from tests.head.samples import spec

KEEP_S = 100.0
NOW_S = 1000.0


def job(number: int, size_bytes: int, age_s: float | None) -> StoredJob:
    """Return a job that ended so long ago; None: it has not ended."""
    state = JobState.RUNNING if age_s is None else JobState.DONE
    status = Status(state=state, ended_at_s=None if age_s is None else NOW_S - age_s)
    return StoredJob(number, spec(f"job-{number}"), "session", 0.0, status, Extent(size_bytes))


def gone(jobs: list[StoredJob], limit_bytes: int) -> list[int]:
    return [one.number for one in expired(jobs, NOW_S, KEEP_S, limit_bytes)]


def test_nothing_is_deleted_within_retention_and_limit():
    assert gone([job(3, 50, 1), job(2, 30, None), job(1, 20, KEEP_S)], 100) == []
    assert gone([], 0) == []


def test_ended_jobs_past_their_retention_are_deleted_and_running_ones_are_not():
    assert gone([job(4, 1, KEEP_S + 1), job(3, 1, None), job(2, 1, 1), job(1, 1, KEEP_S + 1)], 100) == [4, 1]


def test_over_the_limit_the_oldest_go_until_the_others_fit():
    assert gone([job(4, 40, 1), job(3, 40, 2), job(2, 40, 3), job(1, 40, 4)], 100) == [2, 1]


def test_jobs_that_have_not_ended_count_and_stay():
    assert gone([job(3, 10, 1), job(2, 95, None), job(1, 10, 2)], 100) == [1]


def test_the_newest_ended_job_stays_whatever_its_size():
    assert gone([job(3, 500, None), job(2, 1000, 1), job(1, 1, 2)], 100) == [1]
    assert gone([job(2, 1000, KEEP_S + 1), job(1, 1, 2)], 100) == [2], "but not longer than others"


def test_a_small_old_job_may_stay_where_a_larger_newer_one_has_to_go():
    assert gone([job(3, 60, 1), job(2, 60, 2), job(1, 30, 3)], 100) == [2]


def test_a_clock_that_was_set_back_deletes_nothing_too_early():
    assert gone([job(1, 1, -3600)], 100) == []


@given(st.lists(st.tuples(st.integers(0, 60), st.none() | st.floats(0, 2 * KEEP_S))), st.integers(0, 200))
def test_what_stays_fits_and_is_young_except_the_newest_and_what_runs(
    described: list[tuple[int, float | None]], limit_bytes: int
):
    jobs = [job(len(described) - at, size, age) for at, (size, age) in enumerate(described)]
    deleted = set(gone(jobs, limit_bytes))
    kept = [one for one in jobs if one.number not in deleted]
    ended = [one for one in kept if one.status.ended_at_s is not None]
    assert len(ended) == len(kept) - sum(age is None for _, age in described)
    assert all(NOW_S - (one.status.ended_at_s or 0.0) <= KEEP_S for one in ended)
    assert len(ended) <= 1 or sum(one.size_bytes for one in kept) <= limit_bytes
