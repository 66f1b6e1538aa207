"""The process of an own node: a Dask worker without its HTTP server, made anew whenever the head was lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from dask.system import CPU_COUNT  # pyright: ignore[reportAttributeAccessIssue]
from distributed import Security, Worker

from burla import config
from burla.node import plugin
from burla.node.gpus import find_gpus
from burla.node.memory import find_gauge
from burla.node.node import Node
from burla.protocol import NodeOffer

log = logging.getLogger(__name__)

AGAIN_S = 0.05
LOOK_S = 0.5  # how often it is looked whether it is over
DEATH_TIMEOUT_S = 30


class QuietWorker(Worker):
    """A worker that opens no HTTP port."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing: the notebook and the command line are our user interfaces."""


async def describe(name: str, cpus: int | None = None) -> NodeOffer:
    """Return what this machine offers under a name; `cpus` None: all that this process may use."""
    return NodeOffer(
        id=secrets.token_hex(8),
        name=name,
        cpus=cpus or CPU_COUNT,
        ram_bytes=find_gauge().read().limit_bytes,
        gpus=await asyncio.to_thread(find_gpus),
        image=config.image(),
    )


async def run_node(
    address: Callable[[], str | None],
    security: Security,
    host: str,
    offer: NodeOffer,
    folder: str,
    over: Callable[[Node, float], bool] = lambda node, now: False,
    socket: Callable[[], str] | None = None,
) -> None:
    """Serve the head at `address()`, one after the other, until `over(node, monotonic time)`, or cancelled.

    `socket`: where the head listens on this machine too, empty if it does not; see `run_head`.
    """
    plugin.head_socket = socket
    node = plugin.own_node = Node(offer, find_gauge())
    await node.start()
    serving = asyncio.ensure_future(_serve(address, security, host, offer, folder))
    try:
        while not serving.done() and not over(node, time.monotonic()):
            await asyncio.wait([serving], timeout=LOOK_S)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        node.close()
    if not serving.cancelled():
        serving.result()


async def _serve(
    address: Callable[[], str | None], security: Security, host: str, offer: NodeOffer, folder: str
) -> None:
    while True:
        where = address()
        if where is None:
            await asyncio.sleep(AGAIN_S)
            continue
        worker = QuietWorker(
            where,
            nthreads=offer.cpus,
            name=offer.name,
            host=host,
            security=security,
            memory_limit=0,  # user code does not run in this process; children are watched on their own
            death_timeout=DEATH_TIMEOUT_S,
            local_directory=folder,
        )
        try:
            await worker
            await worker.finished()
        except (OSError, ValueError) as error:
            log.info("the worker ended: %s", error)
        finally:
            await worker.close()
        await asyncio.sleep(AGAIN_S)
