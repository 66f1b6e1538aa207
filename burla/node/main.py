"""The process of an own node: a Dask worker without its HTTP server, made anew whenever the head was lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
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
DEATH_TIMEOUT_S = 30


class QuietWorker(Worker):
    """A worker that opens no HTTP port."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing: the notebook and the command line are our user interfaces."""


async def run_node(
    address: Callable[[], str | None], security: Security, host: str, cpus: int | None, folder: str
) -> None:
    """Serve the head at `address()`, one after the other, until cancelled."""
    offer = NodeOffer(
        id=(token := secrets.token_hex(8)),
        name=f"local-{token}",
        cpus=cpus or CPU_COUNT,
        ram_bytes=(gauge := find_gauge()).read().limit_bytes,
        gpus=await asyncio.to_thread(find_gpus),
        image=config.image(),
    )
    node = plugin.own_node = Node(offer, gauge)
    await node.start()
    try:
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
    finally:
        node.close()
