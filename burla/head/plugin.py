"""The scheduler plugin: takes streams of clients and nodes, installs the node side on every worker. No policy here."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from burla.channel import CommTransport
from burla.errors import ClusterLost
from burla.head.connections import Connection, Service
from burla.head.head import Head
from burla.head.leases import LeaseTasks
from burla.head.replay import replay
from burla.head.store import Store
from burla.node.plugin import NodePlugin, hold_lease
from burla.protocol import STOP_OP, STREAM_OP

log = logging.getLogger(__name__)

PLUGIN_NAME = "burla-head"
STORE_BROKEN = 74  # exit code


class HeadPlugin(SchedulerPlugin):
    """Makes a Dask scheduler a head.

    Without arguments, for a scheduler that somebody else runs: what is stored ends with it. With them: the store is in
    `folder`; after `idle_after_s` without unfinished jobs, and when told to, `stop` is called. `fresh`: no node of
    before can come back.
    """

    name = PLUGIN_NAME

    def __init__(
        self,
        folder: Path | None = None,
        idle_after_s: float | None = None,
        stop: Callable[[], None] | None = None,
        fresh: bool = True,
    ):
        self._folder = folder
        self._fresh = fresh
        self._idle_after_s = idle_after_s
        self._watching: asyncio.Future[None] | None = None  # once it has started
        self._stop = stop

    async def start(self, scheduler: Scheduler) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the scheduler over."""
        self._own_folder = None
        folder = self._folder
        if folder is None:
            folder = self._own_folder = Path(tempfile.mkdtemp(prefix="burla-head-"))
        self._tasks = LeaseTasks(scheduler, hold_lease)
        self._store = Store.open(folder / "store", on_full=lambda error: head.set_full(error), on_broken=self._broken)
        head = self._tasks.head = Head(self._store, self._tasks.changed)
        await replay(head, nodes_survived=not self._fresh)
        supervised = self._folder is not None
        self._service = Service(head, self._idle_after_s, self._stop or (lambda: None), supervised)
        self._watching = asyncio.ensure_future(self._service.watch())
        scheduler.handlers[STREAM_OP] = self._stream
        scheduler.handlers[STOP_OP] = self._end
        plugin = NodePlugin()
        await scheduler.register_worker_plugin(None, dumps(plugin), name=plugin.name, idempotent=True)

    async def _stream(self, comm: Any) -> None:
        if self._service.over:
            comm.abort()
            return
        await Connection(self._service, CommTransport(comm)).run()

    async def _end(self, only_if_idle: bool) -> list[str]:
        """End the head, unless it is busy; plain types, so that another version can ask for it."""
        return self._service.end(only_if_idle)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """A worker is lost: its node too, whatever its stream says."""
        head = self._service.head
        for node_id, node in list(head.dispatch.nodes.items()):
            if node.address == worker:
                node.channel.close()
                head.dispatch.leave(node_id)

    def _broken(self, error: Exception) -> None:
        """The store cannot be used any more."""
        log.critical("the store cannot be used any more: %r", error)
        if self._own_folder is None:  # better no head, until the next one has looked at it, than one that forgets
            os._exit(STORE_BROKEN)
        for job in self._service.head.jobs.values():  # the scheduler is somebody else's, and stays
            job.suspend(ClusterLost(f"the head cannot write what it is told any more: {error}"))

    async def close(self) -> None:
        """The scheduler ends."""
        if self._watching is not None:
            self._watching.cancel()
            self._service.hang_up()
            await self._tasks.close()
            self._store.close()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
