"""The node side of a Dask worker: the head installs this plugin on every worker, now and later."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from distributed import Worker, get_worker
from distributed.comm.core import connect
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import SecedeEvent

from burla import config
from burla.channel import CommTransport, StreamTransport, Transport
from burla.node.gpus import find_gpus
from burla.node.memory import find_gauge
from burla.node.node import Node
from burla.protocol import STREAM_OP, Gpu, NodeOffer

log = logging.getLogger(__name__)

RETRY_S = 0.5
NICENESS = 10  # of calls on a worker that somebody else runs: what it was started for comes first

own_node: Node | None = None  # in a process that we started: it outlives its workers
head_socket: Callable[[], str] | None = None  # where the head is reached on this machine, if it is
_nodes: dict[str, Node] = {}  # of this process, by the id of their worker


def describe(worker: Worker, ram_bytes: int, gpus: tuple[Gpu, ...]) -> NodeOffer:
    """Return what a borrowed worker offers: its threads as CPUs, memory as far as Dask lets it, GPUs, its image."""
    return NodeOffer(
        id=secrets.token_hex(8),
        name=str(worker.name),
        cpus=max(worker.state.nthreads, 1),
        ram_bytes=min(ram_bytes, worker.memory_manager.memory_limit or ram_bytes),
        gpus=gpus,
        image=config.image(),
    )


class NodePlugin(WorkerPlugin):
    """Ties a node to a worker: its stream to the head lasts as long as the worker."""

    name = "burla-node"

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def setup(self, worker: Worker) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._task = asyncio.ensure_future(self._serve(worker))

    async def teardown(self, worker: Worker) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _serve(self, worker: Worker) -> None:
        node = own_node
        if node is None:
            gauge = find_gauge()
            gpus = await asyncio.to_thread(find_gpus)
            node = Node(describe(worker, gauge.read().limit_bytes, gpus), gauge)
            node.nursery.niceness = NICENESS
            await node.start()
        _nodes[worker.id] = node
        arguments: dict[str, Any] = worker.security.get_connection_args("worker")
        try:
            while True:
                try:
                    transport = await _open(worker.scheduler.address, arguments)
                except OSError as error:
                    log.info("no way to the head yet: %s", error)
                else:
                    await node.serve(transport, worker.address)
                await asyncio.sleep(RETRY_S)
        finally:
            _nodes.pop(worker.id, None)
            if node is not own_node:
                node.close()


async def _open(address: str, arguments: dict[str, Any]) -> Transport:
    if head_socket is not None and (path := head_socket()):
        return await StreamTransport.open(path)
    comm = await connect(address, **arguments)
    await comm.write({"op": STREAM_OP, "reply": False})
    return CommTransport(comm)


async def hold_lease(job_id: str, key: str) -> None:
    """The Dask task that shows a lease: wait on the node until the lease is over. `key`: of the task."""
    worker = get_worker()
    # to wait takes no thread: as a long-running task it does not keep the user's own tasks from any
    worker.handle_stimulus(SecedeEvent(key=key, compute_duration=0.0, stimulus_id=f"burla-lease-{time.time()}"))
    node = _nodes.get(worker.id)
    if node is not None:
        await node.lease_over(job_id)
