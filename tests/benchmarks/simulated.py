"""A real head, over TLS, with as many nodes as one likes: see `stand_in`. And how it bears them.

python -m tests.benchmarks.simulated FOLDER      the process of the head
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
from distributed import Scheduler

import burla
from burla.clusters import package
from burla.clusters.rpc import ask_scheduler
from burla.clusters.security import create_keys, load_security
from burla.clusters.supervisor import DASK_SETTINGS
from burla.head.main import run_head
from burla.head.plugin import HeadPlugin
from tests.benchmarks.drive import ROOT

_OP = "burla-bench"
_LOOK_S = 0.002
_ASK_S = 60.0
_COME_S = 600.0
_PROCESSES = 2  # of stand-ins


@dataclass(frozen=True)
class Load:
    """What became of the head since it was last asked. `stall_s`: the longest time that its loop stood still."""

    nodes: int
    stall_s: float
    cpu_s: float
    wall_s: float

    @property
    def cpu(self) -> float:
        return self.cpu_s / self.wall_s


class MeasuredPlugin(HeadPlugin):
    """A head that says how long its event loop stood still."""

    async def _install(self, scheduler: Scheduler) -> None:
        ours = package.package()
        self._signature = {"key": ours.key, "version": ours.version, "own": True}
        await super()._install(scheduler)
        self._stall_s = 0.0
        self._before = self._now()
        self._ticking = asyncio.ensure_future(self._tick())
        scheduler.handlers[_OP] = self._load

    def _now(self) -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            self._stall_s = max(self._stall_s, time.monotonic() - before - _LOOK_S)

    async def _load(self) -> dict[str, float]:
        (wall, cpu), now = self._before, self._now()
        stall_s, self._stall_s, self._before = self._stall_s, 0.0, now
        nodes = len(self._service.head.dispatch.nodes)
        return {"nodes": nodes, "stall_s": stall_s, "cpu_s": now[1] - cpu, "wall_s": now[0] - wall}


class Simulation:
    """A cluster of so many nodes of one slot each; calls of this process go there."""

    def __init__(self, nodes: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
        self.nodes = nodes
        self._folder = tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        create_keys(self.folder)
        self._log = (self.folder / "log.txt").open("wb")
        self._processes: list[subprocess.Popen[Any]] = []
        try:
            self._boot()
        except BaseException:
            self.close()
            raise

    def _boot(self) -> None:
        head = self._start("tests.benchmarks.simulated", str(self.folder), stdout=subprocess.PIPE)
        assert head.stdout is not None
        self.address = head.stdout.readline().decode().strip()
        self._security = load_security(self.folder)
        for number in range(min(_PROCESSES, self.nodes)):
            count = len(range(number, self.nodes, _PROCESSES))
            self._start("tests.benchmarks.stand_in", str(self.folder), self.address, f"p{number}", str(count))
        until = time.monotonic() + _COME_S
        while self.load().nodes < self.nodes:
            if time.monotonic() > until or any(one.poll() is not None for one in self._processes):
                raise RuntimeError((self.folder / "log.txt").read_text()[-3000:])
            time.sleep(0.2)
        keys = self.folder / "keys"
        files = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
        burla.use(self.address, **{name: str(keys / file) for name, file in files.items()})

    def _start(self, module: str, *arguments: str, stdout: Any = None) -> subprocess.Popen[Any]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, stdout=stdout or self._log, stderr=self._log
        )
        self._processes.append(process)
        return process

    def load(self) -> Load:
        """Return how the head stands, since this was last asked."""
        return Load(**ask_scheduler(self.address, self._security, _OP, _ASK_S))

    @property
    def head(self) -> int:
        """The pid of the head, for a profiler."""
        return self._processes[0].pid

    def close(self) -> None:
        burla.use("local")
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


async def _head(folder: Path) -> None:
    def ready(address: str) -> None:
        print(address, flush=True)

    await run_head("127.0.0.1", 0, load_security(folder), folder, None, ready, fresh=True, plugin=MeasuredPlugin)


if __name__ == "__main__":
    dask.config.set(DASK_SETTINGS | {"temporary-directory": sys.argv[1]})
    asyncio.run(_head(Path(sys.argv[1])))
