"""Failures of a job, grouped; and what a job that lost results says. No cluster is needed for this."""

from __future__ import annotations

import linecache
import pickle
import traceback

from burla import serialize
from burla.client.outcome import Outcome
from burla.display.failures import ErrorGroup, FailureGroups, with_lines
from burla.errors import JobCancelled, NoCompatibleNodes, StoreDamaged, WorkerCrashed
from burla.protocol import Ended, Event, Failure, JobState, Lost


def group(events: list[Event]) -> list[ErrorGroup]:
    groups = FailureGroups()
    for event in events:
        groups.add(event)
    return groups.groups()


def failure(index: int, divisor: int | None = 0) -> Failure:
    try:
        if divisor is None:
            [][index]
        10 // divisor  # type: ignore[operator]
    except (ZeroDivisionError, IndexError) as error:
        return Failure(index, serialize.dump_exception(error, index))
    raise AssertionError


def test_failures_are_grouped_by_type_and_line_with_the_largest_group_first():
    class Unknown(Exception):  # nobody who reads this can import it
        pass

    crash = WorkerCrashed.of(50, 9, None, 3)
    events = [
        failure(3, None),
        *(failure(index) for index in range(10, 40)),
        Failure(50, serialize.dump_exception(crash, 50)),
        Failure(60, serialize.dump_exception(Unknown("strange"), 60)),
    ]
    divided, *others = group(events)
    line = next(n for n, text in enumerate(open(__file__), 1) if text.startswith("        10 // divisor"))
    assert (divided.type_name, divided.line, divided.count) == ("ZeroDivisionError", f"test_errors.py:{line}", 30)
    assert divided.inputs == tuple(range(10, 20)) and "by zero" in divided.message
    assert divided.traceback.startswith("Traceback") and divided.traceback.rstrip().endswith(divided.message)
    assert {(one.type_name.rpartition(".")[2], one.count, one.inputs) for one in others} == {
        ("IndexError", 1, (3,)),
        ("WorkerCrashed", 1, (50,)),
        ("Unknown", 1, (60,)),
    }
    assert {one.line for one in others if one.inputs != (3,)} == {""}


def test_a_traceback_gets_the_lines_that_only_this_process_has():
    source = "def f(x):\n    return 1 // x\n"
    linecache.cache["<a cell>"] = (len(source), None, source.splitlines(keepends=True), "<a cell>")
    text = (
        'Traceback (most recent call last):\n  File "<a cell>", line 2, in f\n  File "<gone>", line 1, in g\nError: x\n'
    )
    assert with_lines(text).splitlines()[1:4] == [
        '  File "<a cell>", line 2, in f',
        "    return 1 // x",
        '  File "<gone>", line 1, in g',
    ]
    assert with_lines(with_lines(text)) == with_lines(text)


def test_what_ended_the_job_itself_is_of_no_input():
    ended = Ended(JobState.FAILED, pickle.dumps(NoCompatibleNodes("no GPU here", asked="A100", available="none")))
    (one,) = group([ended])
    assert (one.type_name, one.message, one.count, one.inputs) == ("NoCompatibleNodes", "no GPU here", 0, ())
    assert group([Ended(JobState.DONE)]) == []


def test_an_outcome_is_the_first_failure_else_what_ended_the_job_else_what_is_lost():
    done = Outcome("a1")
    done.note(Ended(JobState.DONE))
    assert done.over and done.error is None

    cancelled = Outcome("a1")
    cancelled.note(Ended(JobState.CANCELLED))
    assert isinstance(cancelled.error, JobCancelled)

    lost = Outcome("a1")
    for start in range(0, 60, 5):
        lost.note(Lost(start, start + 1, "its file is gone"))
    lost.lose(70, 90)
    error = lost.error
    assert isinstance(error, StoreDamaged) and not lost.over
    assert error.lost == (*((start, start + 1) for start in range(0, 60, 5)), (70, 90))
    assert "of inputs 0, 5, 10, 15, 20, 25, 30, 35, 40, 45 and 3 more stretches cannot be read" in str(error)
    assert "job.retry_failed() computes these again" in str(error)

    lost.note(failure(7))
    lost.note(failure(8))
    lost.note(Ended(JobState.FAILED))
    assert isinstance(lost.error, ZeroDivisionError) and lost.error.burla_input_index == 7
    assert "10 // divisor" in "".join(traceback.format_exception(lost.error))
