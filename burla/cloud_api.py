"""The public functions about clusters in a cloud."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from burla import options
from burla.clusters import client_address, lifecycle, record, registry
from burla.clusters.apart import run_apart
from burla.clusters.boot import Timers
from burla.clusters.cloud import CLOUDS
from burla.clusters.record import CloudCluster
from burla.display.terminal import PlainView
from burla.errors import InvalidType, InvalidValue

DEFAULT_MACHINE = {"aws": "m7i.xlarge"}
DEFAULT_HEAD = {"aws": "m7i.large"}
DEFAULT_DISK_GB = 100
DEFAULT_IDLE_MINUTES = 10.0
Say = Callable[[str], None]


def create_cluster(
    name: str,
    *,
    cloud: str,
    region: str | None = None,
    machine: str | None = None,
    nodes: int = 1,
    image: str | None = None,
    idle_minutes: float = DEFAULT_IDLE_MINUTES,
    spot: bool = False,
    disk_gb: int = DEFAULT_DISK_GB,
    role: str | None = None,
) -> None:
    """Boot a cluster in a cloud and keep it under a name, for `burla.use(name)`.

    It needs the extra `cloud`, and the cloud's own credentials where its own tools find them. It bills until its
    machines end, which they do by themselves when idle. Interrupted, or when a step fails, it removes what it has made.

    Parameters
    ----------
    name
        For `burla.use`, `delete_cluster` and the others.
    cloud
        "aws".
    region
        The cloud's name of a region; None: what its own configuration says.
    machine
        The cloud's name of a kind of machine, for the nodes; None: one with 4 CPUs and 16 GB. The head is a small one.
    nodes
        How many to begin with, at least 0.
    image
        The container image of the nodes: any that has pip and the Python version of this process; None: python's own.
    idle_minutes
        After so long without work a node ends, and so does the head when no job is unfinished.
    spot
        Nodes that the cloud may take back at any time, for less money; their calls then run again elsewhere.
    disk_gb
        Of each machine.
    role
        The cloud's identity that nodes have, for the user's own data; None: none.

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
    say = PlainView().say
    cluster = settings(name, cloud, region, machine, image, idle_minutes, spot, disk_gb, role)
    count = node_count(nodes)
    run_apart(lifecycle.create(cluster, count, client_address.client_cidr(), Timers(), say))
    say(f"{name} is up: burla.use({name!r}), or: burla use {name}")


def scale_cluster(name: str, nodes: int) -> None:
    """Have so many nodes in a cluster: boots some, or ends some, idle ones first. Raises UnknownCluster, CloudError."""
    run_apart(lifecycle.scale(record.get(name), node_count(nodes), Timers(), PlainView().say))


def delete_cluster(name: str, *, force: bool = False) -> None:
    """End all machines of a cluster, with what is stored there, and forget its name and keys.

    Raises UnknownCluster; ClusterBusy if jobs are unfinished there, unless `force`; CloudError.
    """
    run_apart(lifecycle.stop(record.get(name), force, PlainView().say, forget=True))


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
) -> CloudCluster:
    """Return a cluster to be. Raises InvalidValue, InvalidType."""
    texts = {"name": name, "cloud": cloud, "region": region, "machine": machine, "image": image, "role": role}
    for key, value in texts.items():
        if not isinstance(value, str) and (value is not None or key in ("name", "cloud")):
            raise InvalidType(f"{key}={value!r}: it must be a text.")
        if value is not None and (not value.strip() or value.split() != [value] or value.startswith("-")):
            raise InvalidValue(f"{key}={value!r}: it must be one word.")
    registry.check_name(name)
    if cloud not in CLOUDS:
        raise InvalidValue(f"cloud={cloud!r}: it must be one of {', '.join(CLOUDS)}.")
    if not isinstance(spot, bool):
        raise InvalidType(f"spot={spot!r}: it must be True or False.")
    if isinstance(idle_minutes, bool) or not isinstance(idle_minutes, (int, float)):
        raise InvalidType(f"idle_minutes={idle_minutes!r}: it must be a number above 0.")
    if not (idle_minutes > 0 and math.isfinite(idle_minutes)):
        raise InvalidValue(f"idle_minutes={idle_minutes!r}: it must be a number above 0.")
    return CloudCluster(
        name=name,
        cloud=cloud,
        id=lifecycle.new_id(),
        owner=lifecycle.owner(),
        created_at_s=time.time(),
        region=region or "",
        machine=machine or DEFAULT_MACHINE[cloud],
        head_machine=DEFAULT_HEAD[cloud],
        image=image or default_image(),
        idle_s=60.0 * idle_minutes,
        spot=spot,
        disk_gb=options.count("disk_gb", disk_gb, "an integer of at least 1: GB"),
        access=role or "",
    )


def default_image() -> str:
    """Return the image of Python's own makers for the version of this process."""
    import sys

    return "python:{}.{}-slim".format(*sys.version_info)


def node_count(nodes: Any) -> int:
    """Return how many nodes are meant. Raises InvalidType, InvalidValue."""
    allowed = "an integer of at least 0"
    return 0 if nodes == 0 and not isinstance(nodes, bool) else options.count("nodes", nodes, allowed)
