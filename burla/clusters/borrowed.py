"""Any Dask scheduler that already runs: our package goes there, makes it a head, and its workers nodes.

A machine of our own (see `bootstrap`) takes the package without Dask's plugins: it waits for it, or makes room.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
import time
from typing import Any

from burla.clusters.package import Package, package
from burla.clusters.rpc import ask_scheduler
from burla.errors import ClusterBusy, ClusterError, PythonMismatch
from burla.protocol import HEAD_KEY, LEAVE_OP, PUT_PACKAGE_OP

log = logging.getLogger(__name__)

ANSWER_S = 10.0
INSTALL_S = 60.0  # Dask asks every worker
OLDEST_DASK = (2025, 7)
_POLL_S = 0.05


def prepare(address: str, security: Any) -> None:
    """Make the scheduler at `address` a head of this version, unless it is one.

    Raises OSError if nobody answers there, ClusterBusy if another version is in use there, ClusterError if it cannot be
    done.
    """
    ask = functools.partial(ask_scheduler, address, security)
    ours, until = package(), time.monotonic() + INSTALL_S
    checked = own = False
    while (found := _look(ask, own)) is None or found["key"] != ours.key:
        own = own or bool(found and found.get("own"))
        if own and found:
            _bring(address, found, ours, ask)
        elif not own:
            if not checked:
                _check_versions(address, ask("versions", ANSWER_S), ask("broadcast", ANSWER_S, msg={"op": "versions"}))
                checked = True
            if found is not None:
                _have_leave(address, found["version"], ours, ask)
            _install(address, ours, ask)
        if time.monotonic() > until:
            raise ClusterError(f"the scheduler at {address} does not become ready: look into its log.")
        time.sleep(_POLL_S)  # another process may be at it


def _look(ask: Any, own: bool) -> dict[str, Any] | None:
    """Return what is said of the head there, None: nothing. `own`: it may be starting again, and not answer."""
    try:
        return ask("get_metadata", ANSWER_S, keys=[HEAD_KEY], default=None)
    except OSError:
        if not own:
            raise
        return None


def _bring(address: str, found: dict[str, Any], ours: Package, ask: Any) -> None:
    try:
        if found.get("waits"):
            sha256 = hashlib.sha256(ours.archive).hexdigest()
            ask(PUT_PACKAGE_OP, INSTALL_S, archive=ours.archive, sha256=sha256)
        else:
            _have_leave(address, found["version"], ours, ask)
    except OSError as error:  # another process was faster
        log.info("%s: %s", address, error)


def _have_leave(address: str, theirs: str, ours: Package, ask: Any) -> None:
    needed = ask(LEAVE_OP, INSTALL_S)
    if needed:
        raise ClusterBusy(
            f"burla {theirs} is in use on the cluster {address} ({', '.join(needed)}), and this process runs "
            f"{ours.version}. Wait until it is idle, then this version replaces it; or use the same version."
        )


def _install(address: str, ours: Package, ask: Any) -> None:
    from burla.clusters import carrier

    node = _by_value(carrier.NodeCarrier(ours.key, ours.version, ours.archive))
    plugin = _by_value(carrier.HeadCarrier(ours.key, ours.version, ours.archive, node))
    try:
        ask("register_scheduler_plugin", INSTALL_S, plugin=plugin, name=HEAD_KEY, idempotent=True)
    except ConnectionError:
        raise
    except Exception as error:
        raise ClusterError(
            f"the scheduler at {address} does not take burla's plugin: {type(error).__name__}: {error}. "
            "It has to allow plugins that a client registers."
        ) from error


def _by_value(plugin: Any) -> bytes:
    """Pickle a plugin with the module that it is of."""
    import cloudpickle

    module = sys.modules[type(plugin).__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(plugin)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _check_versions(address: str, scheduler: Any, workers: dict[str, Any]) -> None:
    """Raise ClusterError unless Python is the same there, and Dask one that is known to work."""
    here = "{}.{}".format(*sys.version_info)
    for where, found in {
        f"the scheduler at {address}": scheduler,
        **{f"worker {one}": workers[one] for one in workers},
    }.items():
        python = ".".join(found["host"]["python"].split(".")[:2])
        if python != here:
            raise PythonMismatch(
                f"{where} runs Python {python}, this process {here}. Functions travel between processes of the same "
                f"version only: use Python {here} there, or {python} here.",
                here=here,
                there=python,
            )
        dask = found["packages"]["distributed"]
        if tuple(int(part) for part in dask.split(".")[:2]) < OLDEST_DASK:
            raise ClusterError(
                f"{where} runs distributed {dask}: burla needs {'.'.join(map(str, OLDEST_DASK))} or newer there."
            )
