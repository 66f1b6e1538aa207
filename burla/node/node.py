"""A node: one machine's share of the cluster. Owns the children; outlives the Dask worker it belongs to.

When the head is lost, calls go on. The head that comes back is told what is here (`Join`), and says what of it is still
this node's; what was on its way is sent again.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import time
from collections.abc import Iterable
from typing import Any

from burla import blobs, config
from burla.channel import Channel, ChannelClosed, Transport
from burla.environment import disk
from burla.errors import BurlaError, StoreFull
from burla.node.cgroup import Cgroups
from burla.node.children import Nursery
from burla.node.gpus import GpuPool
from burla.node.lease import Lease
from burla.node.memory import Gauge
from burla.node.setting import Settings
from burla.node.slot import Slot
from burla.node.watch import MemoryWatch
from burla.protocol import (
    Beat,
    BeginLease,
    Blob,
    EndLease,
    HasDisk,
    Join,
    Joined,
    MoreWork,
    NodeOffer,
    Payload,
    RelayEnded,
    Released,
    SetSlots,
)

log = logging.getLogger(__name__)

BEAT_S = 5.0
NO_HEAD_S = 60.0  # then calls of a head that is lost end
FULL_S = 1.0  # before a value is offered again to a head whose disk is full


class Node:
    """Carries out what the head says; one head at a time."""

    def __init__(self, offer: NodeOffer, gauge: Gauge):
        self.offer = offer
        self.watch = MemoryWatch(gauge, self)
        self.gpus = GpuPool(offer.gpus)
        self.nursery = Nursery(ready=offer.cpus)
        self.settings = Settings(self)
        self._leases: dict[str, Lease] = {}
        self._channel: Channel | None = None
        self._joined = asyncio.Event()  # there is a head, and it knows what is here
        self._sessions: set[str] = set()  # of children that have made nested calls
        self._heard = time.monotonic()  # when the head was last told that this node lives
        self._worked = self._had_head = self._heard
        self._giving_up: asyncio.TimerHandle | None = None
        self.trades = itertools.count(1)
        self._trade_every_s = 0.05
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cpu_users = dict.fromkeys(cpus, 0)

    async def start(self) -> None:
        """Start the zygote and the first clean children."""
        await self.nursery.start()
        self.nursery.keep(self.watch.run())

    @property
    def slots(self) -> Iterable[Slot]:
        """The slots of all leases."""
        return [slot for lease in self._leases.values() for slot in lease.slots]

    def idle_for_s(self, now: float) -> float:
        """Return for how long no job has had a lease here."""
        if self._leases:
            self._worked = now
        return now - self._worked

    def headless_for_s(self, now: float) -> float:
        """Return for how long there has been no head."""
        if self._joined.is_set():
            self._had_head = now
        return now - self._had_head

    @functools.cached_property
    def cgroups(self) -> Cgroups | None:
        """What keeps calls within their `func_ram`; None: watching alone does."""
        return Cgroups.find()

    def close(self) -> None:
        """End all children."""
        if self._giving_up is not None:
            self._giving_up.cancel()
        self.settings.close()
        self.nursery.close()
        if "cgroups" in vars(self) and self.cgroups is not None:
            self.cgroups.close()

    async def serve(self, transport: Transport, address: str) -> None:
        """Join the head at the other end, and serve it until the connection ends; calls go on meanwhile."""
        channel = self._channel = Channel(transport, self._handle)
        channel.spawn(self._join(channel, address))
        try:
            reason = await channel.run()
            log.info("the head is gone: %s", reason)
        finally:
            if self._channel is channel:
                self._channel = None
                self._joined.clear()
                self._give_up_later()

    async def _join(self, channel: Channel, address: str) -> None:
        claims = tuple(lease.claim() for lease in self._leases.values())
        try:
            joined: Joined = await channel.ask(Join(self.offer, address, claims, tuple(self._sessions)))
        except ChannelClosed:
            return
        except BurlaError as error:
            log.error("the head does not take this node: %s", error)
            channel.close()
            return
        if not joined.kept.keys() <= self._leases.keys():
            channel.close()  # one was given up in this moment: the head has to be told anew
            return
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._trade_every_s = joined.trade_every_s
        self._heard = time.monotonic()
        channel.spawn(self._beat(channel))
        unwanted = [job for job in self._leases if job not in joined.kept]
        for job, ranges in joined.kept.items():
            self._leases[job].keep(ranges)
        ending = [self._leases.pop(job) for job in unwanted]
        for lease in ending:  # now: a question that waits for the head would go to it first
            lease.stop_trading()
        self._joined.set()
        await asyncio.gather(*(lease.end() for lease in ending))

    def join_anew(self) -> None:
        """Break with the head, and join it again: what it has misunderstood is then told anew."""
        if self._channel is not None:
            self._channel.close()

    def _give_up_later(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()

        def give_up() -> None:
            log.warning("no head for %.0f s: calls end", NO_HEAD_S)
            for job in list(self._leases):
                self.nursery.keep(self._end_lease(job))

        self._giving_up = asyncio.get_running_loop().call_later(NO_HEAD_S, give_up)

    async def _beat(self, channel: Channel) -> None:
        while self.may_start:
            channel.post(Beat())
            self._heard = time.monotonic()
            await asyncio.sleep(BEAT_S)
        log.warning("this process has stood still: the head has given its calls away")
        channel.close()

    @property
    def may_start(self) -> bool:
        """Whether calls that wait here are still this node's, as far as it can know."""
        return time.monotonic() - self._heard < config.NODE_LEASE_S

    async def _handle(self, message: Any) -> Any:
        match message:
            case BeginLease(spec, variables):
                self._leases[spec.id] = Lease(self, spec, variables, self._trade_every_s)
            case HasDisk(origin):
                return await asyncio.to_thread(disk.is_here, origin)
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
        """Ask the head something that may be asked twice: after a break, once there is a head again.

        Raises the error with which it refused.
        """
        while True:
            await self._joined.wait()
            channel = self._channel
            try:
                if channel is not None:
                    return await channel.ask(message)
            except ChannelClosed:
                log.info("%s waits for the head to come back", type(message).__name__)
            await asyncio.sleep(0)  # `serve` notes the end of its channel

    async def tell(self, message: Any) -> None:
        """Tell the head something; a head that is gone needs to know nothing."""
        if self._channel is not None:
            try:
                await self._channel.tell(message)
            except ChannelClosed:
                log.info("no head to tell %s", type(message).__name__)

    async def fetch(self, job: str, payload: Payload) -> bytes:
        """Return the bytes of a payload, from the head if need be. Raises StoreDamaged."""
        return await blobs.fetch(self.ask, job, payload)

    async def put(self, job: str, data: bytes) -> Blob:
        """Give a large value to the head; wait while its disk is full."""
        while True:
            try:
                return await blobs.put(self.ask, job, data)
            except StoreFull as error:
                log.warning("waiting: %s", error)
                await asyncio.sleep(FULL_S)

    def nested_begun(self, session: str) -> None:
        """A child makes its first nested call."""
        self._sessions.add(session)

    def nested_ended(self, session: str) -> None:
        """A child that had made nested calls is gone."""
        self._sessions.discard(session)
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
