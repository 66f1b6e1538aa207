"""Boots machines for a job while it runs, as `planning` decides, until the job ends or there is nothing left to boot.

It runs in the client's process. A client that is killed leaves machines that join and serve, or end by themselves: see
`boot`. What happens is told in the job's journal, to everybody who follows it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Protocol

from burla import config, images
from burla.clusters import catalog, planning, pool, record
from burla.clusters import cloud as clouds
from burla.clusters.boot import Timers
from burla.clusters.catalog import Machine
from burla.clusters.cloud import NODE, Refused, Vm
from burla.clusters.planning import Order
from burla.clusters.pool import NodeKind
from burla.clusters.record import CloudCluster
from burla.errors import ClusterBusy
from burla.protocol import Need

log = logging.getLogger(__name__)

IDLE_S = 60.0  # then a machine that was booted for a job ends
TIMERS = Timers()
LOOK_S = 5.0
MEASURE_S = 3.0  # for calls to show how long they take, where there is room for some
MOST_FAILURES = 2
BUSY_S = 1.0  # until it is looked again whether another process still changes the cluster


class JobToGrow(Protocol):
    """The job, at its head. Both raise ClusterLost, and UnknownJob when nobody wants it any more."""

    async def need(self) -> Need: ...
    async def tell(self, text: str, over: bool = False) -> None: ...


class _NothingLeft(Exception):
    """Nothing more can be booted; the message says why."""


class Growth:
    """One job being grown."""

    def __init__(self, cluster: CloudCluster, job: JobToGrow):
        self._cluster = cluster
        self._job = job
        self._cloud = clouds.connect(cluster)
        self._refused: dict[str, str] = {}  # machine → why
        self._ours: dict[str, Machine] = {}  # nodes that we have booted, by name, until they have joined
        self._waits: set[asyncio.Task[None]] = set()
        self._room_since: float | None = None
        self._capped = False
        self._failures = 0  # orders, one after the other, of which no machine became a node
        self._failed = ""  # why

    async def run(self, ordered: Callable[[], None]) -> None:
        """Grow the job to its end. `ordered` is called when what it needs at first has been ordered, or refused."""
        try:
            need = await self._job.need()
            if need.unfinished and any(planning.slots_at(node, need) for node in need.nodes):
                await asyncio.sleep(MEASURE_S)
                need = await self._job.need()
            while need.unfinished:
                if not await self._order(need):
                    await asyncio.sleep(BUSY_S)
                else:
                    ordered()
                    await asyncio.sleep(LOOK_S)
                need = await self._job.need()
        except (_NothingLeft, Refused) as error:
            ordered()
            await asyncio.gather(*self._waits)  # they may still join
            await self._job.tell(f"{self._cluster.name} grows no more: {error}. The job runs on what is there", True)

    async def _order(self, need: Need) -> bool:
        """Boot what the job lacks. Return False if another process is changing the cluster. Raises _NothingLeft."""
        slots = sum(planning.slots_at(node, need) for node in need.nodes)
        if slots and self._room_since is None:
            self._room_since = time.monotonic()
        if not self._lacking(need, slots):
            return True  # the usual case asks the cloud nothing
        try:
            with record.changing(self._cluster.name):
                now = record.find(self._cluster.name)
                if now is None or now.id != self._cluster.id:
                    raise _NothingLeft("the cluster has been deleted")
                while orders := await self._plan(need):
                    for order in orders:
                        if not await self._boot(order, need):
                            break  # something else takes its place
                    else:
                        break
        except ClusterBusy:
            return False
        return True

    def _lacking(self, need: Need, slots: int) -> int:
        since = self._room_since
        return planning.lacking(need, slots, 0.0 if since is None else time.monotonic() - since)

    async def _plan(self, need: Need) -> list[Order]:
        """Return what to boot now. Raises _NothingLeft."""
        one = self._cluster
        usual = catalog.find(one.cloud, one.machine)
        booting = await self._booting(need)
        slots = sum(planning.slots_at(node, need) for node in need.nodes)
        call_bytes = planning.room_per_call(need, usual)
        slots += sum(planning.slots_on(machine, need, call_bytes) for machine in booting)
        lacking = self._lacking(need, slots)
        if not lacking:
            return []
        if self._failures >= MOST_FAILURES and not booting:
            raise _NothingLeft(self._failed)
        capacity = planning.capacity(catalog.machines(one.cloud), need, usual)
        left = config.grow_max_cpus() - need.cpus - sum(machine.cpus for machine in booting)
        orders = planning.plan(lacking, capacity, left, self._refused)
        if orders:
            return orders
        if planning.plan(lacking, capacity, sys.maxsize, self._refused):
            if not self._capped:
                self._capped = True
                await self._job.tell(
                    f"{one.name} has grown to its limit of {config.grow_max_cpus():,} CPUs (BURLA_GROW_MAX_CPUS)"
                )
            return []
        if booting:
            return []  # they may be enough
        if self._refused:
            raise _NothingLeft(f"the cloud refuses what would do for its calls ({', '.join(self._refused)})")
        raise _NothingLeft(f"the catalogue has no machine of {one.cloud} on which a call fits")

    async def _booting(self, need: Need) -> list[Machine]:
        """Return the machines that are to be nodes soon; of others' only those on which our calls may run."""
        joined = {node.name for node in need.nodes} | set(need.unfit)
        for name in self._ours.keys() & joined:
            machine = self._ours.pop(name)
            if name in need.unfit:  # such as one whose GPU has no driver: others would be no better
                raise _NothingLeft(f"no call of the job fits on the new node {name} ({machine.name})")
        image_fits = need.image in (None, images.normalise(self._cluster.image))
        there = await pool.sweep(self._cloud, await self._cloud.vms())
        vms = [vm for vm in there if vm.role == NODE and vm.name not in joined]
        others = [vm for vm in vms if image_fits and vm.name not in self._ours and _boots(vm)]
        kinds = [catalog.find(self._cluster.cloud, vm.machine) for vm in others]
        return [*self._ours.values(), *(kind for kind in kinds if kind is not None)]

    async def _boot(self, order: Order, need: Need) -> bool:
        """Start machines of one kind; return whether the cloud gave all of them."""
        one, machine = self._cluster, order.machine
        await self._job.tell(f"growing {one.name}: {order}")
        kind = NodeKind(machine.name, need.image or one.image, IDLE_S, gpus=bool(machine.gpus), spot=one.spot)
        vms, failed = await pool.boot(self._cloud, one, kind, order.count, TIMERS)
        self._ours.update({vm.name: machine for vm in vms})
        if vms:
            wait = asyncio.ensure_future(self._wait(vms))
            self._waits.add(wait)
            wait.add_done_callback(self._waits.discard)
        if not failed:
            return True
        refusal = failed[0].refusal
        if refusal is None or not refusal.capacity:
            raise Refused(failed[0].why)
        self._refused[machine.name] = failed[0].why
        await self._job.tell(f"growing {one.name}: {len(vms)} of {order.count} came: {failed[0].why}")
        return False

    async def _wait(self, vms: list[Vm]) -> None:
        """Wait until machines have joined; end those that do not."""
        try:
            failed = await pool.wait(self._cloud, self._cluster, vms, TIMERS.boot_s, log.info)
            texts = [await pool.told(self._cloud, one) for one in failed]
            await self._cloud.end([one.vm.id for one in failed if one.vm is not None])
        except Refused as error:  # what does not join ends by itself
            await self._job.tell(f"growing {self._cluster.name}: {error}")
            return
        for one in failed:
            self._ours.pop(one.name, None)
        self._failures = self._failures + 1 if len(failed) == len(vms) else 0
        if texts:
            self._failed = f"new machines do not become nodes: {texts[0]}"
            await self._job.tell(f"growing {self._cluster.name}: {texts[0]}")
        if joined := len(vms) - len(failed):
            await self._job.tell(f"{self._cluster.name} has {joined} more node{'s' if joined > 1 else ''}")


def _boots(vm: Vm) -> bool:
    """Whether a machine that is no node may yet become one."""
    return vm.alive and time.time() - vm.started_at_s < TIMERS.boot_s
