"""The background process of the local cluster: imports Dask once, forks head and node, restarts either when it dies.

    python -P -m burla.clusters.supervisor FOLDER SOURCE

It holds the lock of the folder as long as it lives: that, and no pid, is what "the cluster is up" means. Head and node
hold the read end of a pipe whose other end only the supervisor has, and end when it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burla import config
from burla.clusters import locks
from burla.errors import StoreBusy, StoreUnknown

log = logging.getLogger("burla.supervisor")

HOST = "127.0.0.1"
READY_FILE = "ready.json"
SOCKET_FILE = "head.sock"
SOCKET_BYTES = 100  # of a path, at most: macOS takes 103, Linux 107
IDLE_EXIT = 0  # of the head: it ended on purpose
PORT_TAKEN = 98
REFUSED = 78  # of a head that will not start, however often it is tried
AGAIN_S = (0.0, 0.1, 0.5, 2.0)  # before the next start of something that keeps dying
MOST_FAILURES = 10  # in a row, of a head that does not come up
DESCRIPTORS = 10_240  # the most that macOS allows
STEADY_S = 10.0  # who lived longer starts again at once

DASK_SETTINGS = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 1_000_000,
    "distributed.scheduler.no-workers-timeout": None,
    "distributed.scheduler.worker-ttl": None,  # our own lease is monotonic; Dask's follows the wall clock
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.system-monitor.interval": "30s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.tick.interval": "5s",
    "distributed.admin.tick.limit": "60s",
    "distributed.diagnostics.nvml": False,  # the node asks once; nobody reads a GPU's load every second
}


@dataclass(frozen=True)
class Ready:
    """What the ready file says; written by rename once the head listens, gone when the head is.

    `socket`: the path of a Unix socket at which the head listens too; empty if there is none.
    """

    address: str
    socket: str
    source: str  # which burla and Python it is
    pid: int  # of the supervisor
    cpus: int
    idle_after_s: float


def read_ready(folder: Path) -> Ready | None:
    """Return what the ready file says, or None if there is none."""
    try:
        return Ready(**json.loads((folder / READY_FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class Supervisor:
    """Keeps one head and one node."""

    def __init__(self, folder: Path, source: str, lock: int):
        from dask.system import CPU_COUNT  # pyright: ignore[reportAttributeAccessIssue]

        self._folder = folder
        self._source = source
        self._lock = lock
        self._cpus = config.local_cpus() or CPU_COUNT
        self._idle_after_s = config.local_idle_s()
        self._pids: dict[int, str] = {}
        self._started: dict[str, float] = {}
        self._failures = {"head": 0, "node": 0}
        self._port = 0
        self._heads = 0  # started so far
        self._lifeline, self._our_end = os.pipe()
        self._stop = False
        self._children = os.path.join(folder, "work")
        socket = folder / SOCKET_FILE
        self._socket = socket if len(os.fsencode(socket)) <= SOCKET_BYTES else None

    def run(self) -> None:
        """Supervise until the head is idle or a signal comes; then nothing of the cluster is left."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._on_signal)
        shutil.rmtree(self._children, ignore_errors=True)
        os.makedirs(self._children, mode=0o700)
        try:
            self._start("node")  # it waits for the head, and prepares its children meanwhile
            self._start("head")
            while not self._stop:
                try:
                    pid, status = os.wait()
                except InterruptedError:
                    continue
                self._ended(self._pids.pop(pid, ""), os.waitstatus_to_exitcode(status))
        finally:
            self._unlink_ready()
            self._end_all()
            shutil.rmtree(self._children, ignore_errors=True)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True
        raise InterruptedError

    def _ended(self, role: str, code: int) -> None:
        if not role:
            return
        if role == "head":
            self._unlink_ready()  # its port may soon be somebody else's
        if role == "head" and code == IDLE_EXIT:
            self._stop = True
            return
        if role == "head" and code == REFUSED:
            self._stop = True
            return
        if role == "head" and code == PORT_TAKEN:
            self._port = 0
        lived_s = time.monotonic() - self._started[role]
        self._failures[role] = 0 if lived_s > STEADY_S else self._failures[role] + 1
        if role == "head" and self._failures[role] >= MOST_FAILURES:
            log.error("the head does not come up: giving up")
            self._stop = True
            return
        log.warning("the %s ended with %s after %.1f s; starting another", role, code, lived_s)
        time.sleep(AGAIN_S[min(self._failures[role], len(AGAIN_S) - 1)])
        self._start(role)

    def _start(self, role: str) -> None:
        self._started[role] = time.monotonic()
        if role == "head":
            self._heads += 1
            address, told = os.pipe()
            self._fork(role, lambda: self._head(told))
            os.close(told)
            with os.fdopen(address, "rb") as reading:
                text = reading.read().decode()
            if text:  # else it died, and os.wait() says so
                self._port = int(text.rsplit(":", 1)[1])
                self._write_ready(text)
        else:
            self._fork(role, self._node)

    def _fork(self, role: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pid = os.fork()
        if pid:
            self._pids[pid] = role
            return
        code = 1
        try:
            os.close(self._our_end)
            os.close(self._lock)  # only the supervisor's life counts
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # not asyncio.run: at its end it waits, for ever, for tasks that do not let themselves be cancelled
            code = asyncio.new_event_loop().run_until_complete(self._live(work()))
        except BaseException:
            logging.getLogger(f"burla.{role}").exception("the %s failed", role)
        finally:
            os._exit(code)

    async def _live(self, work: Coroutine[Any, Any, None]) -> int:
        """Run the work until it is done or the supervisor is gone."""
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._lifeline, gone.set)
        loop.add_signal_handler(signal.SIGTERM, gone.set)
        working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(gone.wait())
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(self._lifeline)
        if not working.done():
            working.cancel()
            await asyncio.wait([working], timeout=3)
            return 1
        error = working.exception()
        if (refusal := _cause(error, (StoreUnknown, StoreBusy))) is not None:
            log.error("the head does not start: %s", refusal)
            return REFUSED
        if self._port and (taken := _cause(error, (OSError,))) is not None:
            log.warning("the head cannot listen at its old port: %s", taken)
            return PORT_TAKEN
        if error is not None:
            raise error
        return IDLE_EXIT

    async def _head(self, told: int) -> None:
        from burla.clusters.security import load_security
        from burla.head.main import run_head

        def ready(address: str) -> None:
            os.write(told, address.encode())
            os.close(told)

        await run_head(
            HOST,
            self._port,
            load_security(self._folder),
            self._folder,
            self._idle_after_s,
            ready,
            fresh=self._heads == 1,  # of the nodes that a former supervisor had, none is left
            socket=self._socket,
        )

    async def _node(self) -> None:
        from burla.clusters.security import load_security
        from burla.node.main import describe, run_node

        def address() -> str | None:
            ready = read_ready(self._folder)
            return ready.address if ready else None

        def socket() -> str:
            ready = read_ready(self._folder)
            return ready.socket if ready else ""

        offer = await describe(f"local-{secrets.token_hex(8)}", self._cpus)
        await run_node(address, load_security(self._folder), HOST, offer, self._children, socket=socket)

    def _write_ready(self, address: str) -> None:
        socket = str(self._socket) if self._socket is not None and self._socket.exists() else ""
        ready = Ready(address, socket, self._source, os.getpid(), self._cpus, self._idle_after_s)
        new = self._folder / f"{READY_FILE}.new"
        new.write_text(json.dumps(asdict(ready)))
        new.rename(self._folder / READY_FILE)

    def _unlink_ready(self) -> None:
        (self._folder / READY_FILE).unlink(missing_ok=True)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)

    def _end_all(self) -> None:
        """Ask head and node to end, and see to it that they do."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(self._our_end)
        until = time.monotonic() + 5
        while self._pids and time.monotonic() < until:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            self._pids.pop(pid, None)
            time.sleep(0.01 if not pid else 0)
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)


def _cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return why a head did not start, if it was one of these: Dask wraps what its plugins and its listener raise."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _raise_descriptor_limit() -> None:
    """A head has a descriptor for each client and node, a node ten for each child."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a system with a lower limit than it says: what is there does
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(folder: Path, source: str) -> None:
    """Run the local cluster of a folder, unless one runs already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    lock = locks.try_lock(folder / "lock", wait_s=2.0)
    if lock is None:
        log.info("another one runs")
        return
    _raise_descriptor_limit()
    import dask.config

    dask.config.set(DASK_SETTINGS | {"temporary-directory": str(folder / "work")})
    import burla.head.main
    import burla.node.main  # noqa: F401  before the fork: the imports are nearly all that a start costs

    Supervisor(folder, source, lock).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
