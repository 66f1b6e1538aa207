"""The public functions about clusters in a cloud."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from burla import bucket, config, options
from burla.clusters import client_address, lifecycle, record, registry
from burla.clusters.apart import run_apart
from burla.clusters.boot import Timers
from burla.clusters.cloud import CLOUDS
from burla.clusters.record import CloudCluster
from burla.errors import InvalidType, InvalidValue

DEFAULT_MACHINE = {"aws": "m7i.xlarge", "gcp": "n2-standard-4", "azure": "Standard_D4s_v5"}
DEFAULT_HEAD = {"aws": "m7i.large", "gcp": "n2-standard-2", "azure": "Standard_D2s_v5"}


def create_cluster(
    name: str,
    *,
    cloud: str | None = None,
    region: str | None = None,
    machine: str | None = None,
    nodes: int = 1,
    image: str | None = None,
    idle_minutes: float | None = None,
    spot: bool | None = None,
    disk_gb: int | None = None,
    role: str | None = None,
    store: str | None = None,
    keep_results_hours: float | None = None,
) -> None:
    """Boot a cluster in a cloud and keep it under a name, for `burla.use(name)`.

    It needs the extra `cloud`, and the cloud's own credentials where its own tools find them. It bills until its
    machines end, which they do by themselves when idle. Interrupted, or when a step fails, it removes what it has made.
    A cluster of this name that was stopped, or has ended, is booted again; what is None is then as it was before.

    Parameters
    ----------
    name
        For `burla.use`, `delete_cluster` and the others.
    cloud
        "aws", "gcp" or "azure".
    region
        The cloud's name of a region; None: what its own configuration says.
    machine
        The cloud's name of a kind of machine, for the nodes; None: one with 4 CPUs and 16 GB. The head is a small one.
    nodes
        How many to begin with, at least 0.
    image
        The container image of the nodes: any that has pip and the Python version of this process; None: python's own.
    idle_minutes
        After so long without work a node ends, and so does the head when no job is unfinished; None: 10.
    spot
        Nodes that the cloud may take back at any time, for less money; their calls then run again elsewhere.
    disk_gb
        Of each machine; None: 100.
    role
        The cloud's identity that nodes have, for the user's own data (AWS: an instance profile; GCP: the address of a
        service account; Azure: the id of a user-assigned identity); None: none. With `store`, the head has it too.
    store
        The URL of a folder that outlives machines, such as "s3://bucket/results": the head copies there what jobs that
        have ended brought, and once the head has gone, they are read from there, with this process's credentials.
    keep_results_hours
        Without `store`, an idle head stays so long for results of a detached job that nobody has read; with it, for
        those that could not be copied. None: 24; 0: not at all.

    Raises
    ------
    InvalidValue, InvalidType
        If an argument is not allowed; nothing has been made then.
    MissingExtra
        If the packages for it are not installed.
    ClusterBusy
        If there is a cluster of this name.
    CloudError
        If a step fails: it says which, the cloud's own message, and what is left running.
    """
    cluster = settings(
        name, cloud, region, machine, image, idle_minutes, spot, disk_gb, role, store, keep_results_hours
    )
    count = node_count(nodes)
    run_apart(lifecycle.create(cluster, count, client_address.client_cidr(), Timers(), lifecycle.say))
    lifecycle.say(f"{name} is up: burla.use({name!r}), or: burla use {name}")


def scale_cluster(name: str, nodes: int) -> None:
    """Have so many nodes in a cluster: boots some, or ends some, idle ones first. Raises UnknownCluster, CloudError."""
    run_apart(lifecycle.scale(record.get(name), node_count(nodes), Timers(), lifecycle.say))


def delete_cluster(name: str, *, force: bool = False) -> None:
    """End all machines of a cluster, with what is stored there, and forget its name and keys.

    Raises UnknownCluster; ClusterBusy if jobs are unfinished there, unless `force`; CloudError.
    """
    run_apart(lifecycle.stop(record.get(name), force, lifecycle.say, forget=True))


def admit_client(name: str, cidr: str | None = None) -> None:
    """Let this machine, or these addresses, connect too. Raises UnknownCluster, InvalidValue, CloudError."""
    cluster = record.get(name)
    who = client_address.client_cidr() if cidr is None else client_address.check("cidr", cidr)
    run_apart(lifecycle.admit(cluster, who, lifecycle.say))


def settings(
    name: Any,
    cloud: Any,
    region: Any,
    machine: Any,
    image: Any,
    idle_minutes: Any,
    spot: Any,
    disk_gb: Any,
    role: Any,
    store: Any = None,
    keep_results_hours: Any = None,
) -> CloudCluster:
    """Return a cluster to be; what is None is as it was before, or the default. Raises InvalidValue, InvalidType."""
    texts = {
        "name": name,
        "cloud": cloud,
        "region": region,
        "machine": machine,
        "image": image,
        "role": role,
        "store": store,
    }
    for key, value in texts.items():
        if not isinstance(value, str) and (value is not None or key == "name"):
            raise InvalidType(f"{key}={value!r}: it must be a text.")
        if value is not None and (value.split() != [value] or value.startswith("-")):
            raise InvalidValue(f"{key}={value!r}: it must be one word.")
    registry.check_name(name)
    if spot is not None and not isinstance(spot, bool):
        raise InvalidType(f"spot={spot!r}: it must be True or False.")
    if idle_minutes is not None:
        options.amount("idle_minutes", idle_minutes)
    if disk_gb is not None:
        options.count("disk_gb", disk_gb, "an integer of at least 1: GB")
    if keep_results_hours is not None and keep_results_hours != 0:
        options.amount("keep_results_hours", keep_results_hours)
    before = record.find(name)
    where = cloud or (before.cloud if before is not None else None)
    if where not in CLOUDS:
        raise InvalidValue(f"cloud={where!r}: it must be one of {', '.join(CLOUDS)}.")
    if before is None or before.cloud != where:
        before = CloudCluster(
            name=name,
            cloud=where,
            id="",
            owner="",
            created_at_s=0,
            region="",
            machine=DEFAULT_MACHINE[where],
            head_machine=DEFAULT_HEAD[where],
            image=lifecycle.default_image(),
            idle_s=60.0 * config.CLOUD_IDLE_MINUTES,
            spot=False,
            disk_gb=config.CLOUD_DISK_GB,
        )
    return replace(
        before,
        id=lifecycle.new_id(),
        owner=lifecycle.owner(),
        created_at_s=time.time(),
        region=before.region if region is None else region,
        machine=machine or before.machine,
        image=image or before.image,
        idle_s=before.idle_s if idle_minutes is None else 60.0 * idle_minutes,
        spot=before.spot if spot is None else spot,
        disk_gb=disk_gb or before.disk_gb,
        access=before.access if role is None else role,
        store=bucket.check(url) if (url := before.store if store is None else store) else "",
        keep_results_s=before.keep_results_s if keep_results_hours is None else 3600.0 * keep_results_hours,
        address="",
        head_address="",
        network="",
        admitted=(),
    )


def node_count(nodes: Any) -> int:
    """Return how many nodes are meant. Raises InvalidType, InvalidValue."""
    allowed = "an integer of at least 0"
    return 0 if nodes == 0 and not isinstance(nodes, bool) else options.count("nodes", nodes, allowed)
