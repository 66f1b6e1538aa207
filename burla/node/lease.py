"""A lease: this node's right to run calls of one job in so many slots.

Each slot is a coroutine with a child: it takes calls from the lease's queue, about one time box of them, and puts what
became of them into the outbox. One more coroutine trades with the head: outbox up, slices down, a little ahead.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from burla import serialize
from burla.channel import Channel, ChannelClosed, StreamTransport
from burla.errors import BurlaError
from burla.node import shared
from burla.node.children import Child
from burla.protocol import (
    BLOB_BYTES,
    MESSAGE_BYTES,
    TIME_BOX_S,
    Blob,
    Block,
    Crash,
    Failure,
    JobSpec,
    Output,
    Piece,
    Prepare,
    Relay,
    Report,
    Results,
    Run,
    Slice,
    Trade,
    Work,
)

if TYPE_CHECKING:
    from burla.node.node import Node

log = logging.getLogger(__name__)

AHEAD_S = 0.5  # so many seconds of calls are kept here beyond those that run
BEAT_S = 0.25  # while calls wait here, the head hears of it this often, to give them to somebody else
OUTBOX_BYTES = 4_000_000  # beyond this, calls that write more have to wait
GROWTH = 16  # a Run has at most so many times the calls of the last
OVERDUE_S = 1.5 * TIME_BOX_S  # a long call holds up those behind it
MOST_DEATHS = 3  # children that die before their first call, until that call is blamed after all
INVISIBLE_S = 0.002  # no store of one CPU stays invisible to another for longer, by far

THREAD_COUNTS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "TBB_NUM_THREADS",
)  # fmt: skip


class _Slot:
    """One child and what it runs."""

    def __init__(self, cpus: tuple[int, ...]):
        self.cpus = cpus
        self.child: Child | None = None
        self.block: Block | None = None  # the last one that the child got
        self.calls = 1  # of its last Run
        self.task: asyncio.Task[None] | None = None
        self.silent = True  # its child's own client has not said anything
        self.channel: Channel | None = None
        self.busy = False
        self.deaths = 0  # of children, in a row, that no call is to blame for


class Lease:
    """See the module. `node` carries messages, children and CPUs."""

    def __init__(self, node: Node, spec: JobSpec, trade_every_s: float):
        self._node = node
        self._spec = spec
        self._trade_every_s = trade_every_s
        self._target = 0
        self._slots: set[_Slot] = set()
        self._queue: collections.deque[Slice] = collections.deque()
        self._queued = 0  # calls in the queue
        self._outbox: collections.deque[Results | Failure | Crash | Output] = collections.deque()
        self._outbox_bytes = 0
        self._handed_back: list[tuple[int, int]] = []
        self._rate = 0.0  # calls a second of one slot; 0: not known yet
        self._news = asyncio.Event()  # something to tell or to ask
        self._urgent = asyncio.Event()  # a slot has nothing to do
        self._work_came = asyncio.Event()
        self._function: asyncio.Future[bytes] | None = None
        self._ended = False
        self.over = asyncio.Event()
        self._trading = asyncio.ensure_future(self._trade())

    # what the head says

    def set_slots(self, slots: int) -> None:
        """Use so many slots from now on; surplus ones end with their current calls."""
        self._target = slots
        while len(self._slots) < slots:
            slot = _Slot(self._node.take_cpus(self._spec.func_cpu))
            self._slots.add(slot)
            slot.task = asyncio.ensure_future(self._run_slot(slot))
        self._work_came.set()
        self._tell()

    def add(self, slices: tuple[Slice, ...]) -> None:
        """Queue slices, in the order given; retries go first."""
        for one in slices:
            if one.alone:
                self._queue.appendleft(one)
            else:
                self._queue.append(one)
            self._queued += one.stop - one.start
        if slices:
            self._work_came.set()

    async def end(self) -> None:
        """End all children, running calls too."""
        self._ended = True
        self._trading.cancel()
        for slot in self._slots:
            if slot.busy and slot.child is not None:
                slot.child.stop()
            elif not slot.busy and slot.task is not None:
                slot.task.cancel()
        self._work_came.set()
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.over.set()

    # slots

    async def _run_slot(self, slot: _Slot) -> None:
        try:
            while len(self._slots) <= self._target and not self._ended:
                calls = self._take(slot)
                if not calls:
                    self._urgent.set()
                    self._tell()
                    self._work_came.clear()
                    await self._work_came.wait()
                    continue
                slot.busy = True
                try:
                    await self._run(slot, calls)
                except ChannelClosed:
                    return  # the node ends all leases of a lost head
                except Exception as error:
                    log.exception("running calls of job %s", self._spec.id)
                    failure = BurlaError(f"burla failed to run this call: {error!r}. Please report this.")
                    self._put(Failure(calls[0].start, serialize.dump_exception(failure, calls[0].start, ())))
                    return
                finally:
                    slot.busy = False
        finally:
            self._slots.discard(slot)
            self._node.return_cpus(slot.cpus)
            self._let_go(slot)
            self._tell()

    def _take(self, slot: _Slot) -> list[Slice]:
        """Take about a time box of calls; a retry runs alone, a share is left for the other slots."""
        share = -(-self._queued // (2 * max(1, len(self._slots))))
        quota = max(1, min(int(self._rate * TIME_BOX_S), GROWTH * slot.calls, share))
        taken: list[Slice] = []
        while quota > 0 and self._queue:
            first = self._queue.popleft()
            if first.alone and taken:
                self._queue.appendleft(first)
                break
            stop = min(first.stop, first.start + quota)
            if stop < first.stop:
                self._queue.appendleft(Slice(first.block, stop, first.stop))
            taken.append(Slice(first.block, first.start, stop, first.alone))
            self._queued -= stop - first.start
            quota -= stop - first.start
            if first.alone or isinstance(first.block.payload, Blob):
                break
        return taken

    async def _run(self, slot: _Slot, calls: list[Slice]) -> None:
        child = slot.child or await self._new_child(slot)
        pieces = [await self._piece(slot, one) for one in calls]
        if self._ended:
            return
        total = sum(one.stop - one.start for one in calls)
        child.memory[shared.POSITION] = 0
        child.memory[shared.LIMIT] = shared.NO_LIMIT
        child.send(Run(tuple(pieces)))
        del pieces
        receiving = asyncio.ensure_future(child.receive())
        stop = total
        if total > 1:
            await asyncio.wait([receiving], timeout=OVERDUE_S)
            if not receiving.done():
                stop = await self._take_back(child, calls, total)
        report = await receiving
        if report is None:
            await self._crashed(slot, child, _cut(calls, 0, stop))
            return
        await self._report(slot, report, _cut(calls, report.calls, stop))

    async def _take_back(self, child: Child, calls: list[Slice], total: int) -> int:
        """Queue again what a long call holds up; return the position from which on that was done."""
        child.memory[shared.LIMIT] = limit = child.memory[shared.POSITION] + 1
        await asyncio.sleep(INVISIBLE_S)
        stop = min(total, max(limit, child.memory[shared.POSITION] + 1))
        self._requeue(_cut(calls, stop, total))
        return stop

    def _requeue(self, slices: list[Slice]) -> None:
        for one in reversed(slices):
            self._queue.appendleft(one)
            self._queued += one.stop - one.start
        if slices:
            self._work_came.set()
            self._tell()

    async def _report(self, slot: _Slot, report: Report, left: list[Slice]) -> None:
        if self._ended:
            return
        if report.calls:
            slot.calls = report.calls
            rate = report.calls / max(report.seconds, 1e-6)
            self._rate = rate if not self._rate else 0.5 * (self._rate + rate)
        for one in report.results:
            if len(one.payload) >= BLOB_BYTES:  # pyright: ignore[reportArgumentType]
                blob = await self._node.put(self._spec.id, one.payload)  # pyright: ignore[reportArgumentType]
                one = Results(one.start, one.stop, one.each, blob)
            self._put(one)
        for failure in report.failures:
            self._put(failure)
        self._requeue(left)
        self._tell()

    async def _crashed(self, slot: _Slot, child: Child, calls: list[Slice]) -> None:
        """The child is gone. Blame the call that ran; the others, finished in vain or not started, run again."""
        status = await child.ended
        child.drain()
        index = child.memory[shared.INDEX]
        self._let_go(slot)
        if self._ended:
            return
        slot.deaths = 0 if index >= 0 else slot.deaths + 1
        if slot.deaths > MOST_DEATHS:
            index = calls[0].start
        left: list[Slice] = []
        for one in calls:
            if status is not None and one.start <= index < one.stop:
                if os.WIFSIGNALED(status):
                    self._put(Crash(index, os.WTERMSIG(status), None))
                else:
                    self._put(Crash(index, None, os.waitstatus_to_exitcode(status)))
                parts = [(one.start, index), (index + 1, one.stop)]
                left += [Slice(one.block, start, stop) for start, stop in parts if start < stop]
            else:
                left.append(one)
        self._requeue(left)
        self._tell()

    async def _new_child(self, slot: _Slot) -> Child:
        if self._function is None:
            self._function = asyncio.ensure_future(self._node.fetch(self._spec.id, self._spec.function))
        function = await self._function
        child = slot.child = await self._node.nursery.clean_child()
        child.on_output = self._put
        child.drain()
        threads: dict[str, str] = dict.fromkeys(THREAD_COUNTS, str(self._spec.func_cpu))
        child.send(Prepare(self._spec.id, self._spec.depth, self._spec.context, threads, slot.cpus, function))
        slot.silent = True
        asyncio.get_running_loop().add_reader(child.nested, self._open_nested, slot, child)
        return child

    async def _piece(self, slot: _Slot, one: Slice) -> Piece:
        if slot.block is one.block:
            return Piece(one.block.first, one.block.each, None, one.start, one.stop)
        slot.block = one.block
        payload = await self._node.fetch(self._spec.id, one.block.payload)
        return Piece(one.block.first, one.block.each, payload, one.start, one.stop)

    def _let_go(self, slot: _Slot) -> None:
        """The slot has no child any more: end it, and what its calls started through burla."""
        child, slot.child, slot.block = slot.child, None, None
        if child is None:
            return
        if slot.silent:
            asyncio.get_running_loop().remove_reader(child.nested)
        if slot.channel is not None:
            slot.channel.close()
            slot.channel = None
            self._node.nested_ended(self._session(child))
        child.retire()
        self._node.nursery.keep(_close_when_ended(child))

    # nested calls

    def _session(self, child: Child) -> str:
        return f"{self._node.offer.id}/{child.number}"

    def _open_nested(self, slot: _Slot, child: Child) -> None:
        """The child's own client says its first word."""
        asyncio.get_running_loop().remove_reader(child.nested)
        slot.silent = False
        self._node.nursery.keep(self._serve_nested(slot, child))

    async def _serve_nested(self, slot: _Slot, child: Child) -> None:
        reader, writer = await asyncio.open_connection(sock=child.nested)
        session, spec = self._session(child), self._spec

        async def relay(message: object) -> object:
            return await self._node.ask(Relay(session, spec.id, spec.depth, message))

        slot.channel = Channel(StreamTransport(reader, writer), relay)
        await slot.channel.run()

    # the outbox and the head

    def _tell(self) -> None:
        self._news.set()

    def _put(self, one: Results | Failure | Crash | Output) -> None:
        self._outbox.append(one)
        self._outbox_bytes += _size(one)
        if self._outbox_bytes > OUTBOX_BYTES:
            for slot in self._slots:
                if slot.child is not None:
                    for pipe in slot.child.pipes:
                        pipe.pause()
        self._tell()

    def _take_outbox(self) -> tuple[Results | Failure | Crash | Output, ...]:
        taken: list[Results | Failure | Crash | Output] = []
        size = 0
        while self._outbox and size < MESSAGE_BYTES:
            one = self._outbox.popleft()
            taken.append(one)
            size += _size(one)
        self._outbox_bytes -= size
        if self._outbox_bytes <= OUTBOX_BYTES:
            for slot in self._slots:
                if slot.child is not None:
                    for pipe in slot.child.pipes:
                        pipe.start()
        return tuple(taken)

    async def _trade(self) -> None:
        last = -1.0
        while True:
            busy = sum(slot.busy for slot in self._slots)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), BEAT_S if busy and self._queued else None)
            self._news.clear()
            if (pause := last + self._trade_every_s - time.monotonic()) > 0 and not self._urgent.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), pause)
            self._urgent.clear()
            last = time.monotonic()
            handed_back, self._handed_back = tuple(self._handed_back), []
            busy = sum(slot.busy for slot in self._slots)
            held = len(self._slots)
            ahead = int(self._rate * held * AHEAD_S) + (held - busy)
            try:
                work: Work = await self._node.ask(
                    Trade(
                        job=self._spec.id,
                        news=self._take_outbox(),
                        handed_back=handed_back,
                        want=max(0, ahead - self._queued) if self._target else 0,
                        running=busy,
                        queued=self._queued,
                        held=held,
                    )
                )
            except ChannelClosed:
                return  # the node ends all leases of a lost head
            if self._outbox:
                self._tell()
            self.add(work.slices)
            if work.give_back or not self._target:
                self._give_back(work.give_back if self._target else self._queued)

    def _give_back(self, calls: int) -> None:
        while calls > 0 and self._queue:
            last = self._queue.pop()
            start = max(last.start, last.stop - calls)
            if start > last.start:
                self._queue.append(Slice(last.block, last.start, start))
            self._handed_back.append((start, last.stop))
            self._queued -= last.stop - start
            calls -= last.stop - start
            self._urgent.set()
            self._tell()


async def _close_when_ended(child: Child) -> None:
    await child.ended
    child.close()


def _cut(calls: list[Slice], start: int, stop: int) -> list[Slice]:
    """Return the calls at positions `start` … `stop - 1` of a Run."""
    cut: list[Slice] = []
    at = 0
    for one in calls:
        count = one.stop - one.start
        first, last = max(start - at, 0), min(stop - at, count)
        if first < last:
            cut.append(Slice(one.block, one.start + first, one.start + last, one.alone))
        at += count
    return cut


def _size(one: Results | Failure | Crash | Output) -> int:
    match one:
        case Results(payload=bytes() as data) | Failure(payload=data) | Output(data=data):
            return len(data) + 64
        case _:
            return 64
