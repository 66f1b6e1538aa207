"""A job apart from the process that began it: `submit`, `attach`, `jobs`, and what a `Job` can tell."""

from __future__ import annotations

import getpass
import itertools
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

import burla
from burla import BurlaError, JobCancelled, JobUnfinished, StoreDamaged, UnknownJob
from burla.client import current
from tests.conftest import Ledger, wait_until
from tests.jobs.conftest import Gate

# beginning and finding ------------------------------------------------------------------------------------------------


def test_submit_returns_while_the_calls_run_and_the_results_come_in_order(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x % 2 == 0), range(6))
    assert isinstance(job, burla.Job) and job.function_name == "call"
    assert job.status in ("waiting", "running")
    wait_until(lambda: job.progress.running == 2, what="two running calls")
    gate.open()
    assert job.results() == list(range(6))
    assert job.status == "done"
    progress = job.progress
    assert (progress.done, progress.running, progress.failed, progress.total) == (6, 0, 0, 6)
    assert str(progress).startswith("6/6 done")


def test_all_inputs_are_there_when_submit_returns_and_a_generator_is_read_once():
    taken = []
    job = burla.submit(lambda x: len(x), (taken.append(i) or b"x" * i for i in range(3000)))
    assert taken == list(range(3000))
    assert job.results() == list(range(3000))


def test_a_job_of_no_inputs_is_done():
    job = burla.submit(lambda x: x, [])
    assert job.results() == [] and job.status == "done" and list(job.iter_results()) == []


def test_large_functions_inputs_and_results_are_stored_whole():
    weights = np.random.default_rng(1).bytes(3_000_000)
    inputs = [np.full(n, n % 200, dtype="u1") for n in (10, 2_500_000, 20, 5_000_000)]

    def call(x: Any) -> tuple[Any, bytes]:
        return x + 1, weights[: len(x)]

    job = burla.submit(call, inputs)
    for (array, part), given in zip(job.results(), inputs, strict=True):
        assert np.array_equal(array, given + 1) and part == weights[: len(given)]
    for index, given in enumerate(inputs):
        assert np.array_equal(job.input(index), given)


def test_a_job_is_attached_by_its_id_or_the_beginning_of_it_or_as_the_newest_of_this_user(gate: Gate):
    first = burla.submit(gate.guarding(lambda x: True), [1, 2], max_parallelism=1)
    second = burla.submit(lambda x: -x, [3])
    for asked in (first.id, first.id[:9]):
        job = burla.attach(asked)
        assert (job.id, job.function_name) == (first.id, "call")
    assert burla.attach().id == second.id
    assert burla.attach(second.id).results() == [-3]
    gate.open()
    assert burla.attach(first.id).results() == [1, 2]


@pytest.mark.parametrize("asked", ["no such job", "ffffffffffff", ""])
def test_an_unknown_id_says_so(asked: str):
    with pytest.raises(UnknownJob) as caught:
        burla.attach(asked)
    assert isinstance(caught.value, LookupError)


def test_jobs_are_listed_newest_first_with_what_is_kept(gate: Gate):
    done = burla.submit(lambda x: x, range(3))
    done.wait()

    def broken(x: int) -> int:
        return 1 // x

    failed = burla.submit(broken, [0])
    failed.wait()
    running = burla.submit(gate.guarding(lambda x: True), range(3))
    listed = burla.jobs()
    assert [job.id for job in listed[:3]] == [running.id, failed.id, done.id]
    assert listed.keep_s == 7 * 86_400 and listed.limit_bytes == 50_000_000_000
    lines = repr(listed).splitlines()
    assert lines[0].split() == ["id", "function", "status", "done", "failed", "age", "kept", "until", "size"]
    assert lines[2].split()[:5] == [failed.id, "broken", "failed", "0/1", "1"] and "in 6 d 23 h" in lines[2]
    assert any(line.startswith("Jobs are kept for 7 days after their end, at most 50 GB") for line in lines)
    assert failed.id in [job.id for job in burla.jobs(status="failed")]
    assert {job.status for job in burla.jobs(status=["failed", "done"])} == {"failed", "done"}
    assert [job.id for job in burla.jobs(limit=2)] == [running.id, failed.id]


# results --------------------------------------------------------------------------------------------------------------


def test_results_are_read_while_the_job_runs_and_any_number_of_times(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x == 7), range(2000))
    early = dict(itertools.islice(job.iter_results(), 1999))
    assert early == {x: x for x in range(2000) if x != 7}
    again = job.iter_results()
    assert dict(itertools.islice(again, 1999)) == early
    gate.open()
    assert list(again) == [(7, 7)]
    for _ in range(2):
        assert job.results() == list(range(2000))
        assert sorted(job.iter_results()) == [(x, x) for x in range(2000)]


def test_two_threads_read_one_job(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x % 100 == 50), range(1000))
    read: list[list[int]] = []
    threads = [threading.Thread(target=lambda: read.append(job.results())) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(30)
    assert read == [list(range(1000))] * 2


def test_waiting_for_results_and_the_end_has_a_limit(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x == 1), range(3))
    wait_until(lambda: job.progress.done == 2, what="two results")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"job {job.id} has not ended after 0.3 s: 2/3 done.* It goes on") as caught:
        job.results(timeout_s=0.3)
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        job.wait(timeout_s=0.2)
    assert 0.5 <= time.monotonic() - began < 5
    assert caught.value.burla_results == {0: 0, 2: 2} and caught.value.burla_job is job
    gate.open()
    job.wait()
    assert job.results(timeout_s=0) == [0, 1, 2]


def test_what_has_ended_is_read_whole_without_any_waiting():
    job = burla.submit(lambda x: bytes([x]) * 400_000, range(30))  # more than one message holds
    job.wait()
    assert job.results(timeout_s=0) == [bytes([x]) * 400_000 for x in range(30)]


def test_one_result_is_read_alone_as_soon_as_it_is_there(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x == 2), range(3))
    assert (job.result(0), job.result(1)) == (0, 1) and job.status == "running"
    gate.open()
    assert job.result(2) == 2
    for index in (3, -1):
        with pytest.raises(IndexError):
            job.result(index)


def test_many_small_results_are_read_one_by_one_in_any_order():
    job = burla.submit(lambda x: x * x, range(3000))
    assert [job.result(index) for index in range(2999, -1, -7)] == [index**2 for index in range(2999, -1, -7)]


def test_a_result_that_is_not_there_says_why():
    def call(x: int) -> int:
        if x == 1:
            raise KeyError("one")
        return x

    job = burla.submit(call, [0, 1, 2, 3], max_parallelism=1)
    job.wait()
    assert job.result(0) == 0
    with pytest.raises(KeyError, match="one"):
        job.result(1)
    with pytest.raises(burla.NoResult, match="ended before call 3 had a result: it is failed") as caught:
        job.result(3)
    assert (caught.value.job, caught.value.index) == (job.id, 3)


def test_a_failure_is_raised_with_its_input_what_is_there_and_the_job(gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> int:
        if x == 5:
            wait()
            raise KeyError("five")
        return x

    job = burla.submit(call, range(6))
    wait_until(lambda: job.progress.done == 5, what="five results")
    gate.open()
    with pytest.raises(KeyError, match="five") as caught:
        job.results()
    assert caught.value.burla_input_index == 5
    assert caught.value.burla_results == {x: x for x in range(5)} and caught.value.burla_job is job
    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyError) as caught:
        seen.extend(job.iter_results())
    assert sorted(seen) == [(x, x) for x in range(5)]
    assert caught.value.burla_results == {} and caught.value.burla_job is job
    assert job.status == "failed" and job.progress.failed == 1


def test_a_job_can_go_on_past_failures_and_reports_them_at_the_end():
    def call(x: int) -> int:
        if x % 10 == 3:
            raise ValueError(f"bad {x}")
        if x == 50:
            return [][x]
        return x

    job = burla.submit(call, range(100), on_error="continue")
    with pytest.raises((ValueError, IndexError)) as caught:
        job.results()
    good = {x: x for x in range(100) if x % 10 != 3 and x != 50}
    assert caught.value.burla_results == good
    assert job.status == "failed" and (job.progress.done, job.progress.failed) == (89, 11)
    most, other = job.errors()
    assert (most.type_name, most.count, sorted(most.inputs)) == ("ValueError", 10, [3 + 10 * n for n in range(10)])
    assert most.message.startswith("bad ") and most.line.startswith("test_job.py:") and "bad" in most.traceback
    assert (other.type_name, other.count, other.inputs) == ("IndexError", 1, (50,))
    assert most.line != other.line


def test_without_failures_there_are_no_errors():
    job = burla.submit(lambda x: x, range(5), on_error="continue")
    job.wait()
    assert job.errors() == [] and job.results() == list(range(5))


# output ---------------------------------------------------------------------------------------------------------------


def test_logs_are_lines_of_all_calls_or_of_one_or_of_one_stream():
    def call(x: int) -> bytes:
        import sys

        print(f"out {x}\nmore {x}")
        print(f"err {x}", file=sys.stderr)
        return b"x" * 10

    job = burla.submit(call, range(20))
    job.wait()
    everything = list(job.logs())
    assert len(everything) == 60
    assert {(line.input_index, line.stream, line.text) for line in everything} == {
        (x, stream, f"{word} {x}")
        for x in range(20)
        for word, stream in (("out", "stdout"), ("more", "stdout"), ("err", "stderr"))
    }
    assert [str(line) for line in job.logs(7, "stdout")] == ["out 7", "more 7"]
    assert sorted(map(str, job.logs(input_index=7))) == ["err 7", "more 7", "out 7"]
    assert {line.stream for line in job.logs(stream="stderr")} == {"stderr"}
    assert [str(line) for line in job.logs(7, "stderr", follow=True)] == ["err 7"]
    assert list(job.logs(99)) == []
    with pytest.raises(TypeError, match='stream=1: it must be None, "stdout" or "stderr"'):
        job.logs(stream=1)  # type: ignore[arg-type]


def test_logs_are_followed_live_from_the_first_line(gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> None:
        print(f"before {x}", flush=True)
        wait()
        print(f"after {x}", flush=True)

    job = burla.submit(call, range(2))
    lines = job.logs(follow=True)
    assert {str(next(lines)), str(next(lines))} == {"before 0", "before 1"}
    assert sorted(map(str, job.logs())) == ["before 0", "before 1"], "without follow it ends with what there is"
    of_one = job.logs(1, follow=True)
    assert str(next(of_one)) == "before 1"
    gate.open()
    assert sorted(map(str, lines)) == ["after 0", "after 1"]
    assert list(map(str, of_one)) == ["after 1"]


# inputs and course ----------------------------------------------------------------------------------------------------


def test_inputs_can_be_read_again():
    values: list[Any] = [1, "two", (3, 3), {"four": 4}, None, *range(10_000)]
    job = burla.submit(lambda *x: 0, values)
    assert [job.input(index) for index in (0, 1, 2, 3, 4, 5, 9999, 10_004)] == [
        1, "two", (3, 3), {"four": 4}, None, 0, 9994, 9999,
    ]  # fmt: skip
    for index in (-1, 10_005):
        with pytest.raises(IndexError, match=f"no input {index}: they are numbered from 0 to 10004"):
            job.input(index)


def test_cancelling_stops_the_calls_and_keeps_what_there_is(gate: Gate, ledger: Ledger):
    write, wait = ledger.writer(), gate.waiter()

    def call(x: int) -> int:
        if x > 3:
            write(x)
            wait()
        return x

    job = burla.submit(call, range(100))
    wait_until(lambda: len(ledger.entries()) == 2 and job.progress.done == 4, what="two waiting calls")
    job.cancel()
    assert job.status == "cancelled" and job.progress.running == 0
    with pytest.raises(JobCancelled, match=f"job {job.id} was cancelled") as caught:
        job.results()
    assert caught.value.burla_results == {x: x for x in range(4)}
    gate.open()
    assert len(ledger.entries()) == 2
    job.cancel()
    assert job.status == "cancelled"


def test_a_deleted_job_is_gone_and_an_unfinished_one_is_not_deleted(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: True), range(2))
    with pytest.raises(JobUnfinished, match=job.id):
        job.delete()
    gate.open()
    assert job.results() == [0, 1]
    job.delete()
    for gone in (job.results, job.errors, job.delete, lambda: job.input(0), lambda: list(job.logs())):
        with pytest.raises(UnknownJob):
            gone()
    assert job.id not in [one.id for one in burla.jobs()]


def test_a_job_finds_its_cluster_again_after_its_connection_was_closed(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x == 1), range(3))
    results = job.iter_results()
    assert next(results)[1] in (0, 2)
    current.forget()
    threading.Timer(0.5, gate.open).start()
    assert len(list(results)) == 2
    current.forget()
    assert job.results() == [0, 1, 2]


def test_a_waiting_thread_goes_on_when_another_one_closes_the_connection(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: True), range(2))
    read: list[list[int]] = []
    thread = threading.Thread(target=lambda: read.append(job.results()))
    thread.start()
    time.sleep(0.3)  # it waits in a poll, most likely; if not, the test is easier to pass
    current.forget()
    gate.open()
    thread.join(30)
    assert read == [[0, 1]]


# how it shows ---------------------------------------------------------------------------------------------------------


def test_a_job_shows_as_a_line_and_as_static_html(gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> int:
        if x:
            wait()
        return x

    call.__name__ = "<b>call"
    job = burla.submit(call, range(3))
    wait_until(lambda: f"<burla job {job.id}: <b>call, running, 1/3 done>" == repr(job), what="the line")
    bundle = job._repr_mimebundle_()
    assert bundle["text/plain"] == repr(job)
    assert "&lt;b&gt;call" in bundle["text/html"] and "<b>call" not in bundle["text/html"]
    assert "<script" not in bundle["text/html"] and "running, 1/3 done" in bundle["text/html"]
    gate.open()
    job.wait()
    assert repr(job) == f"<burla job {job.id}: <b>call, done, 3/3 done>"


def test_a_repr_neither_fails_nor_starts_anything_when_there_is_no_connection(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: True), range(3))
    current.forget()
    before = repr(job)
    assert before.startswith(f"<burla job {job.id}: call, ") and "0/3 done" in before
    assert not current._connections


def test_a_job_survives_pickling():
    job = burla.submit(lambda x: x, range(3))
    copy = pickle.loads(pickle.dumps(job))
    assert copy.id == job.id and copy.results() == [0, 1, 2]


def test_results_that_cannot_be_loaded_here_say_so():
    def call(x: int) -> Any:
        class Evil:
            def __reduce__(self) -> Any:
                return int, ("no number",)

        return Evil()

    job = burla.submit(call, range(2))
    with pytest.raises(BurlaError, match=r"inputs \d to \d ran; their results cannot be loaded here") as caught:
        job.results()
    assert caught.value.burla_job is job and not isinstance(caught.value, StoreDamaged)
    job.wait()
    assert job.status == "done"


def test_a_job_is_of_the_user_who_asked_for_it(monkeypatch: pytest.MonkeyPatch):
    mine = burla.submit(lambda x: x, [1])
    monkeypatch.setenv("LOGNAME", "somebody-else")
    theirs = burla.submit(lambda x: x, [2])
    assert burla.attach().id == theirs.id
    monkeypatch.undo()
    assert getpass.getuser() != "somebody-else"
    assert burla.attach().id == mine.id
    monkeypatch.setenv("LOGNAME", "nobody-yet")
    with pytest.raises(UnknownJob, match="nobody-yet has no job"):
        burla.attach()
