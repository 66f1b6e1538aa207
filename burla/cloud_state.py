"""How clusters in clouds stand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from burla.clusters import catalog, record
from burla.clusters import cloud as clouds
from burla.clusters.apart import run_apart
from burla.clusters.cloud import HEAD, NODE, Refused, Vm
from burla.clusters.record import CloudCluster
from burla.display.progress import usd_text
from burla.display.table import text_table
from burla.errors import CloudError

_WITHOUT = f"by list prices of {catalog.NOTED}, without disks and traffic"
COLUMNS = ("name", "cloud", "region", "head", "nodes", "address")


@dataclass(frozen=True, slots=True)
class CloudClusters:
    """Clusters with the machines that they have; None: the cloud did not say. Shows as a table."""

    clusters: tuple[tuple[CloudCluster, tuple[Vm, ...] | None], ...]

    def __str__(self) -> str:
        return text_table(COLUMNS, [_row(one, vms) for one, vms in self.clusters])


@dataclass(frozen=True, slots=True)
class Bill:
    """An estimate of what machines have cost since they started; `unpriced`: kinds that the catalogue lacks."""

    machines: int
    hours: float
    usd: float
    usd_per_hour: float
    unpriced: tuple[str, ...]

    @classmethod
    def of(cls, cloud: str, vms: Sequence[Vm], now_s: float) -> Bill:
        """Return the bill of those machines that run. `now_s`: wall clock."""
        vms = [vm for vm in vms if vm.alive]
        hours = [max(0.0, now_s - vm.started_at_s) / 3600 for vm in vms]
        found = [catalog.find(cloud, vm.machine) for vm in vms]
        prices = [0.0 if one is None else one.usd_per_hour for one in found]
        unpriced = {vm.machine for vm, one in zip(vms, found, strict=True) if one is None}
        usd = sum(hour * price for hour, price in zip(hours, prices, strict=True))
        return cls(len(vms), sum(hours), usd, sum(prices), tuple(sorted(unpriced)))

    def __str__(self) -> str:
        text = f"{self.machines} machine{'s' if self.machines != 1 else ''}, {self.hours:,.2f} h in all: "
        if self.machines and not self.usd_per_hour:
            return text + f"cost unknown ({', '.join(self.unpriced)} not in the catalogue)"
        but = f", and what {', '.join(self.unpriced)} costs, which is unknown" if self.unpriced else ""
        text += f"at most {usd_text(self.usd)} so far, {usd_text(self.usd_per_hour)} an hour"
        return f"{text}{but} ({_WITHOUT})"


def _row(one: CloudCluster, vms: Sequence[Vm] | None) -> tuple[str, ...]:
    if vms is None:
        head = nodes = "?"
    else:
        head = next((vm.state for vm in vms if vm.role == HEAD), "none")
        nodes = str(sum(vm.role == NODE for vm in vms))
    return one.name, one.cloud, one.region, head, nodes, one.address


def cloud_clusters() -> CloudClusters:
    """Return the clusters in clouds of this user, with their machines."""
    return run_apart(_look())


async def _look() -> CloudClusters:
    known = record.every()
    found = await asyncio.gather(*(clouds.connect(one).vms() for one in known), return_exceptions=True)
    pairs: list[tuple[CloudCluster, tuple[Vm, ...] | None]] = []
    for one, vms in zip(known, found, strict=True):
        if isinstance(vms, BaseException) and not isinstance(vms, Refused):
            raise vms
        pairs.append((one, None if isinstance(vms, BaseException) else tuple(vms)))
    return CloudClusters(tuple(pairs))


def machines(one: CloudCluster) -> tuple[Vm, ...]:
    """Return the machines of a cluster that have not ended. Raises CloudError."""
    try:
        return tuple(run_apart(clouds.connect(one).vms()))
    except Refused as error:
        step = f"asking {one.cloud} for the machines of {one.name}"
        raise CloudError(f"{step}: {error}", step=step, told=str(error), left=[]) from error


def describe(vm: Vm) -> str:
    """Return a machine in words."""
    minutes = (time.time() - vm.started_at_s) / 60
    age = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
    return f"{vm.role} {vm.name}: {vm.machine}{', spot' if vm.spot else ''}, {vm.zone}, {vm.state}, {age} old"
