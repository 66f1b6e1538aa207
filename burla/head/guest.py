"""The head in a scheduler that somebody else runs: a guest there, which leaves when another version is to take over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from distributed import Scheduler

from burla.errors import ClusterLost, StoreUnknown
from burla.head.plugin import HeadPlugin
from burla.node.plugin import NodePlugin
from burla.protocol import HEAD_KEY, LEAVE_OP, STREAM_OP

log = logging.getLogger(__name__)


class GuestPlugin(HeadPlugin):
    """See the module. `node` is the pickled plugin for workers. What is stored ends with the scheduler.

    `key` and `version` name this burla, for others and for people.
    """

    _supervised = False

    def __init__(self, key: str, version: str, node: bytes):
        super().__init__(None)
        self._signature = {"key": key, "version": version}
        self._node = node
        self._leaving: asyncio.Task[None] | None = None

    async def start(self, scheduler: Scheduler) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the scheduler over, with the jobs of a guest that was here before. Raises RuntimeError."""
        self._scheduler = scheduler
        self._folder = _folder(scheduler.id)
        try:
            try:
                await super().start(scheduler)
            except StoreUnknown as error:  # it had ended all its jobs: their results are all that is lost
                log.warning("the jobs of another version are deleted: %s", error)
                shutil.rmtree(self._folder / "store")
                await super().start(scheduler)
        except BaseException:
            await self._give_back()
            raise

    async def _install(self, scheduler: Scheduler) -> None:
        self._service.scheduler = scheduler.id
        scheduler.handlers[LEAVE_OP] = self._leave
        told = await scheduler.register_worker_plugin(None, self._node, name=NodePlugin.name, idempotent=False)
        failures = [answer for answer in told.values() if answer["status"] != "OK"]
        for failure in failures:
            log.warning("a worker cannot be used: %s", failure)
        if failures and len(failures) == len(told):
            raise RuntimeError(f"no worker of the cluster can be used: {failures[0].get('exception_text')}")

    async def _leave(self) -> list[str]:
        """Return who needs this head; if nobody does, once nothing of it is left. Other versions ask this."""
        if self._leaving is None and (needed := self._service.needed()):
            return needed
        if self._leaving is None:
            self._service.closing = True
            self._leaving = asyncio.ensure_future(self._give_back())
        await self._leaving
        return []

    async def _give_back(self) -> None:
        scheduler = self._scheduler
        if NodePlugin.name in scheduler.worker_plugins:
            await scheduler.unregister_worker_plugin(None, NodePlugin.name)
        await super().close()
        for operation in (STREAM_OP, LEAVE_OP):
            scheduler.handlers.pop(operation, None)
        scheduler.plugins.pop(HEAD_KEY, None)
        scheduler.task_metadata.pop(HEAD_KEY, None)

    def _broken(self, error: Exception) -> None:
        """The store cannot be used any more; the scheduler stays."""
        log.critical("the store cannot be used any more: %r", error)
        for job in self._service.head.jobs.values():
            job.suspend(ClusterLost(f"the head cannot write what it is told any more: {error}"))

    async def close(self) -> None:
        """The scheduler ends."""
        await super().close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _folder(scheduler_id: str) -> Path:
    """Return the folder of the guests of a scheduler, one after the other. Its name cannot be guessed before."""
    folder = Path(tempfile.gettempdir()) / f"burla-head-{scheduler_id.rpartition('Scheduler-')[2]}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise RuntimeError(f"{folder} belongs to somebody else")
    return folder
