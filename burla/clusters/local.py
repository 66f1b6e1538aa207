"""The local cluster as a client sees it: where its folder is, whether it is up, how to start it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from burla import config
from burla.clusters import locks
from burla.clusters.rpc import ask_scheduler
from burla.clusters.security import create_keys, load_security, private_folder
from burla.clusters.supervisor import READY_FILE, Ready, read_ready
from burla.errors import ClusterStartFailed
from burla.protocol import STOP_OP

START_S = 60.0
ANSWER_S = 5.0
_POLL_S = 0.01
_PACKAGE = Path(__file__).resolve().parents[1]
LOG_FILE = "log.txt"
_LOG_BYTES = 5_000_000


@functools.cache
def source_key() -> str:
    """Return a short hash of our source and of the Python that runs it: who differs cannot share a cluster."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Return the folder of this user's cluster for this machine and Python environment."""
    uid = os.getuid() if hasattr(os, "getuid") else 0
    key = hashlib.sha256(f"{socket.gethostname()}\n{uid}\n{sys.prefix}".encode()).hexdigest()[:12]
    return config.home() / "clusters" / f"local-{key}"


def is_up(where: Path) -> bool:
    """Whether a supervisor lives there."""
    return (where / "lock").exists() and locks.is_locked(where / "lock")


def find(where: Path | None = None) -> Ready | None:
    """Return the cluster that is up in a folder, else in this environment's, of whatever version; None if none is."""
    where = where or folder()
    return read_ready(where) if is_up(where) else None


def start() -> subprocess.Popen[bytes] | None:
    """Begin to start the cluster, unless it is up; `wait` waits for it.

    Raises UnsafeFiles if the folder of its keys is open to others.
    """
    where = private_folder(folder())
    if is_up(where):
        return None
    with locks.locked(where / "start.lock"):  # of two that start at once, the second finds it up
        if is_up(where):
            return None
        create_keys(where)
        (where / READY_FILE).unlink(missing_ok=True)  # of one that was killed
        return _spawn(where)


def _spawn(where: Path) -> subprocess.Popen[bytes]:
    log = where / LOG_FILE
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(where / f"{LOG_FILE}.old")
    (where / "dask").mkdir(mode=0o700, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    environ["DASK_CONFIG"] = str(where / "dask")  # the user's own settings are for the user's own clusters
    code = (
        f"import sys; sys.path.insert(0, {str(_PACKAGE.parent)!r}); from pathlib import Path; "
        f"from burla.clusters.supervisor import main; main(Path({str(where)!r}), {source_key()!r})"
    )
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            close_fds=True,
            cwd="/",
            env=environ,
        )
    until = time.monotonic() + START_S
    try:
        while not locks.is_locked(where / "lock") and process.poll() is None and time.monotonic() < until:
            time.sleep(_POLL_S)
    except BaseException:  # interrupted: left alone, it might come up in the place of a later one
        process.kill()
        process.wait()
        raise
    return process


def wait(process: subprocess.Popen[bytes] | None) -> Ready | None:
    """Return once the cluster is up, None if one that was up has ended. Raises ClusterStartFailed, with its log."""
    where = folder()
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        ready = read_ready(where)
        if ready is not None and is_up(where):
            return ready
        if not is_up(where) if process is None else process.poll() is not None:
            break
        time.sleep(_POLL_S)
    ready = find()
    if ready is not None or (process is None and not is_up(where)):
        return ready
    log = where / LOG_FILE
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(no log)"
    raise ClusterStartFailed(f"the local cluster did not start. The end of {log}:\n{tail}", log=str(log))


def stop(ready: Ready, only_if_idle: bool) -> list[str]:
    """End the cluster, of whatever version; return the names of unfinished jobs.

    With `only_if_idle` these are jobs that kept it; else detached ones that go on when it is next started. A head that
    cannot be asked is ended with its supervisor.
    """
    try:
        security = load_security(folder())
        unfinished = list(ask_scheduler(ready.address, security, STOP_OP, ANSWER_S, only_if_idle=only_if_idle))
    except OSError:
        unfinished = []
        with contextlib.suppress(ProcessLookupError):
            os.kill(ready.pid, signal.SIGTERM)
    if not unfinished or not only_if_idle:
        wait_for_end()
    return unfinished


def wait_for_end() -> None:
    """Return when no cluster is up any more. Raises ClusterStartFailed if it does not end."""
    until = time.monotonic() + START_S
    while is_up(folder()):
        if time.monotonic() > until:
            raise ClusterStartFailed("the former local cluster does not end", log=str(folder() / LOG_FILE))
        time.sleep(_POLL_S)
