"""A job as a pure state machine: events in, effects out. No clock, no I/O.

                   InputsComplete          LeaseGranted           last outcome
    RECEIVING ───────────────► WAITING ───────────────► RUNNING ─────────────► DONE
        │                         │                        │
        └──── CancelAsked ────────┴── CallFailed, crashes ─┴──► STOPPING ──► FAILED, CANCELLED
                                                                       AllReleased

Every input is in exactly one place: pending, to be retried alone, handed to one node, or done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from burla.errors import BurlaError
from burla.head.ranges import Ranges
from burla.protocol import Crash, Failure, JobState, Results

ATTEMPTS = 3  # of a call whose process dies: the first, and two alone


# events


@dataclass(frozen=True, slots=True)
class InputsAdded:
    counts: tuple[int, ...]  # of each block


@dataclass(frozen=True, slots=True)
class InputsComplete:
    pass


@dataclass(frozen=True, slots=True)
class LeaseGranted:
    node: str


@dataclass(frozen=True, slots=True)
class CallsDone:
    node: str
    results: Results


@dataclass(frozen=True, slots=True)
class CallFailed:
    node: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class CallCrashed:
    node: str
    crash: Crash


@dataclass(frozen=True, slots=True)
class HandedBack:
    node: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class NodeLost:
    node: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    error: BurlaError  # what a client that still listens is told


@dataclass(frozen=True, slots=True)
class AllReleased:
    """No node runs calls of the job any more."""


JobEvent = (
    InputsAdded
    | InputsComplete
    | LeaseGranted
    | CallsDone
    | CallFailed
    | CallCrashed
    | HandedBack
    | NodeLost
    | CancelAsked
    | AllReleased
)


# effects


@dataclass(frozen=True, slots=True)
class Record:
    """Write the outcome into the journal."""

    outcome: Results | Failure


@dataclass(frozen=True, slots=True)
class FailCrashed:
    """The call crashed for the last time: record a WorkerCrashed."""

    crash: Crash
    attempts: int


@dataclass(frozen=True, slots=True)
class StopCalls:
    """End all leases of the job, then tell it `AllReleased`."""


@dataclass(frozen=True, slots=True)
class End:
    """The job is over."""

    state: JobState
    error: BurlaError | None = None


Effect = Record | FailCrashed | StopCalls | End


@dataclass(frozen=True, slots=True)
class Handed:
    """Calls given to a node, all of one block."""

    block: int
    start: int
    stop: int
    alone: bool


_S = JobState
NEXT = {
    (_S.RECEIVING, InputsComplete): _S.WAITING,
    (_S.WAITING, LeaseGranted): _S.RUNNING,
    (_S.RECEIVING, CancelAsked): _S.STOPPING,
    (_S.WAITING, CancelAsked): _S.STOPPING,
    (_S.RUNNING, CancelAsked): _S.STOPPING,
    (_S.RUNNING, CallFailed): _S.STOPPING,
}


class Job:
    """The inputs of one job, and where each of them is."""

    def __init__(self) -> None:
        self.state = JobState.RECEIVING
        self.total = 0
        self.done = 0
        self.pending = Ranges()
        self.alone: deque[int] = deque()
        self.handed: dict[str, Ranges] = {}
        self._block_firsts: list[int] = []
        self._crashes: dict[int, int] = {}
        self._failed = False
        self._error: BurlaError | None = None

    @property
    def waiting(self) -> int:
        """Return how many calls wait for a node."""
        return self.pending.count + len(self.alone)

    @property
    def unfinished(self) -> int:
        return self.total - self.done if self.state in (JobState.WAITING, JobState.RUNNING) else 0

    def block_end(self, block: int) -> int:
        """Return the index after the last input of a block."""
        return self._block_firsts[block + 1] if block + 1 < len(self._block_firsts) else self.total

    def first_stretch(self) -> int:
        """Return how many calls, all of one block, `take` hands out first; 1 if there are none."""
        if self.alone or not self.pending:
            return 1
        start, stop = self.pending.first()
        return min(stop, self.block_end(bisect_right(self._block_firsts, start) - 1)) - start

    def take(self, node: str, want: int) -> list[Handed]:
        """Hand out up to `want` calls to a node: retries first, then in order of their indices."""
        taken: list[Handed] = []
        if self.state is not JobState.RUNNING:
            return taken
        ranges = self.handed.setdefault(node, Ranges())
        while want > 0 and self.waiting:
            if self.alone:
                start, stop, alone = (index := self.alone.popleft()), index + 1, True
            else:
                start, stop = self.pending.first()
                alone = False
            block = bisect_right(self._block_firsts, start) - 1
            stop = min(stop, start + want, self.block_end(block))
            if not alone:
                self.pending.remove(start, stop)
            ranges.add(start, stop)
            taken.append(Handed(block, start, stop, alone))
            want -= stop - start
        return taken

    def apply(self, event: JobEvent) -> list[Effect]:
        """Take an event in; return what has to be done. Events that come too late change nothing."""
        if self.state.ended:
            return []
        match event:
            case InputsAdded(counts):
                if counts:
                    self._block_firsts += accumulate(counts[:-1], initial=self.total)
                start, self.total = self.total, self.total + sum(counts)
                self.pending.add(start, self.total)
                return []
            case CallsDone(node, results):
                return self._done(node, results)
            case CallFailed(node, failure):
                if not self._take_back(node, failure.index, failure.index + 1):
                    return []
                self.pending.add(failure.index, failure.index + 1)
                if self.state is not JobState.RUNNING:
                    return []
                self._failed = True
                return [Record(failure), *self._move(event)]
            case CallCrashed(node, crash):
                return self._crashed(node, crash)
            case HandedBack(node, start, stop):
                if self._take_back(node, start, stop):
                    self._wait_again(start, stop)
                return []
            case NodeLost(node):
                for start, stop in self.handed.pop(node, Ranges()):
                    self._wait_again(start, stop)
                return []
            case CancelAsked(error):
                if self._error is None:
                    self._error = error
                return self._move(event)
            case AllReleased():
                if self.state is not JobState.STOPPING:
                    return []
                self.state = JobState.FAILED if self._failed else JobState.CANCELLED
                return [End(self.state, None if self._failed else self._error)]
            case InputsComplete() | LeaseGranted():
                return self._move(event)

    def _move(self, event: JobEvent) -> list[Effect]:
        state = NEXT.get((self.state, type(event)))
        if state is None:
            return []
        self.state = state
        return [StopCalls()] if state is JobState.STOPPING else []

    def _take_back(self, node: str, start: int, stop: int) -> bool:
        """Whether the calls are handed to that node; then they are not any more."""
        ranges = self.handed.get(node)
        if ranges is None or not ranges.covers(start, stop):
            return False
        ranges.remove(start, stop)
        return True

    def _wait_again(self, start: int, stop: int) -> None:
        """The calls have not been tried: they wait again, those that crashed before still to be retried alone."""
        for index in sorted(index for index in self._crashes if start <= index < stop):
            self.alone.append(index)
            self.pending.add(start, index)
            start = index + 1
        self.pending.add(start, stop)

    def _done(self, node: str, results: Results) -> list[Effect]:
        if not self._take_back(node, results.start, results.stop):
            return []  # of a node that was given up meanwhile: the calls run, or ran, elsewhere
        self.done += results.stop - results.start
        if self.state is JobState.RUNNING and self.done == self.total:
            self.state = JobState.DONE
            return [Record(results), StopCalls(), End(JobState.DONE)]
        return [Record(results)]

    def _crashed(self, node: str, crash: Crash) -> list[Effect]:
        if not self._take_back(node, crash.index, crash.index + 1):
            return []
        attempts = self._crashes[crash.index] = self._crashes.get(crash.index, 0) + 1
        if attempts < ATTEMPTS or self.state is not JobState.RUNNING:
            self.alone.append(crash.index)
            return []
        self.pending.add(crash.index, crash.index + 1)
        self._failed = True
        self.state = JobState.STOPPING
        return [FailCrashed(crash, attempts), StopCalls()]
