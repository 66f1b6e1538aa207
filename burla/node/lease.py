"""A lease: this node's right to run calls of one job in so many slots.

Each slot is a coroutine with a child: it takes calls from the lease's queue, about one time box of them, and puts what
became of them into the outbox. One more coroutine trades with the head: outbox up, slices down, a little ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from burla import serialize
from burla.errors import BurlaError
from burla.node import shared
from burla.node.backlog import Backlog, cut
from burla.node.outbox import News, Outbox
from burla.node.setting import Setting, error_message
from burla.node.slot import Slot, Unreadable
from burla.protocol import (
    BLOB_BYTES,
    SLOWEST,
    TIME_BOX_S,
    Claim,
    Crash,
    Evicted,
    Failure,
    JobSpec,
    Report,
    Results,
    Slice,
    Trade,
    Variables,
    Work,
)
from burla.ranges import Ranges

if TYPE_CHECKING:
    from burla.node.node import Node

log = logging.getLogger(__name__)

AHEAD_S = 0.5  # so many seconds of calls are kept here beyond those that run
WATCH_S = 1.0  # how often calls that run are looked at, and how old one is when it is told of
BEAT_S = 0.25  # while calls wait here, the head hears of it this often, to give them to somebody else
AHEAD_BYTES = 8_000_000  # but no more than that, however short they are
REFUSED_S = 1.0  # before news that the head has refused are sent again
SMALL_S = 0.002  # less work is not shared out: it would cost more than it takes
GROWTH = 16  # a Run has at most so many times the calls of the last
MOST_DEATHS = 3  # children that die before their first call, until that call is blamed after all


class Lease:
    """See the module. `node` carries messages, children and CPUs."""

    def __init__(self, node: Node, spec: JobSpec, variables: Variables, trade_every_s: float):
        self.over = asyncio.Event()
        self._node = node
        self._spec = spec
        self._trade_every_s = trade_every_s
        self._target = 0
        self._leases = 0
        self._slots: set[Slot] = set()
        self._backlog = Backlog()
        self._outbox = Outbox()
        self._handed_back: list[tuple[int, int]] = []
        self._mine = Ranges()  # calls that came here, until the head has their outcome or has them back
        self._sent: Trade | None = None  # on its way: its reply may be lost, and then it is sent again
        self._told_slowest: tuple[tuple[int, float], ...] = ()
        self._rate = 0.0  # calls a second of one slot; 0: not known yet
        self._news = asyncio.Event()  # something to tell or to ask
        self._urgent = asyncio.Event()  # a slot has nothing to do
        self._work_came = asyncio.Event()
        self._function: asyncio.Future[bytes] | None = None
        self._setting = asyncio.ensure_future(node.settings.enter(spec, variables))
        self._failed = False  # the head will end this lease, and no other call starts until then: one has raised, say
        self._ended = False
        self._trading = asyncio.ensure_future(self._trade())

    @property
    def slots(self) -> Iterable[Slot]:
        return self._slots

    # what the head says

    def set_slots(self, slots: int) -> None:
        """Use so many slots from now on; surplus ones end with their current calls."""
        self._target = slots
        self._leases += 1
        while len(self._slots) < slots:
            slot = Slot(self._node, self._spec, self._put)
            self._slots.add(slot)
            slot.task = asyncio.ensure_future(self._serve(slot))
        self._work_came.set()
        self._news.set()

    def add(self, slices: tuple[Slice, ...]) -> None:
        """Queue slices, in the order given; retries go first."""
        self._backlog.add(slices)
        for one in slices:
            self._mine.add(one.start, one.stop)
        if slices:
            self._work_came.set()

    def claim(self) -> Claim:
        """Return what a head that comes back has to know of this lease."""
        sent, mine = Ranges(), Ranges(*self._mine)
        if self._sent is not None:
            for start, stop in self._sent.handed_back:
                mine.discard(start, stop)
            for start, stop in filter(None, map(_calls_of, self._sent.news)):
                mine.discard(start, stop)
                sent.add(start, stop)
        number = 0 if self._sent is None else self._sent.number
        return Claim(self._spec.id, tuple(mine), tuple(sent), number, self._target, len(self._slots), self._leases)

    def keep(self, ranges: tuple[tuple[int, int], ...]) -> None:
        """Drop calls that wait here and are somebody else's now; the outcome of one that runs will be ignored."""
        self._mine = Ranges(*ranges)
        self._backlog.keep(self._mine)
        self._work_came.set()
        self._news.set()

    def stop_trading(self) -> None:
        """Ask the head for nothing more: its answer would be lost."""
        self._ended = True
        self._trading.cancel()

    async def end(self) -> None:
        """End all children, running calls too."""
        self.stop_trading()
        for slot in self._slots:
            if slot.busy:
                slot.stop()
            if slot.task is not None and (slot.asks or not slot.busy):
                slot.task.cancel()
        self._work_came.set()
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        for slot in self._slots:  # of tasks that were cancelled before their first step
            slot.close()
        self._slots.clear()
        self._setting.cancel()
        await asyncio.gather(self._setting, return_exceptions=True)
        if not self._setting.cancelled() and self._setting.exception() is None:
            self._node.settings.leave(self._setting.result())
        self.over.set()

    # slots

    async def _serve(self, slot: Slot) -> None:
        try:
            slot.setting = await self._prepared()
            while len(self._slots) <= self._target and not self._ended:
                calls = self._take(slot)
                if calls:
                    await self._run_safely(slot, calls)
                    continue
                self._urgent.set()
                self._news.set()
                self._work_came.clear()
                await self._work_came.wait()
        finally:
            self._slots.discard(slot)
            slot.close()
            self._news.set()

    async def _prepared(self) -> Setting | None:
        """Return where the calls run; None if they cannot run here, which the head is told."""
        try:
            return await asyncio.shield(self._setting)
        except BurlaError as error:
            failure = error
        except Exception as error:
            log.exception("preparing for job %s", self._spec.id)
            failure = BurlaError(f"burla failed to prepare a node for this job: {error!r}. Please report this.")
        if not self._failed:  # else another slot has told it
            self._failed = True
            await self._node.tell(error_message(self._spec.id, failure))
        return None

    def _take(self, slot: Slot) -> list[Slice]:
        """Take about a time box of calls; a retry runs alone, a share is left for the other slots."""
        if self._failed or not self._node.may_start:
            return []
        share = max(-(-len(self._backlog) // (2 * max(1, len(self._slots)))), int(self._rate * SMALL_S))
        return self._backlog.take(max(1, min(int(self._rate * TIME_BOX_S), GROWTH * slot.calls, share)))

    async def _run_safely(self, slot: Slot, calls: list[Slice]) -> None:
        """Run calls; a mistake of ours fails the job rather than leave it hanging."""
        slot.busy = True
        telling = asyncio.get_running_loop().call_later(BEAT_S, self._news.set)  # that it runs; short calls need not
        try:
            await self._run(slot, calls)
        except Unreadable as unreadable:
            self._fail(unreadable.calls, unreadable.error)
            self._requeue([one for one in calls if one is not unreadable.calls])
        except Exception as error:
            failure = error
            if not isinstance(error, BurlaError):  # such as StoreDamaged, of what the call needs
                log.exception("running calls of job %s", self._spec.id)
                failure = BurlaError(f"burla failed to run this call: {error!r}. Please report this.")
            self._fail(cut(calls, 0, 1)[0], failure)
            self._requeue(cut(calls, 1, sum(one.stop - one.start for one in calls)))
            slot.let_go()
        finally:
            telling.cancel()
            slot.busy = slot.asks = False

    async def _run(self, slot: Slot, calls: list[Slice]) -> None:
        if self._function is None:
            self._function = asyncio.ensure_future(self._node.fetch(self._spec.id, self._spec.function))
        slot.asks = True
        function = await asyncio.shield(self._function)
        slot.asks = False
        await slot.prepare(function)
        if self._ended:
            return  # while it had no child that could be stopped
        slot.asks = True
        await slot.send(calls)
        slot.asks = False
        total = sum(one.stop - one.start for one in calls)
        done = 0  # of them, known before the report

        async def take_early(results: tuple[Results, ...]) -> None:
            nonlocal done
            done += sum(one.stop - one.start for one in results)
            await self._put_results(slot, results)

        report, kept = await slot.receive(total, lambda stop: self._requeue(cut(calls, stop, total)), take_early)
        if report is None:
            await self._crashed(slot, cut(calls, done, kept))
        else:
            await self._reported(slot, report, cut(calls, report.calls, kept))

    def _requeue(self, slices: list[Slice]) -> None:
        self._backlog.put_back(slices)
        if slices:
            self._work_came.set()
            self._news.set()

    async def _reported(self, slot: Slot, report: Report, left: list[Slice]) -> None:
        if self._ended:
            return
        if report.calls:
            slot.calls, slot.deaths = report.calls, 0
            rate = report.calls / max(report.seconds, 1e-6)
            self._rate = rate if not self._rate else 0.5 * (self._rate + rate)
        await self._put_results(slot, report.results)
        for failure in report.failures:
            self._failed = self._spec.on_error == "raise"
            self._put(failure)
        self._requeue(left)
        self._news.set()

    async def _put_results(self, slot: Slot, results: tuple[Results, ...]) -> None:
        for one in results:
            if isinstance(one.payload, bytes) and len(one.payload) >= BLOB_BYTES:
                slot.asks = True
                try:
                    one = Results(one.start, one.stop, one.each, await self._node.put(self._spec.id, one.payload))
                except BurlaError as error:
                    self._fail(one, error)
                    continue
                finally:
                    slot.asks = False
            if not self._ended:
                self._put(one)

    def _fail(self, calls: Slice | Results, error: BaseException) -> None:
        """Give calls an error of ours for an outcome."""
        self._failed = self._spec.on_error == "raise"
        for index in range(calls.start, calls.stop):
            self._put(Failure(index, serialize.dump_exception(error, index)))

    async def _crashed(self, slot: Slot, calls: list[Slice]) -> None:
        """The child is gone. Blame the call that ran; the others, finished in vain or not started, run again."""
        assert slot.child is not None
        status = await slot.child.ended
        slot.child.drain()
        index = slot.child.memory[shared.INDEX]
        ended_by = None if status is None else self._what_ended(slot, index, status, slot.child.peak_bytes)
        slot.let_go()
        if self._ended:
            return
        slot.deaths = 0 if index >= 0 else slot.deaths + 1
        if slot.deaths > MOST_DEATHS:
            index = calls[0].start
        left: list[Slice] = []
        for one in calls:
            if ended_by is not None and one.start <= index < one.stop:
                self._put(replace(ended_by, index=index))
                parts = [(one.start, index), (index + 1, one.stop)]
                left += [Slice(one.block, start, stop) for start, stop in parts if start < stop]
            else:
                left.append(one)
        self._requeue(left)

    def _what_ended(self, slot: Slot, index: int, status: int, peak_bytes: int) -> Crash | Evicted:
        """Return what a call ended by: the kernel's and our own want of memory are no crashes."""
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        evicted = slot.evicted
        if evicted is None and number == signal.SIGKILL:
            evicted = self._node.watch.killed_by_kernel(slot, index, peak_bytes)
        elif evicted is not None and evicted.index != index:  # the one that was meant had just ended
            evicted = replace(evicted, left_bytes=evicted.peak_bytes)
        if evicted is None:
            return Crash(index, number, None if number else os.waitstatus_to_exitcode(status))
        if evicted.beside and not evicted.fixed:  # at once, before the head says so
            self._target = min(self._target, max(1, len(self._slots) // 2))
        return evicted

    # the outbox and the head

    def _put(self, one: News) -> None:
        self._outbox.put(one)
        if self._outbox.full:
            for slot in self._slots:
                if slot.child is not None:
                    slot.child.pause_output()
        self._news.set()

    def _take_outbox(self) -> tuple[News, ...]:
        news = self._outbox.take()
        if not self._outbox.full:
            for slot in self._slots:
                if slot.child is not None:
                    slot.child.resume_output()
        return news

    async def _trade(self) -> None:
        last = time.monotonic()  # the head has just said all that it knows
        while True:
            await self._await_news()
            self._news.clear()
            if (pause := last + self._trade_every_s - time.monotonic()) > 0 and not self._urgent.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), pause)
            self._urgent.clear()
            last = time.monotonic()
            sent = self._sent = self._offer()
            work: Work | None = None
            while work is None:
                try:
                    work = await self._node.ask(sent)
                except BurlaError:
                    log.exception("the head does not take news of job %s: joining it anew", self._spec.id)
                    self._node.join_anew()
                    await asyncio.sleep(REFUSED_S)
            self._sent = None
            for start, stop in (*sent.handed_back, *filter(None, map(_calls_of, sent.news))):
                self._mine.discard(start, stop)
            if self._outbox:
                self._news.set()
            self.add(work.slices)
            self._give_back(work.give_back if self._target else len(self._backlog))

    async def _await_news(self) -> None:
        """Return when there is something to tell or to ask; while calls wait here, after a moment in any case."""
        while True:
            busy = any(slot.busy for slot in self._slots)
            try:
                await asyncio.wait_for(
                    self._news.wait(), BEAT_S if busy and self._backlog else WATCH_S if busy else None
                )
                return
            except TimeoutError:
                slowest = self._slowest()
                if self._backlog or {index for index, _ in slowest} - {index for index, _ in self._told_slowest}:
                    return

    def _slowest(self) -> tuple[tuple[int, float], ...]:
        now_ns = time.monotonic_ns()
        calls = filter(None, (slot.current for slot in self._slots))
        ages = sorted((((now_ns - since_ns) / 1e9, index) for index, since_ns in calls), reverse=True)
        return tuple((index, age_s) for age_s, index in ages[:SLOWEST] if age_s > WATCH_S)

    def _offer(self) -> Trade:
        handed_back, self._handed_back = tuple(self._handed_back), []
        self._told_slowest = self._slowest()
        peak_bytes = max((slot.peak_bytes for slot in self._slots), default=0)
        for slot in self._slots:
            slot.peak_bytes = 0
        busy, held = sum(slot.busy for slot in self._slots), len(self._slots)
        ahead = int(self._rate * held * AHEAD_S) + (held - busy)
        if self._backlog.inline_bytes > AHEAD_BYTES:
            ahead = 0
        return Trade(
            job=self._spec.id,
            news=self._take_outbox(),
            handed_back=handed_back,
            want=max(0, ahead - len(self._backlog)) if self._target else 0,
            running=busy,
            queued=len(self._backlog),
            held=held,
            leases=self._leases,
            slowest=self._told_slowest,
            peak_bytes=peak_bytes,
            number=next(self._node.trades),
        )

    def _give_back(self, calls: int) -> None:
        if taken := self._backlog.take_last(calls):
            self._handed_back += taken
            self._urgent.set()
            self._news.set()


def _calls_of(news: News) -> tuple[int, int] | None:
    """Return the calls whose fate is told, as (start, stop); None for output."""
    match news:
        case Results(start, stop):
            return start, stop
        case Failure(index) | Crash(index) | Evicted(index):
            return index, index + 1
        case _:
            return None
