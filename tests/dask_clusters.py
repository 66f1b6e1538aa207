"""Dask clusters that somebody else could have started: by hand, in an environment without burla, or as an object."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, LocalCluster
from packaging.requirements import Requirement

from burla.clusters.security import create_keys, load_security
from tests.conftest import end_processes, wait_until

CLIENT_FILES = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
SERVER_FILES = {"ca-file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
KINDS = ("plain", "tls", "threads", "processes")


def bare_python(folder: Path) -> str:
    """Return the Python of an environment with Dask and what Dask needs, and nothing else: links to what is here."""
    venv.create(folder, symlinks=True)
    (lib,) = (folder / "lib").glob("python*")
    wanted, seen = ["distributed"], set[str]()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            with contextlib.suppress(FileExistsError):
                (lib / "site-packages" / top).symlink_to(Path(str(found.locate_file(top))))
        needed = map(Requirement, found.requires or ())
        wanted += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return str(folder / "bin" / "python")


@dataclass
class HandStarted:
    """A `dask scheduler`, and `dask worker`s of one thread each, of an environment without burla."""

    folder: Path
    python: str
    tls: bool = False
    address: str = ""
    environ: dict[str, str] = field(default_factory=lambda: {k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def keys(self) -> dict[str, str]:
        """The files that open it, as `burla.use` calls them."""
        if not self.tls:
            return {}
        return {name: str(self.folder / "keys" / file) for name, file in CLIENT_FILES.items()}

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        return [*([self.scheduler] if self.scheduler else []), *self.workers]

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [self.python, "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard", *arguments]
        if self.tls:
            folder = self.folder / "keys"
            command += [f"--tls-{name}={folder / file}" for name, file in SERVER_FILES.items()]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=self.environ)

    def start_scheduler(self, port: int = 0) -> None:
        """Start the scheduler, and wait until it listens."""
        if self.tls:
            create_keys(self.folder)
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        protocol = ["--protocol", "tls"] if self.tls else []
        self.scheduler = self.start("dask_scheduler", "--port", str(port), "--scheduler-file", str(file), *protocol)
        wait_until(lambda: file.exists() and file.stat().st_size, 30, "the scheduler")
        self.address = json.loads(file.read_text())["address"]

    def add_worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker of one thread; wait for nothing."""
        self.workers.append(self.start("dask_worker", self.address, "--nthreads", "1", *arguments))
        return self.workers[-1]

    def client(self) -> Client:
        """Return a plain Dask client."""
        security: Any = load_security(self.folder) if self.tls else None
        return Client(self.address, security=security, set_as_default=False)

    def end(self) -> None:
        """End all processes; fail if one that they started is left."""
        family = [child for process in self.processes if process.poll() is None for child in children(process.pid)]
        end_processes(self.processes)
        wait_until(lambda: not any(map(_lives, family)), 15, "the end of all their children")


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def hand_started(
    folder: Path, python: str, tls: bool = False, environ: dict[str, str] | None = None
) -> Iterator[HandStarted]:
    """Start a scheduler and two workers: one with a nanny, which is the default, and one without."""
    made = HandStarted(folder, python, tls)
    made.environ |= {"BURLA_HOME": str(folder / "home")} | (environ or {})  # not our user's
    try:
        made.start_scheduler()
        made.add_worker()
        made.add_worker("--no-nanny")
        with made.client() as client:
            client.wait_for_workers(2, timeout=30)
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def local_cluster(processes: bool) -> Iterator[LocalCluster]:
    """Make a `LocalCluster` with two workers of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=processes, dashboard_address=":0") as cluster:
        yield cluster
