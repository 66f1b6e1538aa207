"""Many nodes in one process: real Dask workers with our plugin, whose children are stand-ins that run nothing.

    python -m tests.benchmarks.stand_in FOLDER ADDRESS NAME COUNT

FOLDER has the keys of the head at ADDRESS. A stand-in answers for a `Simulated` function after the time that its calls
would take, with the results that they would have, and what they would print.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config

from burla import serialize
from burla.clusters.security import load_security
from burla.clusters.supervisor import DASK_SETTINGS
from burla.node import plugin, shared
from burla.node.child import REPORT_BYTES
from burla.node.main import QuietWorker
from burla.node.node import Node
from burla.protocol import STDOUT, TIME_BOX_S, Output, Prepare, Report, Results, Run

_STARTING_AT_ONCE = 16
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Simulated:
    """A function that takes so long, may print a line, and returns its argument."""

    seconds: float = 0.0
    prints: bool = False

    def __call__(self, x: Any) -> Any:
        if self.prints:
            print(f"call {x}")
        time.sleep(self.seconds)
        return x


class StandInChild:
    """What a lease sees of a child."""

    nested, idle_end = socket.socketpair()  # nobody makes nested calls

    def __init__(self, who: str):
        loop = asyncio.get_running_loop()
        self.number = next(_numbers)
        self.who = who
        self.pid: int | None = None
        self.ended: asyncio.Future[int | None] = loop.create_future()
        self.cleared: asyncio.Future[None] = loop.create_future()
        self.peak_bytes = 0
        self.group = None
        self.memory = [-1, 0, shared.NO_LIMIT, 0]
        self.on_output: Callable[[Output], None] = lambda output: None
        self._function: Any = None  # a Simulated
        self._block: list[Any] = []
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()

    def send(self, message: Any) -> None:
        match message:
            case Prepare(function=function):
                self._function = serialize.load_function(function)
            case Run():
                asyncio.get_running_loop().call_later(*self._run(message))

    def _run(self, run: Run) -> tuple[float, Callable[[Report], None], Report]:
        """Return when to say what: as many calls as a child would do before it reports."""
        function, results, done = self._function, [], 0
        most = sum(piece.stop - piece.start for piece in run.pieces)
        if function.seconds:
            most = min(most, max(1, -(-int(TIME_BOX_S * 1e6) // int(function.seconds * 1e6))))
        size_bytes = 0
        for piece in run.pieces:
            if piece.payload is not None:
                self._block = serialize.load_block(piece.payload)
            stop = min(piece.stop, piece.start + most - done)
            values = self._block[piece.start - piece.first : stop - piece.first]
            packer = serialize.ResultPacker(piece.start)
            for value in values:
                packer.add(serialize.load_value(value) if piece.each else value)
            if function.prints:
                self._print(piece.start, stop)
            size_bytes += packer.size_bytes
            each, payload = packer.pack()
            results.append(Results(piece.start, stop, each, payload))
            done += stop - piece.start
            if done == most or size_bytes > REPORT_BYTES:
                break
        first = run.pieces[0].start
        self.memory[shared.INDEX], self.memory[shared.STARTED_NS] = first, time.monotonic_ns()
        seconds = function.seconds * done
        return seconds, self._report, Report(tuple(results), (), done, max(seconds, 1e-7 * done))

    def _print(self, start: int, stop: int) -> None:
        for index in range(start, stop):
            self.on_output(Output(index, STDOUT, f"call {index} on {self.who}\n".encode()))

    def _report(self, report: Report) -> None:
        self.memory[shared.INDEX] = -1
        self._reports.put_nowait(report)

    async def receive(self) -> Report | None:
        return await self._reports.get()

    def retire(self) -> None:
        self.kill()

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.ended.done():
            self.ended.set_result(0)
            self.cleared.set_result(None)
            self._reports.put_nowait(None)

    def close(self) -> None: ...
    def drain(self) -> None: ...
    def pause_output(self) -> None: ...
    def resume_output(self) -> None: ...


class StandInNursery:
    """What a node sees of its nursery."""

    niceness = 0

    def __init__(self, who: str):
        self._who = who
        self._tasks: set[asyncio.Task[Any]] = set()

    async def clean_child(self) -> StandInChild:
        return StandInChild(self._who)

    def keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


class StandInNode(Node):
    """A node of one slot. Nothing of it takes memory, so that is not watched."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.nursery = StandInNursery(self.offer.name)  # pyright: ignore[reportAttributeAccessIssue]

    async def start(self) -> None: ...


async def _serve(folder: Path, address: str, name: str, count: int) -> None:
    plugin.Node = StandInNode
    security, free = load_security(folder), asyncio.Semaphore(_STARTING_AT_ONCE)

    async def start(number: int) -> QuietWorker:
        async with free:
            return await QuietWorker(
                address,
                nthreads=1,
                name=f"{name}-{number}",
                host="127.0.0.1",
                security=security,
                memory_limit=0,
                local_directory=str(folder),
            )

    workers = await asyncio.gather(*map(start, range(count)))
    await asyncio.gather(*(worker.finished() for worker in workers))


if __name__ == "__main__":
    dask.config.set(DASK_SETTINGS)
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
