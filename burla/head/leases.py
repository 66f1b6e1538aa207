"""Shows leases to Dask: one long task, pinned to the node, per lease that lasts longer than a moment.

The task only waits: who runs what is `place`'s decision, and begins by a message to the node, which is faster. It makes
a busy cluster look busy: to Dask's dashboard, to adaptive scaling, to idle timeouts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from distributed import Client, Future, Scheduler

if TYPE_CHECKING:
    from burla.head.head import Head

log = logging.getLogger(__name__)

MOMENT_S = 1.0
PER_NODE_S = 0.005  # more: with many nodes this is work, and a short job needs none


class LeaseTasks:
    """Keeps the tasks in step with the leases of `head`."""

    head: Head

    def __init__(self, scheduler: Scheduler, hold_lease: Callable[[str, str], Coroutine[Any, Any, None]]):
        self._scheduler = scheduler
        self._hold_lease = hold_lease
        self._client: Client | None = None
        self._shown: dict[tuple[str, str], Future] = {}  # (job, node)
        self._updating: asyncio.Task[None] | None = None

    def changed(self) -> None:
        """A lease began or ended; look in a moment."""
        if self._updating is None or self._updating.done():
            self._updating = asyncio.ensure_future(self._update())

    async def _update(self) -> None:
        while True:
            await asyncio.sleep(MOMENT_S + PER_NODE_S * len(self.head.dispatch.nodes))
            wanted = {
                (job_id, node)
                for job_id, job in self.head.jobs.items()
                for node, slots in job.slots_held().items()
                if slots and not job.state.ended
            }
            if wanted == self._shown.keys():
                if wanted or self._client is None:
                    return
                await self.close_client()
                continue  # a lease may have begun meanwhile
            if self._client is None:  # not at the plugin's start: awaiting a client there deadlocks
                client = Client(
                    self._scheduler.address,
                    security=self._scheduler.security,
                    asynchronous=True,
                    set_as_default=False,
                )
                self._client = await cast(Awaitable[Client], client)
            for job_id, node in wanted - self._shown.keys():
                if node not in self.head.dispatch.nodes:
                    continue
                key = f"burla-lease-{job_id}-{node}"
                workers = [self.head.dispatch.nodes[node].address]
                self._shown[job_id, node] = self._client.submit(
                    self._hold_lease, job_id, key, key=key, workers=workers, pure=False
                )
            for lease in self._shown.keys() - wanted:
                self._shown.pop(lease).release()

    def forgotten(self) -> None:
        """The scheduler has dropped all tasks: those of leases that go on are shown anew."""
        self._shown.clear()
        self.changed()

    async def close(self) -> None:
        """End all tasks; show no more."""
        if self._updating is not None:
            self._updating.cancel()
        await self.close_client()

    async def close_client(self) -> None:
        """Leave nothing of us at the scheduler."""
        client, self._client = self._client, None
        self._shown.clear()
        if client is not None:
            await cast(Awaitable[None], client.close())
