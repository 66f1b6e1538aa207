"""The pure job: by examples, then by random orders of events against a model that keeps each input one by one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from burla.errors import JobCancelled
from burla.head.jobs import (
    ATTEMPTS,
    Adopted,
    AllReleased,
    CallCrashed,
    CallEvicted,
    CallFailed,
    CallsDone,
    CancelAsked,
    End,
    FailCrashed,
    FailEvicted,
    Handed,
    HandedBack,
    InputsAdded,
    InputsComplete,
    Job,
    JobEvent,
    LeaseGranted,
    NodeLost,
    NoteCrash,
    Record,
    StopCalls,
)
from burla.protocol import Crash, Evicted, Failure, JobState, Results

S = JobState
RAM = 8_000_000_000  # of every node
STOP = JobCancelled("stop")


def started(*counts: int, nodes: tuple[str, ...] = ("n",)) -> Job:
    """A running job with blocks of these sizes."""
    job = Job()
    job.apply(InputsAdded(counts))
    job.apply(InputsComplete())
    for node in nodes:
        job.apply(LeaseGranted(node))
    return job


def done(start: int, stop: int, node: str = "n") -> CallsDone:
    return CallsDone(node, Results(start, stop, False, b""))


def failed(index: int, node: str = "n") -> CallFailed:
    return CallFailed(node, Failure(index, b""))


def crashed(index: int, node: str = "n") -> CallCrashed:
    return CallCrashed(node, Crash(index, 9, None))


def evicted(index: int, beside: int = 1, hopeless: bool = False, need_bytes: int = 0, node: str = "n") -> CallEvicted:
    return CallEvicted(node, Evicted(index, 1000, RAM, beside, RAM // 2 * beside, 0, False), hopeless, need_bytes)


# examples -------------------------------------------------------------------------------------------------------------


def test_nothing_is_handed_out_before_the_last_input_is_there():
    job = Job()
    job.apply(InputsAdded((3,)))
    job.apply(LeaseGranted("n"))
    assert job.state is S.RECEIVING and job.take("n", 3, RAM) == []
    job.apply(InputsComplete())
    job.apply(LeaseGranted("n"))
    assert job.state is S.RUNNING and job.take("n", 3, RAM) == [Handed(0, 0, 3, False)]


def test_calls_are_handed_out_in_order_and_never_across_blocks():
    job = started(3, 2)
    job.apply(InputsAdded(()))
    assert job.take("n", 2, RAM) == [Handed(0, 0, 2, False)]
    assert job.take("n", 9, RAM) == [Handed(0, 2, 3, False), Handed(1, 3, 5, False)]
    assert job.take("n", 9, RAM) == []


def test_blocks_of_later_messages_are_numbered_on():
    job = Job()
    for counts in ((2, 2), (3,), (1, 1)):
        job.apply(InputsAdded(counts))
    job.apply(InputsComplete())
    job.apply(LeaseGranted("n"))
    stretches = [(0, 0, 2), (1, 2, 4), (2, 4, 7), (3, 7, 8), (4, 8, 9)]
    assert job.take("n", 99, RAM) == [Handed(*stretch, False) for stretch in stretches]


def test_results_are_recorded_and_the_last_one_ends_the_job():
    job = started(3)
    job.take("n", 3, RAM)
    assert job.apply(done(1, 3)) == [Record(Results(1, 3, False, b""))]
    assert job.apply(done(0, 1)) == [Record(Results(0, 1, False, b"")), StopCalls(), End(S.DONE)]
    assert job.state is S.DONE and job.apply(AllReleased()) == []


def test_a_failure_stops_the_job_and_only_the_first_is_recorded():
    job = started(3)
    job.take("n", 3, RAM)
    assert job.apply(failed(1)) == [Record(Failure(1, b"")), StopCalls()]
    assert job.apply(failed(2)) == []
    assert job.apply(done(0, 1)) == [Record(Results(0, 1, False, b""))], "what was done is not lost"
    assert job.apply(AllReleased()) == [End(S.FAILED)]


def test_a_failed_job_hands_out_nothing():
    job = started(3)
    job.take("n", 1, RAM)
    job.apply(failed(0))
    assert job.take("n", 3, RAM) == []


def test_a_crashed_call_is_retried_alone_before_the_others():
    job = started(5)
    job.take("n", 2, RAM)
    assert job.apply(crashed(1)) == [NoteCrash(1, 1)]
    assert job.take("n", 3, RAM) == [Handed(0, 1, 2, True), Handed(0, 2, 4, False)]


def test_the_third_crash_of_an_input_fails_the_job():
    job = started(2)
    for _ in range(ATTEMPTS - 1):
        job.take("n", 1, RAM)
        assert [type(effect) for effect in job.apply(crashed(0))] == [NoteCrash]
    job.take("n", 1, RAM)
    assert job.apply(crashed(0)) == [FailCrashed(Crash(0, 9, None), 3), StopCalls()]
    assert job.apply(AllReleased()) == [End(S.FAILED)]


def test_crashes_of_different_inputs_are_counted_apart():
    job = started(3)
    for index in (0, 1, 2) * (ATTEMPTS - 1):
        job.take("n", 3, RAM)
        assert [type(effect) for effect in job.apply(crashed(index))] == [NoteCrash]
    assert job.state is S.RUNNING
    job.take("n", 3, RAM)
    assert [type(effect) for effect in job.apply(crashed(1))] == [FailCrashed, StopCalls]


@pytest.mark.parametrize("way_back", [HandedBack("n", 0, 3), NodeLost("n")], ids=lambda event: type(event).__name__)
def test_a_call_that_crashed_stays_alone_when_it_comes_back_untried(way_back: JobEvent):
    job = started(3)
    job.take("n", 3, RAM)
    job.apply(crashed(1))
    job.take("n", 3, RAM)
    job.apply(way_back)
    assert job.take("n", 9, RAM) == [Handed(0, 1, 2, True), Handed(0, 0, 1, False), Handed(0, 2, 3, False)]


def test_a_lost_node_gives_its_calls_back_and_its_late_reports_change_nothing():
    job = started(4, nodes=("n", "other"))
    job.take("n", 4, RAM)
    job.apply(done(0, 1))
    job.apply(NodeLost("n"))
    assert job.take("other", 9, RAM) == [Handed(0, 1, 4, False)]
    for late in (done(1, 4), failed(2), crashed(3), HandedBack("n", 1, 4), NodeLost("n")):
        assert job.apply(late) == []
    assert job.done == 1 and job.take("n", 9, RAM) == []
    assert job.apply(done(1, 4, "other"))[-1] == End(S.DONE)


def test_a_report_of_more_than_was_handed_to_the_node_changes_nothing():
    job = started(4, nodes=("n", "other"))
    job.take("n", 2, RAM)
    job.take("other", 2, RAM)
    assert job.apply(done(1, 3)) == [] and job.apply(done(0, 4)) == [] and job.apply(failed(3)) == []
    assert job.done == 0 and job.state is S.RUNNING


def test_the_same_result_twice_counts_once():
    job = started(3)
    job.take("n", 3, RAM)
    assert len(job.apply(done(0, 2))) == 1 and job.apply(done(0, 2)) == []
    assert job.done == 2


@pytest.mark.parametrize("state", [S.RECEIVING, S.WAITING, S.RUNNING], ids=lambda state: state.value)
def test_a_job_can_be_cancelled_in_every_state_before_its_end(state: JobState):
    job = Job()
    job.apply(InputsAdded((2,)))
    if state is not S.RECEIVING:
        job.apply(InputsComplete())
    if state is S.RUNNING:
        job.apply(LeaseGranted("n"))
    assert job.state is state
    assert job.apply(CancelAsked(STOP)) == [StopCalls()]
    assert job.apply(CancelAsked(JobCancelled("again"))) == []
    assert job.unfinished == 0
    assert job.apply(AllReleased()) == [End(S.CANCELLED, STOP)]


def test_cancelling_a_job_that_has_failed_keeps_the_failure():
    job = started(2)
    job.take("n", 2, RAM)
    job.apply(failed(0))
    job.apply(CancelAsked(STOP))
    assert job.apply(AllReleased()) == [End(S.FAILED)]


def test_nothing_is_recorded_after_the_end():
    job = started(2)
    job.take("n", 2, RAM)
    job.apply(CancelAsked(STOP))
    job.apply(AllReleased())
    for late in (done(0, 2), failed(0), crashed(1), CancelAsked(STOP), AllReleased(), InputsAdded((1,))):
        assert job.apply(late) == []
    assert job.state is S.CANCELLED and job.done == 0 and job.total == 2


def test_a_call_that_was_ended_for_want_of_memory_is_tried_again_alone_and_is_no_crash():
    job = started(3)
    job.take("n", 3, RAM)
    for _ in range(2 * ATTEMPTS):
        assert job.apply(evicted(1)) == []
        assert job.take("n", 9, RAM) == [Handed(0, 1, 2, True)]
    assert job.retries == 2 * ATTEMPTS
    assert job.apply(crashed(1)) == [NoteCrash(1, 1)]


def test_a_call_that_needs_a_larger_node_waits_for_it_and_holds_nobody_up():
    job = started(3, nodes=("n", "large"))
    job.take("n", 1, RAM)
    assert job.apply(evicted(0, beside=0, need_bytes=RAM + 1)) == []
    assert job.take("n", 1, RAM) == [Handed(0, 1, 2, False)]
    assert job.next_stretch(RAM) == (2, 3) and job.next_stretch(2 * RAM) == (0, 1)
    job.take("n", 1, RAM)
    assert job.take("n", 9, RAM) == [] and job.waiting == 1
    assert job.take("large", 9, 2 * RAM) == [Handed(0, 0, 1, True)]


def test_only_what_a_call_could_not_blame_on_others_counts_against_it():
    job = started(1)
    for beside in (1, 1, 0):
        job.take("n", 1, RAM)
        job.apply(evicted(0, beside=beside))
    assert job.evictions(0) == 3 and job.evictions(0, alone=True) == 1


def test_a_node_is_of_use_unless_all_that_waits_needs_a_larger_one():
    job = started(3, nodes=("n", "large"))
    assert job.has_work_for("n", RAM)
    job.take("n", 3, RAM)
    for index in (0, 1):
        job.apply(evicted(index, beside=0, need_bytes=2 * RAM))
    assert job.has_work_for("n", RAM), "a call runs there"
    job.apply(evicted(2, beside=0, need_bytes=2 * RAM))
    assert not job.has_work_for("n", RAM) and job.has_work_for("large", 2 * RAM)
    job.lower_needs(None)
    assert not job.has_work_for("n", RAM), "no node is left: another may come"
    job.lower_needs(RAM)
    assert job.has_work_for("n", RAM), "the larger one is lost: it is tried where it can"


def test_it_is_known_whether_a_call_waits_for_the_room_that_it_did_not_have():
    job = started(2, nodes=("n", "large"))
    job.take("n", 1, RAM)
    assert not job.waits_for_room
    job.apply(evicted(0))
    assert job.waits_for_room
    job.take("n", 1, RAM)
    assert not job.waits_for_room
    job.apply(evicted(0, beside=0, need_bytes=2 * RAM))
    assert not job.waits_for_room, "it waits for another node"


def test_a_call_that_no_node_has_memory_for_fails_and_is_not_tried_again():
    job = started(2)
    job.take("n", 2, RAM)
    event = evicted(0, beside=0, hopeless=True)
    assert job.apply(event) == [FailEvicted(event.evicted), StopCalls()]
    assert job.failed == 1 and job.waiting == 0


# any order of events --------------------------------------------------------------------------------------------------

MOVES = {  # every change of state that an event may cause
    InputsComplete: {(S.RECEIVING, S.WAITING), (S.RECEIVING, S.DONE)},
    LeaseGranted: {(S.WAITING, S.RUNNING)},
    CallsDone: {(S.RUNNING, S.DONE), (S.RUNNING, S.FAILED)},
    CallFailed: {(S.RUNNING, S.STOPPING), (S.RUNNING, S.FAILED)},
    CallCrashed: {(S.RUNNING, S.STOPPING), (S.RUNNING, S.FAILED)},
    CancelAsked: {(S.RECEIVING, S.STOPPING), (S.WAITING, S.STOPPING), (S.RUNNING, S.STOPPING)},
    AllReleased: {(S.STOPPING, S.FAILED), (S.STOPPING, S.CANCELLED)},
}
nodes = st.sampled_from("abc")


class AnyOrder(RuleBasedStateMachine):
    """Nodes report what they were handed, hand it back, crash on it, vanish, and report again what is not theirs."""

    handed = Bundle("handed")  # all that was ever handed to somebody: the source of true, late and doubled reports

    def __init__(self) -> None:
        super().__init__()
        self.job = Job()
        self.go_on = False
        self.at: dict[int, str] = {}  # input → "waiting", "done", "failed", or the node that has it
        self.crashes: Counter[int] = Counter()
        self.recorded: Counter[int] = Counter()
        self.failures = 0
        self.stops = 0
        self.ends: list[End] = []

    def apply(self, event: JobEvent) -> list[Any]:
        before = self.job.state
        effects = self.job.apply(event)
        after = self.job.state
        assert after is before or (before, after) in MOVES.get(type(event), ()), f"{before} -> {after} by {event}"
        assert not self.ends or not effects, "the end is the last that is heard"
        for effect in effects:
            match effect:
                case Record(Results(start, stop)):
                    self.recorded.update(range(start, stop))
                case Record(Failure()) | FailCrashed():
                    self.failures += 1
                case StopCalls():
                    self.stops += 1
                case End():
                    self.ends.append(effect)
        return effects

    def has(self, node: str, start: int, stop: int) -> bool:
        return not self.ends and all(self.at[index] == node for index in range(start, stop))

    def move(self, start: int, stop: int, to: str) -> None:
        self.at.update(dict.fromkeys(range(start, stop), to))

    # the client

    @initialize(
        counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
        runs=st.sampled_from([True, True, False]),
        go_on=st.booleans(),
    )
    def first_inputs(self, counts: list[int], runs: bool, go_on: bool) -> None:
        self.job, self.go_on = Job(go_on), go_on
        self.add(counts)
        if runs:
            self.complete()
            self.grant("a")

    @precondition(lambda self: self.job.state is S.RECEIVING)
    @rule(counts=st.lists(st.integers(1, 6), max_size=3))
    def add(self, counts: list[int]) -> None:
        for _ in range(sum(counts)):
            self.at[len(self.at)] = "waiting"
        assert self.apply(InputsAdded(tuple(counts))) == []

    @precondition(lambda self: self.job.state is S.RECEIVING)
    @rule(start=st.integers(0, 9), size=st.integers(1, 5))
    def adopt(self, start: int, size: int) -> None:
        """Another job has had results of these inputs."""
        stop = min(start + size, len(self.at))
        assert self.apply(Adopted(start, stop)) == []
        new = [index for index in range(start, stop) if self.at[index] == "waiting"]
        self.recorded.update(new)
        self.at.update(dict.fromkeys(new, "done"))

    @rule()
    def complete(self) -> None:
        self.apply(InputsComplete())

    @precondition(lambda self: len(self.at) > 12)  # not at the beginning of everything
    @rule()
    def cancel(self) -> None:
        self.apply(CancelAsked(STOP))

    # the nodes

    @rule(node=nodes)
    def grant(self, node: str) -> None:
        self.apply(LeaseGranted(node))

    @rule(target=handed, node=nodes, want=st.integers(0, 9))
    def take(self, node: str, want: int) -> MultipleResults[tuple[str, int, int]]:
        got = self.job.take(node, want, RAM)
        waiting = sum(where == "waiting" for where in self.at.values())
        calls = sum(one.stop - one.start for one in got)
        assert calls == (min(want, waiting) if self.job.state is S.RUNNING else 0)
        for one in got:
            assert all(self.at[index] == "waiting" for index in range(one.start, one.stop))
            assert one.stop <= self.job.block_end(one.block)
            assert one.alone == any(self.crashes[index] for index in range(one.start, one.stop))
            assert not one.alone or one.stop == one.start + 1
            self.move(one.start, one.stop, node)
        return multiple(*((node, one.start, one.stop) for one in got))

    @rule(one=handed, low=st.integers(0, 8), size=st.integers(1, 9), who=st.none() | nodes)
    def report_done(self, one: tuple[str, int, int], low: int, size: int, who: str | None) -> None:
        node, start, stop = self.part(one, low, size, who)
        valid = self.has(node, start, stop)
        effects = self.apply(CallsDone(node, Results(start, stop, False, b"")))
        assert bool(effects) == valid
        if valid:
            self.move(start, stop, "done")

    @rule(one=handed, low=st.integers(0, 8), who=st.none() | nodes)
    def report_failure(self, one: tuple[str, int, int], low: int, who: str | None) -> None:
        node, start, stop = self.part(one, low, 1, who)
        valid = self.has(node, start, stop)
        running = self.job.state is S.RUNNING
        effects = self.apply(CallFailed(node, Failure(start, b"")))
        counts = valid and running
        assert effects[:1] == ([Record(Failure(start, b""))] if counts else [])
        assert (StopCalls() in effects) == (counts and (not self.go_on or bool(self.ends)))
        if valid:
            self.move(start, stop, "failed" if running else "waiting")

    @rule(one=handed, low=st.integers(0, 8), who=st.none() | nodes)
    def report_crash(self, one: tuple[str, int, int], low: int, who: str | None) -> None:
        node, start, stop = self.part(one, low, 1, who)
        valid = self.has(node, start, stop)
        running = self.job.state is S.RUNNING
        effects = self.apply(CallCrashed(node, Crash(start, 9, None)))
        if not valid:
            assert effects == []
            return
        self.crashes[start] += 1
        self.move(start, stop, "waiting")
        last = running and self.crashes[start] == ATTEMPTS
        if not last:
            assert effects == [NoteCrash(start, self.crashes[start])]
            return
        self.move(start, stop, "failed")
        assert effects[0] == FailCrashed(Crash(start, 9, None), ATTEMPTS)
        assert (StopCalls() in effects) == (not self.go_on or bool(self.ends))

    @rule(node=nodes, start=st.integers(0, 12), size=st.integers(1, 9))
    def claim(self, node: str, start: int, size: int) -> None:
        """A node comes back, and still has these calls."""
        stop = min(start + size, len(self.at))
        if start >= stop:
            return
        kept = {index for low, high in self.job.claim(node, ((start, stop),)) for index in range(low, high)}
        waiting = {index for index in range(start, stop) if self.at[index] == "waiting"}
        assert kept == (waiting if self.job.state is S.RUNNING else set())
        self.at.update(dict.fromkeys(kept, node))

    @rule(one=handed, low=st.integers(0, 8), size=st.integers(1, 9), who=st.none() | nodes)
    def hand_back(self, one: tuple[str, int, int], low: int, size: int, who: str | None) -> None:
        node, start, stop = self.part(one, low, size, who)
        assert self.apply(HandedBack(node, start, stop)) == []
        if self.has(node, start, stop):
            self.move(start, stop, "waiting")

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        assert self.apply(NodeLost(node)) == []
        if not self.ends:
            self.at = {index: "waiting" if where == node else where for index, where in self.at.items()}

    @precondition(lambda self: self.job.state is not S.RUNNING)
    @rule()
    def all_released(self) -> None:
        self.apply(AllReleased())

    def part(self, one: tuple[str, int, int], low: int, size: int, who: str | None) -> tuple[str, int, int]:
        """A part of what was handed out once, as reported by who has it, or by somebody else."""
        node, start, stop = one
        low = min(start + low, stop - 1)
        return who or node, low, min(stop, low + size)

    # what always holds

    @invariant()
    def every_input_is_in_exactly_one_place(self) -> None:
        job = self.job
        places = Counter(job.alone)
        for ranges in (job.pending, *job.handed.values()):
            places.update(index for start, stop in ranges for index in range(start, stop))
        done = {index for index, where in self.at.items() if where == "done"}
        failed = {index for index, where in self.at.items() if where == "failed"}
        assert job.total == len(self.at) and job.done == len(done) and job.failed == len(failed)
        assert places == Counter(set(self.at) - done - failed)
        for node, ranges in job.handed.items():
            held = {index for start, stop in ranges for index in range(start, stop)}
            assert held == {index for index, where in self.at.items() if where == node}
        assert job.waiting == sum(where == "waiting" for where in self.at.values())

    @invariant()
    def every_input_is_recorded_once_and_only_if_it_is_done(self) -> None:
        assert self.recorded == Counter(index for index, where in self.at.items() if where == "done")
        assert self.failures == self.job.failed <= (1 if not self.go_on else self.job.total)

    @invariant()
    def no_input_is_tried_again_after_its_last_attempt(self) -> None:
        if self.job.state is S.RUNNING:
            assert all(n < ATTEMPTS for index, n in self.crashes.items() if self.at[index] != "failed")

    @invariant()
    def the_end_comes_once_and_is_told(self) -> None:
        assert len(self.ends) == self.job.state.ended and self.stops <= 1
        if self.ends:
            assert self.ends[0].state is self.job.state
            assert self.job.state is not S.DONE or self.job.done == self.job.total
            assert self.failures or self.job.state is not S.FAILED
            assert not self.failures or self.job.state is S.FAILED or (self.go_on and self.job.state is S.CANCELLED)
            assert (self.ends[0].error is STOP) == (self.job.state is S.CANCELLED)

    def teardown(self) -> None:
        """Whatever has happened, the job can be brought to its end."""
        if self.job.state is S.RECEIVING and not self.at:
            self.add([1])
        self.complete()
        self.grant("z")
        for node in "abc":
            self.lose(node)
        while self.job.state is S.RUNNING:
            slices = self.job.take("z", 5, RAM)
            assert slices, "inputs are left, and none can be had"
            for one in slices:
                self.move(one.start, one.stop, "z")
                assert self.apply(CallsDone("z", Results(one.start, one.stop, False, b"")))
                self.move(one.start, one.stop, "done")
        self.apply(AllReleased())
        assert len(self.ends) == 1
        self.every_input_is_in_exactly_one_place()
        self.every_input_is_recorded_once_and_only_if_it_is_done()
        self.the_end_comes_once_and_is_told()


AnyOrder.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, report_multiple_bugs=False
)
test_any_order_of_events = AnyOrder.TestCase
