"""Which cluster a call of this process goes to: the chosen one, in a call the one it runs on, else the local one."""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from burla import protocol
from burla.client.connection import Connection, DaskTarget, LocalTarget, NestedTarget, Target
from burla.client.signals import import_whole
from burla.clusters import local
from burla.clusters.borrowed import prepare
from burla.clusters.supervisor import Ready
from burla.errors import ClusterBusy, ClusterLost, InvalidType

_lock = threading.RLock()
_chosen: DaskTarget | None = None
_connection: Connection | None = None
_others: dict[str, Connection] = {}  # of jobs whose cluster is not the one in use, by key
# a local cluster that this process started, and that nobody has been told of
_starting: subprocess.Popen[bytes] | None = None
_TRIES = 3  # a local cluster may end, idle, in the moment it is found


def use(target: Any) -> None:
    """Send calls of this process to a Dask scheduler: an address, a `distributed.Client`; None: to the local cluster.

    Raises InvalidType for anything else, OSError if nobody answers there.
    """
    global _chosen
    if target is None:
        chosen = None
    else:
        scheduler = getattr(target, "scheduler", None)
        address = target if isinstance(target, str) else getattr(scheduler, "address", None)
        if not isinstance(address, str):
            raise InvalidType(f"burla.use({target!r}): give the address of a Dask scheduler, or a distributed.Client.")
        security = getattr(target, "security", None)
        prepare(address, security)
        chosen = DaskTarget(address, security)
    with _lock:
        forget()
        _chosen = chosen


def chosen() -> DaskTarget | None:
    """Return the cluster that `use` has chosen; None: the local one."""
    return _chosen


def forget() -> None:
    """Drop the connections of this process; the next call makes a new one."""
    global _connection
    with _lock:
        connections = [*_others.values(), *([_connection] if _connection is not None else [])]
        _connection = None
        _others.clear()
    for one in connections:
        one.close()


def begin() -> None:
    """Start the local cluster if a call would need it, without waiting: what comes next can be done meanwhile."""
    global _starting
    with _lock:
        if _chosen is None and protocol.nested is None and not _usable(_connection):
            _starting = local.start() or _starting


def connection(say: Callable[[str], None]) -> Connection:
    """Return a live connection to the cluster in use; `say` is told if a local one was started for it."""
    global _connection
    with _lock:
        if _connection is not None and _usable(_connection):
            return _connection
        forget()
        if protocol.nested is not None:
            _connection = Connection(NestedTarget(protocol.nested))
        elif _chosen is not None:
            _connection = _borrowed(_chosen)
        else:
            _connection = _local(say)
        return _connection


def reach(target: Target, say: Callable[[str], None] = lambda text: None) -> Connection:
    """Return a live connection to a cluster that this process has used; a local one that ended is started again.

    Raises ClusterLost.
    """
    with _lock:
        if _connection is not None and _connection.target.key == target.key and _usable(_connection):
            return _connection
        other = _others.get(target.key)
        if other is None or not _usable(other):
            if other is not None:
                other.close()
            other = _others[target.key] = _open(target, say)
        return other


def _open(target: Target, say: Callable[[str], None]) -> Connection:
    if isinstance(target, DaskTarget):
        return _borrowed(target)
    return _local(say) if isinstance(target, LocalTarget) else connection(say)


def _usable(connection: Connection | None) -> bool:
    """Whether a call can go there. A local head whose supervisor is gone may still answer, and is about to end."""
    if connection is None or (isinstance(connection.target, LocalTarget) and connection.target.lost()):
        return False
    return connection.found_again()


def instead_of(lost: Connection, say: Callable[[str], None]) -> Connection:
    """Return a connection after the cluster of another one has ended. Raises ClusterLost in a call: it has no other."""
    if protocol.nested is not None:
        raise ClusterLost("the node of this call has gone away")
    with _lock:
        if _connection is lost:
            forget()
        return connection(say)


def _borrowed(target: DaskTarget) -> Connection:
    try:
        return Connection(target)
    except OSError:
        try:  # a scheduler that was restarted has lost our plugin
            prepare(target.address, target.security)
            return Connection(target)
        except OSError as error:
            raise ClusterLost(
                f"nobody answers at {target.address}: {error}. burla.use(None) goes back to the local cluster."
            ) from error


def _local(say: Callable[[str], None]) -> Connection:
    global _starting
    error: Exception | None = None
    for _ in range(_TRIES):
        started = _starting = local.start() or _starting
        import_whole("distributed")  # while the cluster comes up
        ready = local.wait(started)
        if ready is None:  # it was ending when it was found
            continue
        if ready.source != local.source_key():
            _replace(ready)
            continue
        try:
            connection = Connection(LocalTarget())
        except OSError as failed:
            error = failed
            continue
        if connection.welcome.closing:
            connection.close()
            local.wait_for_end()
            continue
        _starting = None
        if started is not None:
            say(f"started a local cluster: {describe(ready)}")
        return connection
    raise ClusterLost(f"the local cluster cannot be reached: {error}. Its log: {local.folder() / local.LOG_FILE}")


def describe(ready: Ready) -> str:
    """Return in words how large the local cluster is and when it ends."""
    minutes = ready.idle_after_s / 60
    ends = (
        "when no client is connected"
        if not minutes
        else f"after {minutes:g} min idle"
        if minutes >= 1
        else f"after {ready.idle_after_s:g} s idle"
    )
    return f"{ready.cpus} CPU{'s' if ready.cpus != 1 else ''}, ends {ends}"


def _replace(ready: Ready) -> None:
    """End a cluster of another version if it is idle. Raises ClusterBusy if it is not."""
    busy = local.stop(ready, only_if_idle=True)
    if busy:
        raise ClusterBusy(
            f"the local cluster (pid {ready.pid}) is of another version of burla or Python and still runs "
            f"{', '.join(busy)}. Wait for it, or end it: burla cluster stop",
        )


def _after_fork() -> None:
    """A forked process has the connection's object, but not its thread."""
    global _connection, _lock
    _connection = None
    _others.clear()
    _lock = threading.RLock()


atexit.register(forget)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
