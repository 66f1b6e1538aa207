"""A job at the head that has not ended, or did a moment ago: the pure `Job`, its journal, and where it runs."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from burla.config import GROWTH_S
from burla.errors import ClusterLost
from burla.head.budgets import Spent
from burla.head.demands import Demand, demand_of, fits
from burla.head.jobs import Job
from burla.head.journal import Journal
from burla.head.room import Room
from burla.head.turns import Share
from burla.protocol import (
    MESSAGE_BYTES,
    SLOWEST,
    Block,
    Event,
    Events,
    JobSpec,
    JobState,
    JobStatus,
    Kind,
    NodeOffer,
    Notice,
    Slice,
    Snapshot,
    inline_bytes,
)

if TYPE_CHECKING:
    from burla.head.store import Store

CACHE_BYTES = 16_000_000  # of inputs that wait, in memory; the store has them all
RATE_S = 10.0
RATE_EVERY_S = 0.5


class RunningJob:
    """State of one job that is neither pure nor anybody else's."""

    def __init__(self, store: Store, number: int, spec: JobSpec, session: str, created_at_s: float, journal: Journal):
        self.store = store
        self.number = number
        self.spec = spec
        self.session = session
        self.created_at_s = created_at_s
        self.created = time.monotonic()
        self.core = Job(go_on=spec.on_error == "continue")
        self.journal = journal
        self.detached = False
        self.unwanted = False  # to be deleted when it is over
        self.suspended: ClusterLost | None = None
        # until then, monotonic, a machine may yet be booted on which its calls fit
        self.growing_until = self.created + GROWTH_S if spec.grow else 0.0
        self.remark: str | None = None  # what its client should know now, and what may pass
        self.granted: dict[str, int] = {}  # node → slots, as last told
        self.held: dict[str, int] = {}  # node → slots in use, as last heard
        self.leases: dict[str, int] = {}  # node → how many SetSlots were sent
        self.unsettled: set[str] = set()  # nodes that use fewer slots than they were told, and have to be told anew
        self.running: dict[str, int] = {}
        self.room = Room(spec.func_cpu)
        self.spent = Spent()
        self.stored_ran_s = 0.0  # of `spent`, what the store has
        self.begun_again = 0  # calls that ran on nodes that were lost
        self.long: dict[str, tuple[tuple[float, int], ...]] = {}  # node → (since, input) of calls that take long
        self.queued: dict[str, int] = {}  # node → calls there that have not started
        self.hungry: dict[str, int] = {}  # node → calls that it asked for in vain
        self.trades: dict[str, int] = {}  # node → number of the last trade whose news are in the journal
        self.installing: set[str] = set()  # nodes that prepare what its function needs
        self.noted: set[str] = set()  # what its journal has from nodes: of ten that say the same, one is heard
        self.releasing: set[str] = set()  # nodes that were told to end their lease
        self.complete = asyncio.Event()  # all inputs are here
        self.over = asyncio.Event()  # it has ended, and no call of it runs
        self.over_since: float | None = None
        self._firsts: list[int] = []  # of blocks
        self._blocks: dict[int, Block] = {}  # by first input, as far as they are in memory
        self._cached_bytes = 0
        self._rates: deque[tuple[float, int]] = deque()

    @property
    def state(self) -> JobState:
        return self.core.state

    @property
    def durable(self) -> bool:
        """Whether what is recorded has to survive the head's machine, not only its process."""
        return self.detached or self.spec.detach

    @property
    def growing(self) -> bool:
        """Whether it waits for machines that are booted for it."""
        return time.monotonic() < self.growing_until

    def share(self) -> Share:
        """Return what the job has of the CPUs now."""
        finished = self.core.done + self.core.failed
        return Share(sum(self.slots_held().values()), self.spec.func_cpu, finished)

    def demand(self, nodes: Sequence[NodeOffer], had: float) -> Demand:
        """Return what the job asks of these nodes; `had`: see `turns`."""
        demand = replace(demand_of(self.spec, self.number, self.core.unfinished), had=had)
        if demand.func_ram_bytes is not None or self.room.per_call_bytes is None:
            return demand
        if demand.depth == 0:
            per_call_bytes = self.room.per_call_bytes
            alone = per_call_bytes >= min((node.ram_bytes for node in nodes if fits(demand, node)), default=0)
            return replace(demand, func_ram_bytes=per_call_bytes, dynamic=True, alone=alone)
        # the calls above it keep their memory while they wait for it, so room beside them might never come
        most = self.room.calls(nodes)
        return replace(demand, max_parallelism=min(filter(None, (demand.max_parallelism, most)), default=None))

    def slots_held(self) -> dict[str, int]:
        """Return the slots that count as taken on each node: in use, or granted and soon to be."""
        nodes = self.granted.keys() | self.held.keys() | self.releasing
        return {node: max(self.granted.get(node, 0), self.held.get(node, 0)) for node in nodes}

    # inputs

    def add_blocks(self, blocks: tuple[Block, ...]) -> None:
        """Take in blocks that are on their way into the store."""
        self._firsts += [block.first for block in blocks]
        for block in blocks:
            self._blocks[block.first] = block
            self._cached_bytes += inline_bytes(block.payload)
        self.store.after_commit(lambda: self._trim(blocks))

    def restore_blocks(self, firsts: list[int]) -> None:
        """Take in blocks that are in the store."""
        self._firsts = firsts

    def _trim(self, blocks: tuple[Block, ...]) -> None:
        for block in reversed(blocks):  # what is needed last goes first
            if self._cached_bytes > CACHE_BYTES:
                self._drop(block.first)

    def let_go(self) -> None:
        """Keep nothing in memory of what is in the store: the job has ended."""
        self.journal.let_go()
        self._blocks.clear()
        self._cached_bytes = 0

    def _drop(self, first: int) -> None:
        block = self._blocks.pop(first, None)
        if block is not None:
            self._cached_bytes -= inline_bytes(block.payload)

    def _block(self, number: int) -> Block:
        first = self._firsts[number]
        block = self._blocks.get(first)
        if block is None:
            block = self._blocks[first] = self.store.block_now(self.number, first)
            self._cached_bytes += inline_bytes(block.payload)
        return block

    def slices(self, node: str, want: int, ram_bytes: int) -> tuple[Slice, ...]:
        """Hand out up to `want` calls to a node with so much memory, about a message full. Raises StoreDamaged."""
        slices: list[Slice] = []
        size = 0
        while want > 0 and size < MESSAGE_BYTES and (stretch := self.core.next_stretch(ram_bytes)):
            start, stop = stretch
            block = self._block(bisect_right(self._firsts, start) - 1)  # before it is handed out: it may be damaged
            handed = self.core.take(node, min(want, stop - start), ram_bytes)
            if not handed:
                break
            for one in handed:
                slices.append(Slice(block, one.start, one.stop, one.alone))
                want -= one.stop - one.start
                size += inline_bytes(block.payload) + 100
                if one.stop == self.core.block_end(one.block):
                    self._drop(block.first)
        return tuple(slices)

    # the journal

    def note_once(self, text: str) -> None:
        """Tell those who follow the job, unless it has been told."""
        if text not in self.noted:
            self.noted.add(text)
            self.record(Notice(text))

    def record(self, event: Event) -> None:
        """Write the journal; who waits for it is woken when the store has it."""
        self.journal.durable = self.durable
        self.journal.append(event)

    async def events(self, after: int, wait_s: float, kinds: Kind = Kind.ALL, index: int | None = None) -> Events:
        """Return what the journal holds from `after` on; wait for the first of it at most `wait_s`."""
        events, number = await self.journal.read(after, wait_s, kinds, index)
        if self.suspended is not None and not events:
            raise self.suspended
        return Events(tuple(events), number, self.snapshot())

    def suspend(self, error: ClusterLost) -> None:
        """Send those away who follow the job: it goes on another time."""
        self.suspended = error
        self.journal.wake()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            state=self.state,
            total=self.core.total,
            done=self.core.done,
            failed=self.core.failed,
            running=sum(calls for node, calls in self.running.items() if node not in self.installing),
            nodes=sum(1 for slots in self.granted.values() if slots),
            installing=len(self.installing),
            rate_per_s=self._rate(time.monotonic()),
            retries=self.core.retries + self.begun_again,
            slowest=self._slowest(time.monotonic()),
            peak_bytes=self.room.peak_bytes,
            short_of_memory=self.room.per_call_bytes is not None,
            remark=self.remark,
            node_s=self.spent.node_s,
            usd=self.spent.usd,
        )

    def _slowest(self, now: float) -> tuple[tuple[int, float], ...]:
        oldest = sorted(one for of_node in self.long.values() for one in of_node)[:SLOWEST]
        return tuple((index, now - since) for since, index in oldest)

    def note_rate(self, now: float) -> None:
        """Take in how many calls have an outcome; to be called about once a second."""
        self._rates.append((now, self.core.done + self.core.failed))
        while len(self._rates) > 2 and self._rates[1][0] <= now - RATE_S:
            self._rates.popleft()

    def _rate(self, now: float) -> float | None:
        if not self._rates or now - self._rates[0][0] < RATE_EVERY_S:
            return None
        since, before = self._rates[0]
        return (self.core.done + self.core.failed - before) / (now - since)

    def status(self) -> JobStatus:
        return JobStatus(self.spec.id, self.spec.function_name, self.snapshot(), time.monotonic() - self.created)
