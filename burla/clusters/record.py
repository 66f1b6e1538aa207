"""What is known of a cluster that we have booted: cloud.json, beside the keys, in the folder of its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from burla import config
from burla.clusters import locks, registry
from burla.clusters.security import CA, CERT, FOLDER, KEY, private_folder
from burla.errors import ClusterBusy, InvalidValue, UnknownCluster

FILE = "cloud.json"


@dataclass(frozen=True, slots=True)
class CloudCluster:
    """A cluster in a cloud. Written before the first of it is made, so that all of it can be found again.

    `id` is on everything that belongs to it, as a tag. `address`: of the head for clients, empty until it has been up;
    `head_address`: for nodes, inside the cloud. `idle_s`: after so long without work a machine ends. `access`: the
    cloud's identity that nodes have, empty: none. `network`: the cloud's own id of what guards its ports. `admitted`:
    who may connect, in CIDR notation. `store`: the URL of a folder for copies of results, empty: none.
    `keep_results_s`: so long the head stays for results that are on it alone.
    """

    name: str
    cloud: str
    id: str
    owner: str
    created_at_s: float
    region: str
    machine: str
    head_machine: str
    image: str
    idle_s: float
    spot: bool
    disk_gb: int
    access: str = ""
    address: str = ""
    head_address: str = ""
    network: str = ""
    admitted: tuple[str, ...] = ()
    store: str = ""
    keep_results_s: float = 3600.0 * config.KEEP_RESULTS_HOURS

    @property
    def copies(self) -> str:
        """The URL of this cluster's own folder for copies of results, empty: none."""
        return f"{self.store}/{self.name}" if self.store else ""

    def access_of(self, role: str) -> str:
        """Return the cloud's identity that a machine has: a head has one only to reach the copies of results."""
        return self.access if role == "node" or self.store else ""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return registry.folder(self.name)

    def keys(self) -> dict[str, bytes]:
        """Return its keys: file name → PEM."""
        return {name: (self.folder / FOLDER / name).read_bytes() for name in (CA, CERT, KEY)}

    def entry(self) -> registry.Entry:
        """Return it as `burla.use` finds it."""
        keys = self.folder / FOLDER
        files = {
            "tls_ca_file": str(keys / CA),
            "tls_client_cert": str(keys / CERT),
            "tls_client_key": str(keys / KEY),
        }
        return registry.Entry(self.address, self.name, self.cloud, **files)


def find(name: str) -> CloudCluster | None:
    """Return the cluster in a cloud that has this name, if there is one. Raises InvalidValue: its file is damaged."""
    path = registry.folder(name) / FILE
    try:
        known = json.loads(path.read_text())
        return CloudCluster(**known | {"admitted": tuple(known["admitted"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidValue(f"{path} cannot be read: {error}.") from error


def get(name: str) -> CloudCluster:
    """Return the cluster in a cloud that has this name. Raises UnknownCluster."""
    found = find(name)
    if found is None:
        names = ", ".join(one.name for one in every()) or "none"
        raise UnknownCluster(f"there is no cluster {name!r} in a cloud; known are: {names}.")
    return found


def at(address: str) -> CloudCluster | None:
    """Return the cluster in a cloud whose head has this address, if one is known."""
    return next((one for one in every() if one.address and one.address == address), None)


def every() -> list[CloudCluster]:
    """Return all clusters in clouds, in alphabetical order."""
    names = sorted(path.parent.name for path in (config.home() / "clusters").glob(f"*/{FILE}"))
    return [one for one in map(find, names) if one is not None]


def write(one: CloudCluster) -> None:
    """Keep what is known of a cluster."""
    registry.write_private(private_folder(one.folder) / FILE, asdict(one))


@contextmanager
def changing(name: str) -> Iterator[None]:
    """Keep other processes of this user from changing the same cluster meanwhile. Raises ClusterBusy."""
    lock = locks.try_lock(private_folder(config.home() / "clusters") / f".{name}.lock")
    if lock is None:
        raise ClusterBusy(f"another process is changing the cluster {name!r}: wait for it.")
    try:
        yield
    finally:
        os.close(lock)
