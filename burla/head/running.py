"""A job at the head: the pure `Job`, its journal, and where it runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from burla.head.jobs import Job
from burla.head.place import Demand
from burla.head.spool import Spool
from burla.protocol import (
    MESSAGE_BYTES,
    Block,
    Event,
    Events,
    Failure,
    JobSpec,
    JobState,
    JobStatus,
    Output,
    Results,
    Slice,
    Snapshot,
    inline_bytes,
)


class RunningJob:
    """State of one job that is neither pure nor anybody else's."""

    def __init__(self, spec: JobSpec, session: str, order: int, folder: Path):
        self.spec = spec
        self.session = session
        self.order = order
        self.core = Job()
        self.blocks = Spool(folder / "inputs")
        self.journal = Spool(folder / "journal")
        self.blobs = Spool(folder / "blobs")
        self.created = time.monotonic()
        self.granted: dict[str, int] = {}  # node → slots, as last told
        self.held: dict[str, int] = {}  # node → slots in use, as last heard
        self.leases: dict[str, int] = {}  # node → how many SetSlots were sent
        self.running: dict[str, int] = {}
        self.queued: dict[str, int] = {}  # node → calls there that have not started
        self.hungry: dict[str, int] = {}  # node → calls that it asked for in vain
        self.releasing: set[str] = set()  # nodes that were told to end their lease
        self.over = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def state(self) -> JobState:
        return self.core.state

    def demand(self) -> Demand:
        spec = self.spec
        return Demand(
            job=spec.id,
            order=self.order,
            depth=spec.depth,
            func_cpu=spec.func_cpu,
            func_ram_bytes=spec.func_ram_bytes,
            func_gpu=spec.func_gpu,
            image=spec.image,
            unfinished=self.core.unfinished,
            max_parallelism=spec.max_parallelism,
        )

    def slots_held(self) -> dict[str, int]:
        """Return the slots that count as taken on each node: in use, or granted and soon to be."""
        nodes = self.granted.keys() | self.held.keys() | self.releasing
        return {node: max(self.granted.get(node, 0), self.held.get(node, 0)) for node in nodes}

    def add_blocks(self, blocks: tuple[Block, ...]) -> None:
        for block in blocks:
            self.blocks.append(block, inline_bytes(block.payload) + 100)

    def slices(self, node: str, want: int) -> tuple[Slice, ...]:
        """Hand out up to `want` calls, but not much more than one message holds."""
        slices: list[Slice] = []
        size = 0
        while want > 0 and size < MESSAGE_BYTES:
            handed = self.core.take(node, min(want, self.core.first_stretch()))
            if not handed:
                break
            for one in handed:
                block: Block = self.blocks.get(one.block)
                slices.append(Slice(block, one.start, one.stop, one.alone))
                want -= one.stop - one.start
                size += inline_bytes(block.payload) + 100
        return tuple(slices)

    def record(self, event: Event) -> None:
        """Write the journal, and wake who waits for it."""
        match event:
            case Results(payload=bytes() as data) | Failure(payload=data) | Output(data=data):
                size = len(data)
            case _:
                size = 0
        self.journal.append(event, size + 200)
        self._news.set()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            state=self.state,
            total=self.core.total,
            done=self.core.done,
            running=sum(self.running.values()),
            nodes=sum(1 for slots in self.granted.values() if slots),
        )

    def status(self) -> JobStatus:
        return JobStatus(self.spec.id, self.spec.function_name, self.snapshot(), time.monotonic() - self.created)

    async def events(self, after: int, wait_s: float) -> Events:
        """Return what the journal holds from `after` on; wait for the first of it at most `wait_s`."""
        if len(self.journal) <= after:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), wait_s)
            except TimeoutError:
                pass  # a snapshot is news enough
        events: list[Event] = []
        size = 0
        while after < len(self.journal) and size < MESSAGE_BYTES:
            event: Event = self.journal.get(after)
            events.append(event)
            after += 1
            match event:
                case Results(payload=bytes() as data) | Output(data=data):
                    size += len(data)
                case _:
                    size += 100
        return Events(tuple(events), after, self.snapshot())

    def close(self) -> None:
        for spool in (self.blocks, self.journal, self.blobs):
            spool.close()
