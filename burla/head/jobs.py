"""A job as a pure state machine: events in, effects out. No clock, no I/O.

                   InputsComplete          LeaseGranted           last outcome
    RECEIVING ───────────────► WAITING ───────────────► RUNNING ─────────────► DONE, FAILED
        │                         │                        │
        └──── CancelAsked ────────┴── CallFailed, crashes ─┴──► STOPPING ──► FAILED, CANCELLED
                                                                       AllReleased

With `go_on`, a failure is the outcome of its call alone, and does not stop the job. Every input is in exactly one
place: pending, to be retried alone, handed to one node, or finished. After a restart of the head, nodes that still have
calls `claim` them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from burla.errors import BurlaError
from burla.protocol import Crash, Evicted, Failure, JobState, Results
from burla.ranges import Ranges

ATTEMPTS = 3  # of a call whose process dies: the first, and two alone


# events


@dataclass(frozen=True, slots=True)
class InputsAdded:
    counts: tuple[int, ...]  # of each block


@dataclass(frozen=True, slots=True)
class InputsComplete:
    pass


@dataclass(frozen=True, slots=True)
class Adopted:
    """Calls `start` … `stop - 1` have an outcome that they need not run for: another job's, or one of the store."""

    start: int
    stop: int
    failed: bool = False


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
class CallEvicted:
    """`hopeless`: it is not to be tried again. `need_bytes`: only nodes with so much memory may try."""

    node: str
    evicted: Evicted
    hopeless: bool
    need_bytes: int


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
    | Adopted
    | LeaseGranted
    | CallsDone
    | CallFailed
    | CallCrashed
    | CallEvicted
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
class FailEvicted:
    """There is no memory for the call: record an OutOfMemory."""

    evicted: Evicted


@dataclass(frozen=True, slots=True)
class NoteCrash:
    """The call has ended its process so often, and is to be retried."""

    index: int
    attempts: int


@dataclass(frozen=True, slots=True)
class StopCalls:
    """End all leases of the job, then tell it `AllReleased`."""


@dataclass(frozen=True, slots=True)
class End:
    """The job is over."""

    state: JobState
    error: BurlaError | None = None


Effect = Record | FailCrashed | FailEvicted | NoteCrash | StopCalls | End


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
}


class Job:
    """The inputs of one job, and where each of them is."""

    def __init__(self, go_on: bool = False) -> None:
        self.state = JobState.RECEIVING
        self.total = 0
        self.done = 0
        self.failed = 0
        self.pending = Ranges()
        self.alone: deque[int] = deque()
        self.handed: dict[str, Ranges] = {}
        self._block_firsts: list[int] = []
        self._go_on = go_on
        self._crashes: dict[int, int] = {}
        self._needs: dict[int, int] = {}  # input → memory that a node must have for it, in bytes
        self._evictions: Counter[int] = Counter()  # by input
        self._alone_evictions: Counter[int] = Counter()  # of them, those that nothing beside the call is to blame for
        self._error: BurlaError | None = None

    @property
    def waiting(self) -> int:
        """Return how many calls wait for a node."""
        return self.pending.count + len(self.alone)

    @property
    def unfinished(self) -> int:
        return self.total - self.done - self.failed if self.state in (JobState.WAITING, JobState.RUNNING) else 0

    @property
    def retries(self) -> int:
        """Return how many calls were begun again because they ended their process, or memory ran short."""
        return self._evictions.total() + sum(min(attempts, ATTEMPTS - 1) for attempts in self._crashes.values())

    def block_end(self, block: int) -> int:
        """Return the index after the last input of a block."""
        return self._block_firsts[block + 1] if block + 1 < len(self._block_firsts) else self.total

    def next_stretch(self, ram_bytes: int) -> tuple[int, int] | None:
        """Return the calls, (start, stop) of one block, that `take` hands out first to a node with so much memory."""
        if (index := self._next_alone(ram_bytes)) is not None:
            return index, index + 1
        if not self.pending:
            return None
        start, stop = self.pending.first()
        return start, min(stop, self.block_end(bisect_right(self._block_firsts, start) - 1))

    def _next_alone(self, ram_bytes: int) -> int | None:
        return next((index for index in self.alone if self._needs.get(index, 0) <= ram_bytes), None)

    def evictions(self, index: int, alone: bool = False) -> int:
        """Return how often a call was ended for want of memory and begun again; `alone`: with no others to blame."""
        return (self._alone_evictions if alone else self._evictions)[index]

    @property
    def waits_for_room(self) -> bool:
        """Whether a call waits that was ended for want of memory, and is to be tried again where it was."""
        return any(index in self._evictions and not self._needs[index] for index in self.alone)

    def has_work_for(self, node: str, ram_bytes: int) -> bool:
        """Whether slots at a node with so much memory are of use: all that waits may need a larger one."""
        larger_only = self.alone and not self.pending and self._next_alone(ram_bytes) is None
        return not larger_only or bool(self.handed.get(node))

    def lower_needs(self, largest_bytes: int | None) -> None:
        """A node is lost: what needs more memory than the largest has that is left is tried there. None: none is."""
        if largest_bytes is not None:
            self._needs = {index: min(need, largest_bytes) for index, need in self._needs.items()}

    def take(self, node: str, want: int, ram_bytes: int) -> list[Handed]:
        """Hand out up to `want` calls to a node with so much memory: retries first, then in order of their indices."""
        taken: list[Handed] = []
        if self.state is not JobState.RUNNING:
            return taken
        ranges = self.handed.setdefault(node, Ranges())
        while want > 0 and self.waiting:
            if (index := self._next_alone(ram_bytes)) is not None:
                self.alone.remove(index)
                start, stop, alone = index, index + 1, True
            elif not self.pending:
                break
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

    def claim(self, node: str, ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Give a node back what it still has of these calls; return those that nobody else has meanwhile."""
        if self.state is not JobState.RUNNING:
            return ()
        handed = self.handed.setdefault(node, Ranges())
        kept = Ranges()
        for start, stop in ranges:
            for index in [index for index in self.alone if start <= index < stop]:
                self.alone.remove(index)
                kept.add(index, index + 1)
            for first, last in self.pending.overlap(start, stop):
                self.pending.remove(first, last)
                kept.add(first, last)
        for start, stop in kept:
            handed.add(start, stop)
        return tuple(kept)

    def crashed_before(self, crashes: Mapping[int, int]) -> None:
        """Restore how often calls have ended their process: they are to be retried alone."""
        self._crashes.update(crashes)
        for index in sorted(crashes):
            if self.pending.covers(index, index + 1):
                self.pending.remove(index, index + 1)
                self.alone.append(index)

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
            case Adopted(start, stop, failed):
                return self._adopted(start, stop, failed)
            case CallFailed(node, failure):
                if not self._take_back(node, failure.index, failure.index + 1):
                    return []
                if self.state is not JobState.RUNNING:
                    self.pending.add(failure.index, failure.index + 1)
                    return []
                return [Record(failure), *self._failed_one()]
            case CallCrashed(node, crash):
                return self._crashed(node, crash)
            case CallEvicted():
                return self._evicted(event)
            case HandedBack(node, start, stop):
                if self._take_back(node, start, stop):
                    self._wait_again(start, stop)
                return []
            case NodeLost(node):
                for start, stop in self.handed.pop(node, Ranges()):
                    self._wait_again(start, stop)
                return []
            case CancelAsked(error):
                if self.state is not JobState.STOPPING:
                    self._error = error
                return self._move(event)
            case AllReleased():
                if self.state is not JobState.STOPPING:
                    return []
                self.state = JobState.FAILED if self._error is None else JobState.CANCELLED
                return [End(self.state, self._error)]
            case InputsComplete():
                return [*self._move(event), *self._finished()]
            case LeaseGranted():
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
        return [Record(results), *self._finished()]

    def _adopted(self, start: int, stop: int, failed: bool) -> list[Effect]:
        for first, last in self.pending.overlap(start, stop):
            self.pending.remove(first, last)
            if failed:
                self.failed += last - first
            else:
                self.done += last - first
        return self._finished()

    def _failed_one(self) -> list[Effect]:
        self.failed += 1
        return self._finished()

    def _finished(self) -> list[Effect]:
        """The job is over with the last outcome, and stops with a failure unless it is to go on."""
        if self.state not in (JobState.WAITING, JobState.RUNNING):
            return []
        if self.failed and not self._go_on:
            self.state = JobState.STOPPING
            return [StopCalls()]
        if self.done + self.failed < self.total:
            return []
        self.state = JobState.FAILED if self.failed else JobState.DONE
        return [StopCalls(), End(self.state)]

    def _evicted(self, event: CallEvicted) -> list[Effect]:
        index = event.evicted.index
        if not self._take_back(event.node, index, index + 1):
            return []
        if event.hopeless and self.state is JobState.RUNNING:
            return [FailEvicted(event.evicted), *self._failed_one()]
        self._evictions[index] += 1
        self._alone_evictions[index] += event.evicted.alone
        self._needs[index] = max(event.need_bytes, self._needs.get(index, 0))
        self.alone.append(index)
        return []

    def _crashed(self, node: str, crash: Crash) -> list[Effect]:
        if not self._take_back(node, crash.index, crash.index + 1):
            return []
        attempts = self._crashes[crash.index] = self._crashes.get(crash.index, 0) + 1
        if attempts < ATTEMPTS or self.state is not JobState.RUNNING:
            self.alone.append(crash.index)
            return [NoteCrash(crash.index, attempts)]
        return [FailCrashed(crash, attempts), *self._failed_one()]
