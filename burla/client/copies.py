"""The copies of a cluster's finished results in place of its head: one more target of a connection."""

from __future__ import annotations

import asyncio

from burla.bucket import Bucket
from burla.channel import Channel, Transport, pair
from burla.clusters.record import CloudCluster
from burla.head.copied import Copies


class CopiesTarget:
    """What answers is in this process: it reads the bucket with the credentials of this user."""

    def __init__(self, cluster: CloudCluster):
        self._cluster = cluster

    @property
    def key(self) -> str:
        return self._cluster.copies

    async def open(self) -> Transport:
        ours, theirs = pair()
        self._serving = asyncio.ensure_future(self._serve(theirs))
        return ours

    async def _serve(self, transport: Transport) -> None:
        copies = Copies(Bucket(self._cluster.copies), self._cluster.name)
        try:
            await Channel(transport, copies.answer).run()
        finally:
            copies.close()

    async def revive(self) -> None:
        """Nothing can be done: who is asked ends with this process alone."""
