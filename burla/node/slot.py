"""A slot of a lease: one child of the job, what it was sent, and the channel of its nested calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from burla.channel import Channel, StreamTransport
from burla.errors import BurlaError
from burla.node import shared
from burla.node.children import Child
from burla.node.gpus import gone
from burla.node.setting import Setting
from burla.node.zygote import CHILD_VARIABLE
from burla.protocol import (
    TIME_BOX_S,
    Block,
    Early,
    Evicted,
    Gpu,
    JobSpec,
    Output,
    Piece,
    Prepare,
    Relay,
    Report,
    Results,
    Run,
    Slice,
    Variables,
)

if TYPE_CHECKING:
    from burla.node.node import Node

OVERDUE_S = 1.5 * TIME_BOX_S  # a long call holds up those behind it
INVISIBLE_S = 0.002  # no store of one CPU stays invisible to another for longer, by far

THREAD_COUNTS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "TBB_NUM_THREADS",
)  # fmt: skip


class Unreadable(Exception):
    """The inputs of `calls` cannot be had, because of `error`."""

    def __init__(self, calls: Slice, error: BurlaError):
        super().__init__(str(error))
        self.calls = calls
        self.error = error


class Slot:
    """Room for one call at a time. Holds `func_cpu` CPUs until `close`, and a GPU while it has a child."""

    def __init__(self, node: Node, spec: JobSpec, on_output: Callable[[Output], None]):
        self.child: Child | None = None
        self.setting: Setting | None = None  # where its calls run; set before the first of them
        self.calls = 1  # of the last Run
        self.deaths = 0  # of children, in a row, that no call is to blame for
        self.busy = False
        self.evicted: Evicted | None = None  # why its call was ended for want of memory
        self.peak_bytes = 0  # the most memory that a call has had since the last trade
        self.asks = False  # waits for the head, which may take long to answer
        self.task: asyncio.Task[None] | None = None
        self._node = node
        self._spec = spec
        self._on_output = on_output
        self._cpus = node.take_cpus(spec.func_cpu)
        self._gpu: Gpu | None = None
        self._sent: list[Slice] = []  # what the last Run held
        self._runs = 0  # that the child was sent
        self._block: Block | None = None  # the last one that the child has unpickled
        self._silent = True  # the child's own client has not said anything
        self._nested: Channel | None = None

    async def prepare(self, function: bytes) -> None:
        """Get a clean child, unless there is one, and make it a child of the job."""
        if self.child is not None:
            return
        if self._spec.func_gpu is not None and self._gpu is None:
            self.asks = True  # the child that had it last may take a moment to end
            self._gpu = await self._node.gpus.take(self._spec.func_gpu)
            self.asks = False
        setting = self.setting
        assert setting is not None
        child = self.child = await setting.nursery.clean_child()
        child.on_output = self._on_output
        self._runs = 0
        if self.limit_bytes is not None and self._node.cgroups is not None:
            child.confine(self._node.cgroups, self.limit_bytes)
        environ: dict[str, str] = dict.fromkeys(THREAD_COUNTS, str(self._spec.func_cpu))
        environ |= setting.variables.values
        environ |= self._node.gpus.environ(self._gpu)
        environ[CHILD_VARIABLE] = str(child.number)
        child.send(
            Prepare(
                job=self._spec.id,
                depth=self._spec.depth,
                context=setting.context,
                environ=Variables(environ),
                cpus=self._cpus,
                function=function,
                inherited=setting.inherited,
                elsewhere=setting.elsewhere,
                absent=setting.absent,
            )
        )
        self._silent = True
        asyncio.get_running_loop().add_reader(child.nested, self._open_nested, child)

    async def send(self, calls: list[Slice]) -> None:
        """Send calls to the child. Raises Unreadable, and then has sent none."""
        assert self.child is not None
        self._sent = calls
        pieces: list[Piece] = []
        for one in calls:
            try:
                pieces.append(await self._piece(one))
            except BurlaError as error:
                self._block = None
                raise Unreadable(one, error) from error
        self.child.memory[shared.POSITION] = 0
        self.child.memory[shared.LIMIT] = shared.NO_LIMIT
        self._runs += 1
        self.child.send(Run(tuple(pieces)))

    async def _piece(self, one: Slice) -> Piece:
        block = one.block
        if self._block is block:
            return Piece(block.first, block.each, None, one.start, one.stop)
        self._block = block
        payload = await self._node.fetch(self._spec.id, block.payload)
        return Piece(block.first, block.each, payload, one.start, one.stop)

    async def receive(
        self,
        calls: int,
        take_back: Callable[[int], None],
        take_early: Callable[[tuple[Results, ...]], Awaitable[None]],
    ) -> tuple[Report | None, int]:
        """Return the child's report, None if it died, and how many calls it kept to the end.

        When a call takes long, those behind it are taken back: `take_back` is told from which position on. The results
        of those before it come early, to `take_early`.
        """
        assert self.child is not None
        receiving = asyncio.ensure_future(self._receive(self.child, take_early))
        kept = calls
        if calls > 1:
            await asyncio.wait([receiving], timeout=OVERDUE_S)
            if not receiving.done():
                kept = await self._limit(self.child, calls)
                take_back(kept)
        try:
            report = await receiving
        finally:
            receiving.cancel()
        if report is not None:
            self._block = _block_at(self._sent, report.calls)
        return report, kept

    async def _receive(
        self, child: Child, take_early: Callable[[tuple[Results, ...]], Awaitable[None]]
    ) -> Report | None:
        while isinstance(message := await child.receive(), Early):
            await take_early(message.results)
        return message

    async def _limit(self, child: Child, calls: int) -> int:
        child.memory[shared.LIMIT] = limit = child.memory[shared.POSITION] + 1
        await asyncio.sleep(INVISIBLE_S)
        return min(calls, max(limit, child.memory[shared.POSITION] + 1))

    @property
    def job(self) -> str:
        return self._spec.id

    @property
    def limit_bytes(self) -> int | None:
        """How much memory its call may have; None: what there is."""
        return self._spec.func_ram_bytes

    @property
    def current(self) -> tuple[int, int] | None:
        """The input whose call runs, and since when (`time.monotonic_ns`); None if none runs."""
        if self.child is None or not self.busy or self.child.memory[shared.INDEX] < 0:
            return None
        return self.child.memory[shared.INDEX], self.child.memory[shared.STARTED_NS]

    def over_limit(self, peak_bytes: int) -> bool:
        """Whether the kernel has ended its call for its own limit, not the node's."""
        group = self.child.group if self.child is not None else None
        return group is not None and group.kills > 0 and peak_bytes > (self.limit_bytes or 0) // 2

    @property
    def fresh(self) -> bool:
        """Whether the call that runs is the first of its process."""
        return self.child is not None and self._runs == 1 and self.child.memory[shared.POSITION] == 0

    def evict(self, evicted: Evicted) -> None:
        """End the call that runs at once: memory is short, so there is no time for its clean-up."""
        if self.child is not None:
            self.evicted = evicted
            self.child.kill()

    def stop(self) -> None:
        """End the call that runs, and its child."""
        if self.child is not None:
            self.child.stop()

    def let_go(self) -> None:
        """Have no child any more: end it, and what its calls started through burla."""
        child, self.child, self._block, self.evicted = self.child, None, None, None
        gpu, self._gpu = self._gpu, None
        if child is None:
            if gpu is not None:
                self._node.gpus.give_back(gpu)
            return
        if self._silent:
            asyncio.get_running_loop().remove_reader(child.nested)
        if self._nested is not None:
            self._nested.close()
            self._nested = None
        if not self._silent:
            self._node.nested_ended(self._session(child))
        child.retire()
        self._node.nursery.keep(self._close_when_ended(child, gpu))

    async def _close_when_ended(self, child: Child, gpu: Gpu | None) -> None:
        await child.ended
        child.close()
        if gpu is not None:
            await child.cleared  # a process that the call has started may have the GPU too
            await gone(child.pid)
            self._node.gpus.give_back(gpu)

    def close(self) -> None:
        self.let_go()
        self._node.return_cpus(self._cpus)

    # nested calls

    def _session(self, child: Child) -> str:
        return f"{self._node.offer.id}/{child.number}"

    def _open_nested(self, child: Child) -> None:
        """The child's own client says its first word, or the child has ended."""
        asyncio.get_running_loop().remove_reader(child.nested)
        self._silent = False
        with contextlib.suppress(ConnectionResetError):
            if child.nested.recv(1, socket.MSG_PEEK):
                self._node.nursery.keep(self._serve_nested(child))

    async def _serve_nested(self, child: Child) -> None:
        # a copy: the child closes its own, and a transport whose descriptor is another's by then would deafen that one
        reader, writer = await asyncio.open_connection(sock=child.nested.dup())
        if self.child is not child:
            writer.transport.abort()  # let go meanwhile
            return
        session, spec = self._session(child), self._spec
        self._node.nested_begun(session)

        async def relay(message: object) -> object:
            return await self._node.ask(Relay(session, spec.id, spec.depth, message))

        self._nested = Channel(StreamTransport(reader, writer), relay)
        await self._nested.run()


def _block_at(calls: list[Slice], position: int) -> Block:
    """Return the block of the call at a position of a Run: those of later calls, the child has not unpickled."""
    for one in calls:
        if position < one.stop - one.start:
            return one.block
        position -= one.stop - one.start
    return calls[-1].block
