"""Clusters that grow for a job of this process: which can, what they would boot, and the thread that sees to it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from burla import config, options, protocol
from burla.client import choice, current
from burla.client.connection import Connection, DaskTarget
from burla.clusters import catalog, planning, record
from burla.clusters.catalog import NOTED
from burla.clusters.planning import Order
from burla.clusters.record import CloudCluster
from burla.errors import BurlaError, ClusterLost, InvalidValue, UnknownJob
from burla.protocol import GetNeed, GetStatus, Growth, Need

log = logging.getLogger(__name__)


def cluster_of(connection: Connection) -> CloudCluster | None:
    """Return the cluster at the other end if this process can boot machines for it."""
    target = connection.target
    if protocol.nested is not None or not isinstance(target, DaskTarget):
        return None
    return record.at(target.address)


def needed_cluster(connection: Connection) -> CloudCluster:
    """Return the same. Raises InvalidValue if there is none."""
    cluster = cluster_of(connection)
    if cluster is None:
        raise _cannot_grow()
    return cluster


def _cannot_grow() -> InvalidValue:
    return InvalidValue("this cluster cannot grow: only one in a cloud that `burla cluster list` shows here can.")


class _Job:
    """See `grow.JobToGrow`."""

    def __init__(self, connection: Connection, job_id: str):
        self._connection = connection
        self._id = job_id

    async def need(self) -> Need:
        return await self._ask(GetNeed(self._id))

    async def tell(self, text: str, over: bool = False) -> None:
        await self._ask(Growth(self._id, text, over))

    async def _ask(self, message: GetNeed | Growth) -> Any:
        asked = self._connection.begin(self._connection.ask_again(message))
        return await asyncio.wrap_future(asked)


def start(cluster: CloudCluster, job_id: str, connection: Connection, until_ordered: bool) -> None:
    """Grow a job from a thread of its own; return at once, or when what it needs at first has been ordered."""
    ordered = threading.Event()

    def run() -> None:
        try:
            asyncio.run(_grow(cluster, _Job(connection, job_id), ordered.set))
        finally:
            ordered.set()

    threading.Thread(target=run, name="burla-grow", daemon=True).start()
    if until_ordered:
        ordered.wait()


async def _grow(cluster: CloudCluster, job: _Job, ordered: Callable[[], None]) -> None:
    try:
        try:
            from burla.clusters.grow import Growth as Growing

            await Growing(cluster, job).run(ordered)
        except (UnknownJob, ClusterLost):
            raise
        except BurlaError as error:  # such as a missing extra
            await job.tell(f"{cluster.name} cannot grow: {error}. The job runs on what is there", True)
        except Exception as error:
            log.exception("growing %s", cluster.name)
            text = f"burla failed to grow {cluster.name}: {error!r}. Please report this. The job runs on what is there"
            await job.tell(text, True)
    except (UnknownJob, ClusterLost) as error:
        log.info("%s grows no more: %s", cluster.name, error)  # nobody wants it, or nobody is there to be told
    except asyncio.CancelledError:
        log.info("%s grows no more: this process has left it", cluster.name)


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """What `grow=True` would boot for a call. `orders`: kinds of machines; `slots`: calls that run there already.

    `stepwise`: the first of them at once, the others when it is known how long calls take. Shows in words.
    """

    cluster: str
    inputs: int
    slots: int
    orders: tuple[Order, ...]
    spot: bool
    stepwise: bool

    @property
    def usd_per_hour(self) -> float:
        """The price of all machines, on demand, as the catalogue has it."""
        return sum(order.usd_per_hour for order in self.orders)

    def __str__(self) -> str:
        if not self.orders:
            return f"{self.cluster} would not grow: it has room for {self.slots:,} calls at once."
        lines = [f"{self.cluster} has room for {self.slots:,} of {self.inputs:,} calls at once, and would boot:"]
        lines += [f"  {order}" for order in self.orders]
        price = f"{sum(order.cpus for order in self.orders):,} CPUs, ${self.usd_per_hour:,.2f} an hour"
        noted = f"list price on demand of {NOTED}" + ("; spot machines cost less" if self.spot else "")
        first = f"at first for {planning.FIRST_SLOTS} calls at once; " if self.stepwise else ""
        return "\n".join([*lines, f"together {price} ({noted}); {first}fewer if calls turn out to be short."])

    __repr__ = __str__


def growth_plan(
    function_: Callable[..., Any],
    inputs: Iterable[Any],
    *,
    func_cpu: int = 1,
    func_ram: int | Literal["dynamic"] = "dynamic",
    func_gpu: str | None = None,
    image: str | None = None,
    max_parallelism: int | None = None,
) -> GrowthPlan:
    """Return what `grow=True` would boot for this call on the cluster in use; nothing is booted, nothing runs.

    The parameters are those of `remote_parallel_map`. `inputs` are counted: a generator is used up. Raises InvalidValue
    if the cluster cannot grow, or its cloud has no machine on which a call fits.
    """
    wanted = options.check(
        function_, inputs, func_cpu, func_ram, func_gpu, image, True, max_parallelism, False, False, False
    )
    count = len(inputs) if isinstance(inputs, (list, tuple, range, dict, set)) else sum(1 for _ in inputs)
    return planned(wanted, count)


def planned(wanted: options.Options, inputs: int) -> GrowthPlan:
    """Return what would be booted for so many inputs. Raises as `growth_plan` does."""
    if choice.chosen().target is None:  # nothing is started for it
        raise _cannot_grow()
    connection = current.connection(lambda text: None)
    cluster = needed_cluster(connection)
    nodes = connection.ask(GetStatus()).nodes
    need = Need(
        func_cpu=wanted.func_cpu,
        func_ram_bytes=wanted.func_ram_bytes,
        func_gpu=wanted.func_gpu,
        image=wanted.image,
        max_parallelism=wanted.max_parallelism,
        unfinished=inputs,
        cpus=sum(node.cpus for node in nodes),
        nodes=nodes,
    )
    slots = sum(planning.slots_at(node, need) for node in nodes)
    capacity = planning.capacity(catalog.machines(cluster.cloud), need, catalog.find(cluster.cloud, cluster.machine))
    lacking = planning.lacking(need, slots)
    if lacking and not capacity:
        raise InvalidValue(f"the catalogue has no machine of {cluster.cloud} on which a call fits. Ask for less.")
    orders = planning.plan(lacking, capacity, config.grow_max_cpus() - need.cpus)
    return GrowthPlan(cluster.name, inputs, slots, tuple(orders), cluster.spot, slots + lacking > planning.FIRST_SLOTS)
