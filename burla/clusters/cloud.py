"""What a cloud has to offer for a cluster: the interface that `aws` and others fill."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from burla.clusters.record import CloudCluster
from burla.errors import InvalidValue, MissingExtra

CLOUDS = ("aws", "gcp", "azure")
HEAD, NODE = "head", "node"
ALIVE = ("starting", "running")
MACHINE, DISK, NETWORK = "machine", "disk", "network"  # kinds of what is made
# tags of everything that is made; names and values of letters, digits, _ and -, as every cloud takes them
TAG_CLUSTER, TAG_NAME, TAG_OWNER, TAG_ROLE = "burla-cluster", "burla-name", "burla-owner", "burla-role"
TAG_EXPIRY = "burla-expiry"  # Unix time: until then its creator may still be at work on it


@dataclass(frozen=True, slots=True)
class Vm:
    """A machine as its cloud describes it. `state`: starting, running, stopped (its disk bills), ending or ended."""

    id: str
    name: str
    role: str
    machine: str
    state: str
    zone: str
    spot: bool
    started_at_s: float
    private_ip: str
    public_ip: str

    @property
    def alive(self) -> bool:
        """Whether it runs, or is about to."""
        return self.state in ALIVE


@dataclass(frozen=True, slots=True)
class VmOrder:
    """A machine to be. `gpus`: its container gets all of them."""

    name: str
    role: str
    machine: str
    user_data: str
    gpus: bool = False
    spot: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """Something in an account that has our tags. `machine`, `state`: of a machine; starting, running or stopped."""

    kind: str
    id: str
    region: str
    tags: Mapping[str, str]
    state: str = ""
    machine: str = ""


class Refused(Exception):
    """The cloud has said no. `code`: its own word for why; `capacity`: another zone or machine may do."""

    def __init__(self, message: str, code: str = "", capacity: bool = False):
        super().__init__(message)
        self.code = code
        self.capacity = capacity


class Cloud(Protocol):
    """One cluster in its cloud. All methods raise Refused, with the cloud's own message."""

    async def check(self) -> str:
        """Return the region that will be used, once the credentials have been found good."""
        ...

    async def has_gpus(self, machine: str) -> bool:
        """Return whether a kind of machine has GPUs that calls can use; refused if there is no such kind."""
        ...

    async def make_network(self, expiry_s: float) -> str:
        """Make what guards the cluster's ports, unless it is there; return its id. It admits itself alone."""
        ...

    async def admit(self, network: str, cidr: str) -> None:
        """Let clients of these addresses reach the head."""
        ...

    async def boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        """Start a machine; return once it has addresses. When it is cancelled, `vms` finds what was made."""
        ...

    async def vms(self) -> list[Vm]:
        """Return the machines of the cluster that have not ended."""
        ...

    async def end(self, ids: Sequence[str]) -> None:
        """End machines, with their disks; those that have ended are no error."""
        ...

    async def remove_network(self) -> None:
        """Remove what guards the ports, if it is there; no machine may use it any more."""
        ...

    def leaving(self, role: str) -> str:
        """Return the shell commands by which a machine does away with itself; empty: shutting down is enough, or all.

        `role`: of the machine; it may have an identity in the cloud.
        """
        ...

    async def console(self, vm_id: str) -> str:
        """Return what a machine wrote while it booted, as far as the cloud has it."""
        ...


class Account(Protocol):
    """What the user's account has in a cloud, of whichever cluster. All methods raise Refused."""

    async def regions(self) -> list[str]:
        """Return the regions that there may be something in."""
        ...

    async def tagged(self, owner: str, region: str) -> list[Resource]:
        """Return all with this `TAG_OWNER` that has neither ended nor is ending; the machines are looked at last."""
        ...

    async def remove(self, one: Resource) -> None:
        """Remove it, once no ending machine uses it any more; what has gone is no error."""
        ...


def connect(cluster: CloudCluster) -> Cloud:
    """Return the cloud of a cluster. Raises InvalidValue, MissingExtra."""
    return _module(cluster.cloud).connect(cluster)


def account(cloud: str) -> Account:
    """Return the user's account in a cloud. Raises InvalidValue, MissingExtra."""
    return _module(cloud, "_account").account()


def _module(cloud: str, part: str = "") -> Any:
    if cloud not in CLOUDS:
        raise InvalidValue(f"cloud={cloud!r}: it must be one of {', '.join(CLOUDS)}.")
    try:
        return importlib.import_module(f"burla.clusters.{cloud}{part}")
    except ImportError as error:
        extra = "azure" if cloud == "azure" else "cloud"
        raise MissingExtra(
            f"clusters in a cloud need more packages ({error}): pip install 'burla-dask[{extra}]'"
        ) from error
