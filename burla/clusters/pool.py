"""The nodes of a cluster: start some, wait until they have joined, end some."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from burla.clusters import catalog, logins
from burla.clusters.boot import Boot, Timers, user_data
from burla.clusters.cloud import NODE, Cloud, Refused, Vm, VmOrder
from burla.clusters.record import CloudCluster
from burla.clusters.rpc import ask
from burla.protocol import NODES_OP

_ASK_S = 5.0
_LOOK_S = 0.5
_NAMED_S = 60.0
_CONSOLE_LINES = 15


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A pool: nodes of one image on one kind of machine. `idle_s`: after so long without work one ends."""

    machine: str
    image: str
    idle_s: float
    gpus: bool = False
    spot: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A machine that is no node. `vm` None: the cloud refused it; `refusal`: then, with the cloud's words."""

    name: str
    why: str
    vm: Vm | None = None
    refusal: Refused | None = None


async def kind_of(cloud: Cloud, cluster: CloudCluster) -> NodeKind:
    """Return the nodes that a cluster has when nothing else is asked for."""
    gpus = await cloud.has_gpus(cluster.machine)
    return NodeKind(cluster.machine, cluster.image, cluster.idle_s, gpus, cluster.spot)


async def boot(
    cloud: Cloud, cluster: CloudCluster, kind: NodeKind, count: int, timers: Timers
) -> tuple[list[Vm], list[Failed]]:
    """Start `count` machines at once; return those that the cloud gave, and those that it refused."""
    listed = catalog.find(cluster.cloud, kind.machine)
    price = None if listed is None else listed.usd_per_hour
    orders = []
    for _ in range(count):
        name = f"burla-{cluster.name}-node-{secrets.token_hex(4)}"
        what = Boot(
            NODE,
            name,
            kind.image,
            kind.idle_s,
            cluster.head_address,
            kind.gpus,
            timers,
            price,
            leaving=cloud.leaving(NODE),
            login=logins.commands(cluster.cloud, kind.image),
        )
        data = user_data(what, cluster.keys())
        orders.append(VmOrder(name, NODE, kind.machine, data, kind.gpus, kind.spot))
    expiry_s = time.time() + timers.boot_s
    answers = await asyncio.gather(
        *(cloud.boot(order, cluster.network, expiry_s) for order in orders), return_exceptions=True
    )
    failed: list[Failed] = []
    for order, answer in zip(orders, answers, strict=True):
        if isinstance(answer, Refused):
            failed.append(Failed(order.name, str(answer), refusal=answer))
        elif isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, Vm)], failed


async def wait(
    cloud: Cloud, cluster: CloudCluster, vms: Sequence[Vm], timeout_s: float, say: Callable[[str], None]
) -> list[Failed]:
    """Return once every machine has joined, or cannot any more; those are told of, and still have to be ended."""
    waiting = {vm.name: vm for vm in vms}
    until = time.monotonic() + timeout_s
    failed: list[Failed] = []
    seen: set[str] = set()
    while waiting and time.monotonic() < until:
        seen.update(alive := {vm.id for vm in await cloud.vms() if vm.alive})
        for name in [name for name, vm in waiting.items() if has_ended(vm, alive, seen)]:
            failed.append(Failed(name, "it ended while it booted", waiting.pop(name)))
        joined = waiting.keys() & (await busy(cluster)).keys()
        for name in joined:
            del waiting[name]
        if joined:
            say(f"{len(vms) - len(waiting) - len(failed)} of {len(vms)} nodes joined")
        if waiting:
            await asyncio.sleep(_LOOK_S)
    return failed + [Failed(name, f"it has not joined in {timeout_s:.0f} s", vm) for name, vm in waiting.items()]


def has_ended(vm: Vm, alive: Collection[str], seen: Collection[str]) -> bool:
    """Whether a machine is gone: a cloud may take a while to name one that it has just started."""
    return vm.id not in alive and (vm.id in seen or time.time() - vm.started_at_s > _NAMED_S)


async def sweep(cloud: Cloud, vms: Sequence[Vm]) -> list[Vm]:
    """End machines that have shut themselves down, where a cloud keeps their disks all the same; return the others."""
    await cloud.end([vm.id for vm in vms if vm.state == "stopped"])
    return [vm for vm in vms if vm.state != "stopped"]


async def busy(cluster: CloudCluster) -> dict[str, int]:
    """Return the nodes that have joined, by name, with their slots in use; none if the head does not answer now."""
    try:
        told = await ask(cluster.address, cluster.entry().security(), NODES_OP, _ASK_S)
    except OSError:  # it restarts
        told = None
    return told or {}  # None: it still waits for our package


async def told(cloud: Cloud, failed: Failed) -> str:
    """Return in words why a machine failed, with the end of what it wrote."""
    text = f"{failed.name}: {failed.why}"
    if failed.vm is not None:
        try:
            lines = (await cloud.console(failed.vm.id)).strip().splitlines()[-_CONSOLE_LINES:]
        except Refused:
            lines = []
        if lines:
            text += ". It wrote at last:\n" + "\n".join(lines) + "\n"
    return text
