"""For which results an idle head stays, and until when."""

from __future__ import annotations

from burla.head.keeping import LEAST_TO_COPY_S, Keeping
from burla.head.records import Extent, Status, StoredJob
from burla.protocol import JobState
from tests.head.samples import spec

ENDED_S = 1000.0
DAY_S = 86_400.0


def job(name: str, ended_at_s: float | None = ENDED_S, detached: bool = True, parent: str | None = None) -> StoredJob:
    state = JobState.RUNNING if ended_at_s is None else JobState.DONE
    status = Status(detached=detached, state=state, ended_at_s=ended_at_s)
    return StoredJob(1, spec(name, parent=parent), "session", 0.0, status, Extent())


def keeping(*jobs: StoredJob, url: str = "", keep_s: float = DAY_S) -> Keeping:
    one = Keeping(url, keep_s)
    one.begin(jobs)
    return one


def test_an_idle_head_stays_for_a_detached_job_that_nobody_has_read_until_its_time_is_over():
    one = keeping(job("a"))
    assert one.stays(ENDED_S) and one.stays(ENDED_S + DAY_S - 1)
    assert not one.stays(ENDED_S + DAY_S)
    assert one.remarks(ENDED_S) == (
        "1 ended job whose results nobody has read: the head stays for that, at most until 1970-01-02 00:16 UTC",
    )


def test_it_does_not_stay_for_what_was_read_is_attached_or_has_not_ended():
    one = keeping(job("a"), job("b", detached=False), job("c", ended_at_s=None))
    assert one.waiting == ["a"]
    one.settle("a")
    assert not one.stays(ENDED_S) and one.remarks(ENDED_S) == ()
    one.begin([job("a")])  # noticed after it was read
    assert not one.stays(ENDED_S)


def test_with_no_time_to_keep_it_does_not_stay():
    assert not keeping(job("a"), keep_s=0).stays(ENDED_S)


def test_with_a_bucket_it_stays_for_every_job_of_a_user_that_is_not_copied_and_says_why():
    one = keeping(job("a"), job("b", detached=False), job("c", detached=False, parent="a"), url="s3://b/c")
    assert one.waiting == ["a", "b"]
    one.settle("a")
    one.failure = "s3://b/c cannot be reached: Forbidden"
    [told] = one.remarks(ENDED_S)
    assert told.startswith("1 ended job not copied to s3://b/c yet (s3://b/c cannot be reached: Forbidden; it is tried")
    one.settle("b")
    assert not one.stays(ENDED_S)


def test_what_is_being_copied_has_an_hour_also_where_nothing_is_kept():
    one = keeping(job("a"), url="s3://b/c", keep_s=0)
    assert one.stays(ENDED_S + LEAST_TO_COPY_S - 1) and not one.stays(ENDED_S + LEAST_TO_COPY_S)
