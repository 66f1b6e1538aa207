"""How the cluster in use stands, and its end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from burla.client import choice, current
from burla.client.connection import Connection, DaskTarget, LocalTarget
from burla.cloud_state import Bill, describe, machines
from burla.clusters import lifecycle, local, record
from burla.clusters.apart import run_apart
from burla.clusters.cloud import HEAD, Vm
from burla.errors import ClusterLost
from burla.protocol import ClusterStatus, GetStatus


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A cluster at one moment; `str` says it in words. `status` None: it is not up, or of another version of burla.

    `machines`, and what these have cost: of one in a cloud.
    """

    title: str
    up: bool
    status: ClusterStatus | None
    machines: tuple[Vm, ...] = ()
    bill: Bill | None = None

    def __str__(self) -> str:
        lines = [f"{self.title}."] + [f"  {describe(vm)}" for vm in self.machines]
        lines += [f"  {self.bill}"] if self.machines else []
        if self.status is None:
            return "\n".join(lines)
        for node in self.status.nodes:
            has = [f"{node.cpus} CPUs", f"{node.ram_bytes / 1e9:.1f} GB RAM"]
            has += [f"{count} {gpu}" for gpu, count in sorted(node.gpu_counts.items())]
            has += [f"image {node.image}"] if node.image else []
            lines.append(f"  node {node.name}: {', '.join(has)}")
        for job in self.status.jobs:
            shot = job.snapshot
            lines.append(
                f"  job {job.id} {job.function_name}: {shot.state.value}, {shot.done:,}/{shot.total:,} done, "
                f"{shot.running} running, {job.age_s:.0f} s"
            )
        if not self.status.jobs:
            lines.append(f"  no jobs; idle for {self.status.idle_for_s:.0f} s")
        lines += [f"  {remark}" for remark in self.status.remarks]
        return "\n".join(lines)

    __repr__ = __str__


def cluster_status(name: str | None = None) -> ClusterState:
    """Return how the cluster in use stands, or the one in a cloud that has this name; nothing is started for it.

    Raises ClusterLost, UnknownCluster, CloudError.
    """
    if name is not None:
        return _cloud_status(record.get(name))
    chosen = choice.chosen()
    if chosen.target is not None:
        connection = current.connection(lambda text: None)
        return ClusterState(f"The cluster {chosen} is up", True, connection.ask(GetStatus()))
    ready = local.wait(None) if local.is_up(local.folder()) else None
    if ready is None:
        return ClusterState("The local cluster is not up. The next call starts it", False, None)
    if ready.source != local.source_key():
        text = f"A local cluster of another version of burla or Python is up (pid {ready.pid})"
        return ClusterState(text, True, None)
    connection = Connection(LocalTarget())
    try:
        status = connection.ask(GetStatus())
    finally:
        connection.close()
    return ClusterState(f"The local cluster is up (pid {ready.pid}): {current.describe(ready)}", True, status)


def _cloud_status(cluster: record.CloudCluster) -> ClusterState:
    vms = machines(cluster)
    bill = Bill.of(cluster.cloud, vms, time.time())
    title = f"{cluster.name} ({cluster.cloud} {cluster.region})"
    if not any(vm.role == HEAD for vm in vms):
        return ClusterState(
            f"{title} is not up. To boot it again: burla cluster create {cluster.name}", False, None, vms, bill
        )
    try:
        connection = Connection(DaskTarget(cluster.address, cluster.entry().security()))
    except (OSError, ClusterLost) as error:
        moved = f"Has your own address changed? burla cluster admit {cluster.name}"
        return ClusterState(f"{title} does not answer at {cluster.address}: {error}. {moved}", False, None, vms, bill)
    try:
        status = connection.ask(GetStatus())
    finally:
        connection.close()
    title += f" is up at {cluster.address}, ends after {cluster.idle_s / 60:g} min idle"
    return ClusterState(title, True, status, vms, bill)


def stop_cluster(name: str | None = None, *, force: bool = False) -> list[str] | None:
    """End the local cluster and the jobs on it; return the ids of detached jobs, which go on at its next start.

    None: it was not up. With `name`: end all machines of a cluster in a cloud, with all jobs and results there; its
    name and settings stay. Raises UnknownCluster; ClusterBusy if jobs are unfinished there, unless `force`; CloudError.
    """
    if name is not None:
        run_apart(lifecycle.stop(record.get(name), force, lifecycle.say))
        return []
    if not local.is_up(local.folder()):
        return None
    ready = local.wait(None)  # it may just be starting, or ending
    return local.stop(ready, only_if_idle=False) if ready is not None else []
