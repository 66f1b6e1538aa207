"""How the cluster in use stands, and its end."""

from __future__ import annotations

from dataclasses import dataclass

from burla.client import choice, current
from burla.client.connection import Connection, LocalTarget
from burla.clusters import local
from burla.protocol import ClusterStatus, GetStatus


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A cluster at one moment; `str` says it in words. `status` None: it is not up, or of another version of burla."""

    title: str
    up: bool
    status: ClusterStatus | None

    def __str__(self) -> str:
        if self.status is None:
            return self.title
        lines = [f"{self.title}."]
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
        return "\n".join(lines)

    __repr__ = __str__


def cluster_status() -> ClusterState:
    """Return how the cluster in use stands; a local one that is not up is not started. Raises ClusterLost."""
    chosen = choice.chosen()
    if chosen.target is not None:
        connection = current.connection(lambda text: None)
        return ClusterState(f"The cluster {chosen} is up", True, connection.ask(GetStatus()))
    ready = local.find()
    if ready is None:
        return ClusterState("The local cluster is not up. The next call starts it.", False, None)
    if ready.source != local.source_key():
        text = f"A local cluster of another version of burla or Python is up (pid {ready.pid})."
        return ClusterState(text, True, None)
    connection = Connection(LocalTarget())
    try:
        status = connection.ask(GetStatus())
    finally:
        connection.close()
    return ClusterState(f"The local cluster is up (pid {ready.pid}): {current.describe(ready)}", True, status)


def stop_cluster() -> list[str] | None:
    """End the local cluster and the jobs on it; return the ids of detached jobs, which go on at its next start.

    None: it was not up.
    """
    if not local.is_up(local.folder()):
        return None
    ready = local.wait(None)  # it may just be starting, or ending
    return local.stop(ready, only_if_idle=False) if ready is not None else []
