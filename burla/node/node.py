"""A node: one machine's share of the cluster. Owns the children; outlives the Dask worker it belongs to."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from typing import Any

from burla.channel import Channel, ChannelClosed, Transport
from burla.node.children import Nursery
from burla.node.lease import Lease
from burla.protocol import (
    MESSAGE_BYTES,
    Beat,
    BeginLease,
    Blob,
    EndLease,
    GetPiece,
    Join,
    Joined,
    MoreWork,
    NodeOffer,
    Payload,
    PutPiece,
    RelayEnded,
    Released,
    SetSlots,
)

log = logging.getLogger(__name__)

BEAT_S = 5.0  # the head gives up a node that is silent for 20 s


class Node:
    """Carries out what the head says; one head at a time."""

    def __init__(self, offer: NodeOffer):
        self.offer = offer
        self.nursery = Nursery(ready=offer.cpus)
        self._leases: dict[str, Lease] = {}
        self._channel: Channel | None = None
        self._trade_every_s = 0.05
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cpu_users = dict.fromkeys(cpus, 0)

    async def start(self) -> None:
        """Start the zygote and the first clean children."""
        await self.nursery.start()

    def close(self) -> None:
        """End all children."""
        self.nursery.close()

    async def serve(self, transport: Transport, address: str) -> None:
        """Join the head at the other end, and serve it until the connection ends; then no call of it runs."""
        channel = self._channel = Channel(transport, self._handle)
        channel.spawn(self._join(channel, address))
        channel.spawn(self._beat(channel))
        try:
            reason = await channel.run()
            log.info("the head is gone: %s", reason)
        finally:
            self._channel = None
            await asyncio.gather(*(self._end_lease(job) for job in list(self._leases)))

    async def _join(self, channel: Channel, address: str) -> None:
        try:
            joined: Joined = await channel.ask(Join(self.offer, address))
        except ChannelClosed:
            return
        self._trade_every_s = joined.trade_every_s

    async def _beat(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            channel.post(Beat())

    async def _handle(self, message: Any) -> None:
        match message:
            case BeginLease(spec):
                self._leases[spec.id] = Lease(self, spec, self._trade_every_s)
            case SetSlots(job, slots, slices):
                if job in self._leases:
                    self._leases[job].add(slices)
                    self._leases[job].set_slots(slots)
            case MoreWork(job, slices):
                if job in self._leases:
                    self._leases[job].add(slices)
            case EndLease(job):
                try:
                    await self._end_lease(job)
                finally:
                    await self.tell(Released(job))
            case _:
                log.error("the head sent %s", type(message).__name__)

    async def lease_over(self, job: str) -> None:
        """Return when there is no lease on the job here."""
        if job in self._leases:
            await self._leases[job].over.wait()

    async def _end_lease(self, job: str) -> None:
        lease = self._leases.pop(job, None)
        if lease is not None:
            await lease.end()

    # for leases

    async def ask(self, message: Any) -> Any:
        """Ask the head. Raises ChannelClosed, or the error with which it refused."""
        if self._channel is None:
            raise ChannelClosed("no head")
        return await self._channel.ask(message)

    async def tell(self, message: Any) -> None:
        """Tell the head something; a head that is gone needs to know nothing."""
        if self._channel is not None:
            try:
                await self._channel.tell(message)
            except ChannelClosed:
                log.info("no head to tell %s", type(message).__name__)

    async def fetch(self, job: str, payload: Payload) -> bytes:
        """Return the bytes of a payload, from the head if need be."""
        if isinstance(payload, bytes):
            return payload
        data = bytearray()
        while len(data) < payload.size_bytes:
            data += await self.ask(GetPiece(job, payload.id, len(data)))
        return bytes(data)

    async def put(self, job: str, data: bytes) -> Blob:
        """Give a large value to the head, in pieces."""
        blob = Blob(secrets.token_hex(8), len(data))
        for offset in range(0, len(data), MESSAGE_BYTES):
            await self.ask(PutPiece(job, blob.id, data[offset : offset + MESSAGE_BYTES]))
        return blob

    def nested_ended(self, session: str) -> None:
        """A child that had made nested calls is gone."""
        self.nursery.keep(self.tell(RelayEnded(session)))

    def take_cpus(self, count: int) -> tuple[int, ...]:
        """Return the CPUs that a slot uses: the least used ones."""
        cpus = tuple(sorted(self._cpu_users, key=lambda cpu: (self._cpu_users[cpu], cpu))[:count])
        for cpu in cpus:
            self._cpu_users[cpu] += 1
        return cpus

    def return_cpus(self, cpus: tuple[int, ...]) -> None:
        for cpu in cpus:
            self._cpu_users[cpu] -= 1
