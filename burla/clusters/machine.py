"""The program of a machine of a cluster, once our package is there (see `bootstrap`): a head or a node.

It ends with 0 when the machine is to end, and with anything else to be started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import logging
import os
import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Scheduler

from burla.bucket import Bucket
from burla.clusters import package
from burla.clusters.boot import HOME
from burla.clusters.rpc import ask
from burla.clusters.security import load_security
from burla.clusters.supervisor import DASK_SETTINGS
from burla.errors import StoreUnknown
from burla.head.copier import Copier
from burla.head.keeping import Keeping
from burla.head.main import run_head
from burla.head.plugin import HeadPlugin
from burla.node.main import describe, run_node
from burla.node.node import Node
from burla.protocol import GET_PACKAGE_OP, HEAD_KEY, LEAVE_OP, NEEDED_OP, NODES_OP

log = logging.getLogger(__name__)

AGAIN = 75  # exit code: something newer has to be fetched
LOOK_S = 2.0
ASK_S = 5.0


class MachineHeadPlugin(HeadPlugin):
    """A head that gives our package to its nodes, and makes room for another version when nobody needs it.

    `store`: the URL where results are copied to, empty: nowhere. `keep_results_s`: see `Keeping`.
    """

    def __init__(self, *args: Any, store: str, keep_results_s: float):
        super().__init__(*args)
        self._keeping = Keeping(store, keep_results_s)
        self._copying: asyncio.Future[None] | None = None

    async def _install(self, scheduler: Scheduler) -> None:
        ours = package.package()
        self._service.version = ours.key
        self._signature = {"key": ours.key, "version": ours.version, "own": True}
        await super()._install(scheduler)
        self._archive = Path(HOME, "package.zip").read_bytes()
        scheduler.handlers[GET_PACKAGE_OP] = self._get_package
        scheduler.handlers[NODES_OP] = self._nodes
        scheduler.handlers[NEEDED_OP] = self._needed
        scheduler.handlers[LEAVE_OP] = self._leave
        await self._keep()

    async def _keep(self) -> None:
        service, keeping = self._service, self._keeping
        keeping.begin(await self._store.jobs(lambda job: job.status.state.ended))
        service.keeping = keeping
        if keeping.url:
            folder = Path(HOME, "store")
            service.copier = Copier(service.head, service.history, keeping, Bucket(keeping.url), folder)
            self._copying = asyncio.ensure_future(service.copier.run())

    async def close(self) -> None:
        """The scheduler ends."""
        if self._copying is not None:
            self._copying.cancel()
        await super().close()

    async def _get_package(self) -> dict[str, Any]:
        return {"archive": self._archive, "sha256": hashlib.sha256(self._archive).hexdigest()}

    async def _nodes(self) -> dict[str, int]:
        """Return the nodes that have joined, by name, with their slots in use."""
        head = self._service.head
        held: Counter[str] = Counter()
        for job in head.jobs.values():
            held.update(job.slots_held())
        return {node.offer.name: held[identity] for identity, node in head.dispatch.nodes.items()}

    async def _needed(self) -> list[str]:
        """Return the names of unfinished jobs, and whose results are not copied."""
        names = [job.spec.function_name for job in self._service.head.jobs.values() if not job.state.ended]
        return names + self._service.needed_results()

    async def _leave(self) -> list[str]:
        """Return who needs this head; if nobody does, it makes room for the version of who asks."""
        needed = self._service.needed()
        if not needed:
            Path(HOME, "package.zip").unlink()
            asyncio.get_running_loop().call_later(0.1, os._exit, AGAIN)  # the reply goes first
        return needed


async def _head(settings: dict[str, Any]) -> None:
    async def run() -> None:
        await run_head(
            "0.0.0.0",
            settings["port"],
            load_security(Path(HOME)),
            Path(HOME),
            settings["idle_s"],
            lambda address: log.info("the head listens at %s", address),
            fresh=False,
            plugin=functools.partial(
                MachineHeadPlugin, store=settings["store"], keep_results_s=settings["keep_results_s"]
            ),
        )

    try:
        await run()
    except RuntimeError as error:  # what a plugin raises, Dask wraps
        if not isinstance(error.__cause__, StoreUnknown):
            raise
        log.warning("the jobs of another version are put away: %s", error)
        Path(HOME, "store").rename(Path(HOME, f"store-{time.time():.0f}"))
        await run()


async def _node(settings: dict[str, Any]) -> None:
    host, security = own_address(settings["head"]), load_security(Path(HOME))
    headless_s = 0.0

    def over(node: Node, now: float) -> bool:
        nonlocal headless_s
        headless_s = node.headless_for_s(now)
        return node.idle_for_s(now) > settings["idle_s"] or headless_s > settings["head_gone_s"]

    async def follow_version() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if headless_s > LOOK_S and await _version(settings["head"], security) not in ("", package.package().key):
                log.info("the head is of another version now")
                os._exit(AGAIN)  # no job is lost: a head in use is not replaced

    work = Path(HOME, "work")
    work.mkdir(mode=0o700, exist_ok=True)
    known = {"version": package.package().key, "usd_per_hour": settings["usd_per_hour"]}
    offer = replace(await describe(settings["name"]), **known)
    following = asyncio.ensure_future(follow_version())
    await run_node(lambda: settings["head"], security, host, offer, str(work), over)
    following.cancel()


async def _version(head: str, security: Any) -> str:
    """Return which version the head is; empty: it does not answer, or waits for one itself."""
    try:
        found = await ask(head, security, "get_metadata", ASK_S, keys=[HEAD_KEY], default=None)
    except OSError:
        return ""
    return found["key"] if found else ""


def own_address(head: str) -> str:
    """Return the IP address of this machine, as the head sees it."""
    host, _, port = head.rpartition("//")[2].rpartition(":")
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return probe.getsockname()[0]


def main() -> None:
    """Be what the settings say."""
    import dask.config

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = json.loads(Path(HOME, "settings.json").read_text())
    dask.config.set(DASK_SETTINGS | {"temporary-directory": f"{HOME}/work"})
    # not asyncio.run: at its end it waits, for ever, for tasks that do not let themselves be cancelled
    asyncio.new_event_loop().run_until_complete(_head(settings) if settings["role"] == "head" else _node(settings))
    logging.shutdown()
    os._exit(0)
