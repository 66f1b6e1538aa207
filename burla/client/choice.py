"""Which cluster calls of this process go to, and who said so.

The first of: the innermost `with burla.use(...)`, the last `burla.use(...)`, the variable BURLA_CLUSTER, the command
`burla use`, the local cluster. The variable and the command are looked at anew by each call.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from burla import protocol
from burla.client.connection import DaskTarget
from burla.client.signals import import_whole
from burla.clusters import record, registry
from burla.clusters.borrowed import prepare
from burla.clusters.registry import Entry
from burla.errors import ClusterError, ClusterLost, InvalidType, InvalidValue

VARIABLE = "BURLA_CLUSTER"
MISSED_S = 30.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A cluster, and who chose it. `target` None: the local one; `name`: as which it is known, or empty."""

    target: DaskTarget | None
    why: str
    name: str = ""

    def __str__(self) -> str:
        if self.target is None:
            return registry.LOCAL
        return f"{self.name} ({self.target.address})" if self.name else self.target.address


_used: Choice | None = None
_missed: dict[str, float] = {}  # where nobody answered → when


class Use:
    """What `burla.use` returns: as a context manager it puts back, at its end, what was in use before."""

    def __init__(self, before: Choice | None):
        self._before = before

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _set(self._before)


def use(cluster: Any, tls_ca_file: Any, tls_client_cert: Any, tls_client_key: Any) -> Use:
    """Choose a cluster for this process, and prepare it. For the arguments and errors see `burla.use`."""
    if protocol.nested is not None:  # a call has no other cluster than its own, whatever its module says at its top
        return Use(_used)
    files = (tls_ca_file, tls_client_cert, tls_client_key)
    if any(files) and not (isinstance(cluster, str) and registry.is_address(cluster)):
        raise InvalidValue(
            "tls_ca_file, tls_client_cert and tls_client_key go with an address, such as tls://host:8786."
        )
    if cluster is None:
        choice = None
    elif isinstance(cluster, str):
        found = registry.entry(cluster, *files) if any(files) else registry.find(cluster)
        choice = _of(found, "burla.use")
    else:
        choice = Choice(_target_of(cluster), "burla.use")
    if choice is not None and choice.target is not None:
        check_loop(choice.target)
        find(choice.target.address, choice.target.security)
    before = _used
    _set(choice)
    return Use(before)


def prepared(address: str, security: Any) -> None:
    """Do what `prepare` does, and note where nobody answers. Raises OSError, ClusterError."""
    try:
        prepare(address, security)
    except OSError:
        _missed[address] = time.monotonic()
        raise
    _missed.pop(address, None)


def find(address: str, security: Any) -> None:
    """Prepare a cluster. Raises OSError if nobody answers; ClusterLost: one in a cloud, of whose jobs is no copy."""
    try:
        prepared(address, security)
    except OSError as error:
        cluster = record.at(address)
        if cluster is None:
            raise
        if not cluster.store:
            raise gone(address, error) from error
        print(f"burla: {gone(address, error)}", file=sys.stderr)


def was_missed(address: str) -> bool:
    """Whether nobody answered there a moment ago: it takes seconds to find that out."""
    return time.monotonic() - _missed.get(address, -MISSED_S) < MISSED_S


def gone(address: str, error: OSError) -> ClusterLost:
    """Return what is said of a cluster that does not answer."""
    cluster = record.at(address)
    if cluster is None:
        return ClusterLost(
            f"{error}. If it has ended, so have the jobs that it held. burla.use('local') goes to this machine."
        )
    name, copies = cluster.name, cluster.copies
    read = f". Until then, jobs that have ended are read from {copies}" if copies else ""
    return ClusterLost(
        f"{name} ({address}) does not answer: {error}. Does it still run? burla cluster status {name}; to boot it "
        f"again: burla cluster create {name}{read}"
    )


def chosen() -> Choice:
    """Return the choice that counts now. Raises UnknownCluster, InvalidValue: the variable or the file is wrong."""
    if _used is not None:
        return _used
    if text := os.environ.get(VARIABLE):
        return _of(registry.find(text), VARIABLE)
    kept = registry.kept()
    return _of(kept, "burla use") if kept is not None else Choice(None, "nothing else is chosen")


def check_loop(target: DaskTarget) -> None:
    """Raise ClusterError if the target's scheduler runs in the event loop that is to be blocked here."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    scheduler = target.scheduler_here()
    if scheduler is not None and scheduler.loop.asyncio_loop is running:
        raise ClusterError(
            "the scheduler of this cluster runs in the event loop that this call would block, and could not answer. "
            "Call from a thread: await asyncio.to_thread(remote_parallel_map, function, inputs)"
        )


def _set(choice: Choice | None) -> None:
    global _used
    _used = choice


def _of(entry: Entry | None, why: str) -> Choice:
    if entry is None:
        return Choice(None, why)
    import_whole("distributed")
    return Choice(DaskTarget(entry.address, entry.security()), why, entry.name)


def _target_of(cluster: Any) -> DaskTarget:
    """Return where a Client, or a Dask cluster object, has its scheduler. Raises InvalidType, InvalidValue."""
    status = str(getattr(cluster, "status", "")).rpartition(".")[2]
    if status in ("closing", "closed"):
        raise InvalidValue(f"burla.use({cluster!r:.200}): it is {status}. Give one that is connected.")
    scheduler = getattr(cluster, "scheduler", None)  # of a Client
    address = getattr(cluster, "scheduler_address", None) or getattr(scheduler, "address", None)
    if scheduler is None and address is None and hasattr(cluster, "scheduler_info"):
        raise InvalidValue(f"burla.use({cluster!r:.200}): it has no connection yet. Await it first.")
    if not isinstance(address, str):
        raise InvalidType(
            f"burla.use({cluster!r:.200}): give the name of a cluster, the address of a Dask scheduler, "
            "a distributed.Client, or a Dask cluster object."
        )
    if not registry.is_address(address):  # what Dask shows instead of an address
        raise InvalidValue(f"burla.use({cluster!r:.200}): its scheduler is not running. Start it, or await it, first.")
    security = getattr(cluster, "security", None)
    return DaskTarget(address, security if hasattr(security, "get_connection_args") else Entry(address).security())
