"""Live connections to the cluster in use (`choice`), and to others that this process has used.

In a call the cluster in use is the one that it runs on. A connection stays until the process ends: attached jobs that
went over it end with it.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
import time
from collections.abc import Callable

from burla import protocol
from burla.client import choice, running
from burla.client.connection import Connection, DaskTarget, LocalTarget, NestedTarget, Target
from burla.clusters import local, record
from burla.clusters.supervisor import Ready
from burla.config import START_TIMEOUT_S
from burla.errors import ClusterBusy, ClusterLost

_lock = threading.RLock()
_connections: dict[str, Connection] = {}  # by the key of their target
# a local cluster that this process started, and that nobody has been told of
_starting: subprocess.Popen[bytes] | None = None
_POLL_S = 0.1


def forget() -> None:
    """Drop the connections of this process; the next call makes a new one."""
    with _lock:
        connections = list(_connections.values())
        _connections.clear()
    for one in connections:
        one.close()


def begin() -> None:
    """Start the local cluster if a call would need it, without waiting: what comes next can be done meanwhile."""
    global _starting
    if protocol.nested is None and choice.chosen().target is None:
        with _lock:
            if not _usable(_connections.get(str(local.folder()))):
                _starting = local.start() or _starting


def connection(say: Callable[[str], None]) -> Connection:
    """Return a live connection to the cluster in use; `say` is told if a local one was started for it.

    Raises ClusterLost, UnknownCluster.
    """
    if protocol.nested is not None:
        nested = protocol.nested
        return _live("nested", lambda: Connection(NestedTarget(nested)))
    target = choice.chosen().target
    return _live(str(local.folder()), lambda: _local(say)) if target is None else reach(target, say)


def reach(target: Target, say: Callable[[str], None] = lambda text: None) -> Connection:
    """Return a live connection to a cluster that this process has used; a local one that ended is started again.

    Raises ClusterLost.
    """
    if isinstance(target, DaskTarget):
        choice.check_loop(target)
        return _live(target.key, lambda: _borrowed(target))
    if isinstance(target, LocalTarget):
        return _live(target.key, lambda: _local(say))
    return connection(say) if isinstance(target, NestedTarget) else _live(target.key, lambda: Connection(target))


def to_read(target: Target | None, say: Callable[[str], None] = lambda text: None) -> Connection:
    """Return what `reach` does, None: `connection`; or where the head is gone, one to the copies of finished jobs.

    Raises ClusterLost, UnknownCluster.
    """
    if target is None and protocol.nested is None:
        target = choice.chosen().target
    if target is None:
        return connection(say)
    missed = isinstance(target, DaskTarget) and choice.was_missed(target.address)
    if missed and (copies := copies_of(target)) is not None:
        return copies
    try:
        return reach(target, say)
    except ClusterLost:
        if (copies := copies_of(target)) is None:
            raise
        return copies


def copies_of(target: Target | None) -> Connection | None:
    """Return a live connection to the copies of a cluster's finished jobs; None: it makes none."""
    cluster = record.at(target.address) if protocol.nested is None and isinstance(target, DaskTarget) else None
    if cluster is None or not cluster.store:
        return None
    from burla.client.copies import CopiesTarget

    copies = CopiesTarget(cluster)
    return _live(copies.key, lambda: Connection(copies))


def _live(key: str, make: Callable[[], Connection]) -> Connection:
    """Return the connection to a target, made anew if there is none that lives."""
    with _lock:
        known = _connections.get(key)
        if known is None or not _usable(known):
            made = make()
            if known is not None:
                known.close()
            _connections[key] = known = made
            _drop_broken()
        return known


def _drop_broken() -> None:
    """Close connections to clusters that are gone, and that no job waits for."""
    for key, one in list(_connections.items()):
        if not one.alive and not running.over(one):
            _connections.pop(key).close()


def _usable(connection: Connection | None) -> bool:
    """Whether a call can go there. A local head whose supervisor is gone may still answer, and is about to end."""
    if connection is None or (isinstance(connection.target, LocalTarget) and connection.target.lost()):
        return False
    return connection.found_again()


def instead_of(lost: Connection, say: Callable[[str], None]) -> Connection:
    """Return a connection after the cluster of another one has ended. Raises ClusterLost in a call: it has no other."""
    if protocol.nested is not None:
        raise ClusterLost("the node of this call has gone away")
    return reach(lost.target, say)


def _borrowed(target: DaskTarget) -> Connection:
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            choice.prepared(target.address, target.security)  # also one that was restarted, and has lost our plugin
            connection = Connection(target)
        except OSError as error:
            raise choice.gone(target.address, error) from error
        if not connection.welcome.closing:
            return connection
        connection.close()  # it gives way to another version
        if time.monotonic() > until:
            raise ClusterLost(f"burla does not end on the cluster {target.address}, so that none can begin there")
        time.sleep(_POLL_S)


def _local(say: Callable[[str], None]) -> Connection:
    global _starting
    error: Exception | None = None
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:  # it may end, idle, in the moment it is found, or its head come back elsewhere
        started = _starting = local.start() or _starting
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
            time.sleep(_POLL_S)
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
    global _lock
    _connections.clear()
    _lock = threading.RLock()


atexit.register(forget)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
