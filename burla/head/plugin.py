"""The scheduler plugin: takes streams of clients and nodes, installs the node side on every worker. No policy here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from burla.channel import BUFFER_BYTES, CommTransport, StreamTransport, Transport
from burla.head.connections import Connection, Service
from burla.head.head import Head
from burla.head.leases import LeaseTasks
from burla.head.parts import Parts
from burla.head.replay import replay
from burla.head.store import Store
from burla.head.vault import Vault
from burla.node.plugin import NodePlugin, hold_lease
from burla.protocol import HEAD_KEY, STOP_OP, STREAM_OP

log = logging.getLogger(__name__)

STORE_BROKEN = 74  # exit code


class HeadPlugin(SchedulerPlugin):
    """Makes our own scheduler a head, whose store is in `folder`.

    After `idle_after_s` without unfinished jobs, and when told to, `stop` is called. `fresh`: no node of before can
    come back. `socket`: see `run_head`.
    """

    name = HEAD_KEY
    _supervised = True

    def __init__(
        self,
        folder: Path | None,
        idle_after_s: float | None = None,
        stop: Callable[[], None] = lambda: None,
        fresh: bool = True,
        socket: Path | None = None,
    ):
        self._folder = folder
        self._socket = socket
        self._listening: asyncio.Server | None = None
        self._fresh = fresh
        self._idle_after_s = idle_after_s
        self._watching: asyncio.Future[None] | None = None  # once it has started
        self._signature: dict[str, Any] | None = None  # what a scheduler that others may ask says of us
        self._stop = stop

    async def start(self, scheduler: Scheduler) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the scheduler over."""
        assert self._folder is not None
        self._tasks = LeaseTasks(scheduler, hold_lease)
        self._store = Store.open(
            self._folder / "store", on_full=lambda error: head.set_full(error), on_broken=self._broken
        )
        head = self._tasks.head = Head(
            self._store,
            Parts(self._folder / "parts"),
            Vault(self._folder if self._supervised else None),
            self._tasks.changed,
        )
        await replay(head, nodes_survived=not self._fresh)
        self._service = Service(head, self._idle_after_s, self._stop, self._supervised)
        self._watching = asyncio.ensure_future(self._service.watch())
        scheduler.handlers[STREAM_OP] = self._stream
        if self._socket is not None:
            await self._listen(self._socket)
        await self._install(scheduler)
        self._sign(scheduler)

    def _sign(self, scheduler: Scheduler) -> None:
        if self._signature is not None:
            scheduler.task_metadata[HEAD_KEY] = self._signature

    async def _install(self, scheduler: Scheduler) -> None:
        scheduler.handlers[STOP_OP] = self._end
        plugin = NodePlugin()
        await scheduler.register_worker_plugin(None, dumps(plugin), name=plugin.name, idempotent=True)

    async def _listen(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a head that was killed
        try:
            self._listening = await asyncio.start_unix_server(self._local_stream, path, limit=BUFFER_BYTES)
            path.chmod(0o600)
        except OSError as error:  # a file system without sockets
            log.warning("no socket at %s: %s", path, error)

    async def _stream(self, comm: Any) -> None:
        await self._serve(CommTransport(comm))

    async def _local_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._serve(StreamTransport(reader, writer))

    async def _serve(self, transport: Transport) -> None:
        if self._service.over:
            transport.abort()
        else:
            await Connection(self._service, transport).run()

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

    def restart(self, scheduler: Scheduler) -> None:
        """Somebody's `Client.restart()`: no task is left; the workers end one by one, and give their calls back."""
        self._tasks.forgotten()
        self._sign(scheduler)  # what was said of us was dropped too

    def _broken(self, error: Exception) -> None:
        """The store cannot be used any more: better no head, until another has looked at it, than one that forgets."""
        log.critical("the store cannot be used any more: %r", error)
        os._exit(STORE_BROKEN)

    async def close(self) -> None:
        """The scheduler ends."""
        if self._watching is not None:
            self._watching.cancel()
            if self._listening is not None:
                self._listening.close()
            self._service.hang_up()
            await self._tasks.close()
            self._store.close()
