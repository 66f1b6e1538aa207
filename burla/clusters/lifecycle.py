"""Makes clusters in a cloud, changes their size, ends them: step by step, each of which may fail or be interrupted.

Whatever happens between two steps, nothing bills for ever: a machine that nobody talks to ends by itself (see `boot`),
and what a cluster has is found again by its tag.
"""

from __future__ import annotations

import asyncio
import getpass
import re
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from burla.clusters import cloud as clouds
from burla.clusters import logins, pool, record, registry
from burla.clusters.boot import PORT, Boot, Timers, user_data
from burla.clusters.borrowed import prepare
from burla.clusters.cloud import HEAD, NODE, Cloud, Refused, Vm, VmOrder
from burla.clusters.record import CloudCluster
from burla.clusters.rpc import ask
from burla.clusters.security import create_keys
from burla.errors import CloudError, ClusterBusy
from burla.protocol import NEEDED_OP

_LOOK_S = 0.5
_ASK_S = 5.0
_GONE_S = 300.0  # for machines to end
_SETTLE_S = 5.0
Say = Callable[[str], None]


@dataclass
class Work:
    """What is being done to a cluster; `step` says it in words, for an error."""

    cluster: CloudCluster
    cloud: Cloud
    say: Say
    step: str = ""

    def begin(self, step: str) -> None:
        """Go on to the next step."""
        self.step = step
        self.say(step)

    def keep(self, **facts: object) -> None:
        """Write down what is known now."""
        self.cluster = replace(self.cluster, **facts)  # pyright: ignore[reportArgumentType]
        record.write(self.cluster)


async def create(cluster: CloudCluster, nodes: int, cidr: str, timers: Timers, say: Say) -> CloudCluster:
    """Make a cluster with so many nodes, and return it. Raises CloudError: nothing is left then, or it says what."""
    with record.changing(cluster.name):
        work = Work(cluster, clouds.connect(cluster), say)
        async with _steps(work):
            work.begin(f"looking at the account ({cluster.cloud})")
            work.cluster = replace(cluster, region=await work.cloud.check())
            work.cloud = clouds.connect(work.cluster)
            await _clear_former(work)
        create_keys(cluster.folder)
        work.keep()
        async with _steps(work):
            try:
                await _make(work, nodes, cidr, timers)
            except BaseException:
                await _undo(work)
                raise
        return work.cluster


async def _make(work: Work, nodes: int, cidr: str, timers: Timers) -> None:
    cluster, cloud = work.cluster, work.cloud
    work.begin(f"looking at {cluster.machine}")
    kind = await pool.kind_of(cloud, cluster)
    work.begin(f"making a network for {cluster.name} in {cluster.region}, open to {cidr}")
    network = await cloud.make_network(time.time() + timers.boot_s)
    await cloud.admit(network, cidr)
    work.keep(network=network, admitted=(cidr,))
    work.begin(f"starting the head ({cluster.head_machine})")
    # it has no identity to be let in with where an image is private
    image = default_image() if logins.is_private(cluster.cloud, cluster.image) else cluster.image
    boot = Boot(
        HEAD, f"burla-{cluster.name}-head", image, cluster.idle_s, timers=timers,
        store=cluster.copies, keep_results_s=cluster.keep_results_s, leaving=cloud.leaving(HEAD),
    )  # fmt: skip
    order = VmOrder(boot.name, HEAD, cluster.head_machine, user_data(boot, cluster.keys()))
    head = await cloud.boot(order, network, time.time() + timers.boot_s)
    work.keep(
        address=f"tls://{head.public_ip or head.private_ip}:{PORT}", head_address=f"tls://{head.private_ip}:{PORT}"
    )
    booted: list[Vm] = []
    if nodes:
        work.begin(f"starting {_count(nodes)} ({cluster.machine})")
        booted, failed = await pool.boot(cloud, work.cluster, kind, nodes, timers)
        if failed:
            raise Refused(failed[0].why)
    work.begin("waiting for the head, to bring burla there")
    await _wait_for_head(work, head, timers.boot_s)
    registry.save(work.cluster.entry())
    if booted:
        work.begin(f"waiting for {_count(nodes)}")
        failed = await pool.wait(cloud, work.cluster, booted, timers.boot_s, work.say)
        if failed:
            raise Refused(await pool.told(cloud, failed[0]))


async def _wait_for_head(work: Work, head: Vm, timeout_s: float) -> None:
    security = work.cluster.entry().security()
    until = time.monotonic() + timeout_s
    seen: set[str] = set()
    while True:
        seen.update(alive := {vm.id for vm in await work.cloud.vms() if vm.alive})
        if pool.has_ended(head, alive, seen):
            raise Refused(await pool.told(work.cloud, pool.Failed(head.name, "it ended while it booted", head)))
        try:
            return await asyncio.to_thread(prepare, work.cluster.address, security)
        except OSError as error:
            if time.monotonic() > until:
                why = f"the head does not answer at {work.cluster.address} (waited {timeout_s:.0f} s): {error}"
                raise Refused(await pool.told(work.cloud, pool.Failed(head.name, why, head))) from error
        await asyncio.sleep(_LOOK_S)


async def scale(cluster: CloudCluster, nodes: int, timers: Timers, say: Say) -> None:
    """Have so many nodes, whoever is attached; idle ones end first. Raises CloudError; those that came stay."""
    with record.changing(cluster.name):
        work = Work(cluster, clouds.connect(cluster), say)
        async with _steps(work):
            work.begin(f"looking at {cluster.name}")
            there = await pool.sweep(work.cloud, await work.cloud.vms())
            now = [vm for vm in there if vm.role == NODE and vm.alive]
            if len(now) < nodes:
                await _add(work, nodes - len(now), timers)
            elif len(now) > nodes:
                busy = await pool.busy(cluster)
                leaving = sorted(now, key=lambda vm: (busy.get(vm.name, 0), -vm.started_at_s))[: len(now) - nodes]
                work.begin(f"ending {_count(len(leaving))}")
                await work.cloud.end([vm.id for vm in leaving])
                await _until_gone(work, {vm.id for vm in leaving})


async def _add(work: Work, count: int, timers: Timers) -> None:
    cloud, cluster = work.cloud, work.cluster
    work.begin(f"starting {_count(count)} ({cluster.machine})")
    kind = await pool.kind_of(cloud, cluster)
    booted: list[Vm] = []
    try:
        booted, failed = await pool.boot(cloud, cluster, kind, count, timers)
        if booted:
            work.begin(f"waiting for {_count(len(booted))}")
            failed += await pool.wait(cloud, cluster, booted, timers.boot_s, work.say)
    except BaseException:
        await cloud.end([vm.id for vm in booted])
        raise
    if failed:
        why = await pool.told(cloud, failed[0])
        await cloud.end([one.vm.id for one in failed if one.vm is not None])
        raise Refused(f"{count - len(failed)} of {_count(count)} came. {why}")


async def stop(cluster: CloudCluster, force: bool, say: Say, forget: bool = False) -> None:
    """End all machines of a cluster, with what is stored there; `forget`: its network, name and keys too.

    Raises ClusterBusy if jobs are unfinished there, unless `force`; CloudError, with what may still run.
    """
    with record.changing(cluster.name):
        work = Work(cluster, clouds.connect(cluster), say)
        if not force and (needed := await _needed(cluster)):
            raise ClusterBusy(
                f"{cluster.name} is in use ({', '.join(needed)}). Wait, or end it all the same: --force (force=True)."
            )
        async with _steps(work):
            await _remove(work, network=forget)
        if forget:
            _forget(cluster)


async def admit(cluster: CloudCluster, cidr: str, say: Say) -> None:
    """Let clients of these addresses, too, reach the head. Raises CloudError."""
    with record.changing(cluster.name):
        work = Work(cluster, clouds.connect(cluster), say)
        async with _steps(work):
            work.begin(f"admitting {cidr} to {cluster.name}")
            await work.cloud.admit(cluster.network, cidr)
            work.keep(admitted=(*(one for one in cluster.admitted if one != cidr), cidr))


async def _needed(cluster: CloudCluster) -> list[str]:
    if not cluster.address:
        return []
    try:
        told = await ask(cluster.address, cluster.entry().security(), NEEDED_OP, _ASK_S)
    except OSError:  # no head any more
        told = None
    return told or []  # None: it has never had our package


async def _remove(work: Work, network: bool = True) -> None:
    work.begin(f"ending the machines of {work.cluster.name}")
    gone: set[str] = set()
    until = time.monotonic() + _GONE_S
    while vms := await work.cloud.vms():
        if new := [vm.id for vm in vms if vm.id not in gone]:
            await work.cloud.end(new)
            gone.update(new)
        if time.monotonic() > until:
            raise Refused(f"machines do not end: {', '.join(vm.name for vm in vms)}")
        await asyncio.sleep(_LOOK_S if vms else 0)
    if network:
        work.begin("removing its network")
        await work.cloud.remove_network()


async def _until_gone(work: Work, ids: set[str]) -> None:
    until = time.monotonic() + _GONE_S
    while still := ids & {vm.id for vm in await work.cloud.vms()}:
        if time.monotonic() > until:
            raise Refused(f"machines do not end: {', '.join(still)}")
        await asyncio.sleep(_LOOK_S)


def _forget(cluster: CloudCluster) -> None:
    registry.unkeep(cluster.name)
    shutil.rmtree(cluster.folder)


async def _clear_former(work: Work) -> None:
    """A creation of before was killed, or the machines have ended by themselves: what is left of it goes first."""
    name = work.cluster.name
    former, known = record.find(name), any(one.name == name for one in registry.entries())
    if former is None:
        if known:
            raise ClusterBusy(f"{name!r} is the name of another cluster: choose another.")
        return
    before = Work(former, clouds.connect(former), work.say)
    if known and any(vm.role == HEAD and vm.alive for vm in await before.cloud.vms()):
        raise ClusterBusy(f"{name!r} exists: burla cluster status {name}, or delete it first.")
    before.begin(f"removing what is left of an earlier {name}")
    await _remove(before)
    _forget(former)


async def _undo(work: Work) -> None:
    """Remove what has been made; what cannot be removed is told of by who asks the cloud next."""
    work.say(f"{work.step}: this failed; removing what was made")
    step = work.step
    try:
        await _remove(work, network=False)
        await asyncio.sleep(_SETTLE_S)  # a cloud may take so long to name a machine that it has just started
        await _remove(work)
        _forget(work.cluster)
    except Refused as error:
        work.say(f"{work.step}: {error}. Try again: burla cluster delete {work.cluster.name}")
    work.step = step


@asynccontextmanager
async def _steps(work: Work) -> AsyncIterator[None]:
    """Turn what the cloud says into an error that names the step, and what runs now."""
    try:
        yield
    except Refused as error:
        try:
            left = [vm.name for vm in await work.cloud.vms()]
            still = f"Of it run: {', '.join(left)}." if left else "Nothing of it runs."
        except Refused:
            left, still = [], "The cloud does not say what of it runs."
        text = f"{work.cluster.name}: {work.step}: {error}. {still}"
        raise CloudError(text, step=work.step, told=str(error), left=left) from error


def _count(nodes: int) -> str:
    return f"{nodes} node{'s' if nodes != 1 else ''}"


def say(text: str) -> None:
    """Tell the user how far it is; each step may take minutes."""
    print(f"burla: {text}", file=sys.stderr, flush=True)


def owner() -> str:
    """Return who this user is, as a tag."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        name = "unknown"
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())[:63]


def default_image() -> str:
    """Return the container image of who says none: Python's own, of the version of this process."""
    return "python:{}.{}-slim".format(*sys.version_info)


def new_id() -> str:
    """Return the id of a cluster that is to be made."""
    return secrets.token_hex(6)
