"""What every test has: markers by folder, and fixtures.

Tests run real clusters: one for all tests of the session, in a `BURLA_HOME` of its own, and others where a test kills
or changes something. Functions for calls are defined inside tests, so that they travel by value: children cannot import
test modules.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import psutil
import pytest

TESTS = Path(__file__).parent
MARKED_FOLDERS = ("browser", "faults")
LOCAL_FIXTURES = {"own_home", "four_slots", "eight_slots", "four_gpus"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on",
        choices=("local", "plain", "tls", "threads", "processes"),
        default="local",
        help="where tests run that are not about the local cluster: by default there; on a Dask scheduler and workers "
        "that were started by hand, without burla, plain or with TLS; on a LocalCluster of threads or processes",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    elsewhere = config.getoption("--on") != "local"
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if elsewhere and (item.get_closest_marker("local") or not LOCAL_FIXTURES.isdisjoint(fixtures)):
            item.add_marker(pytest.mark.skip(reason="about the local cluster"))
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)


# fixtures -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def shared_home() -> Iterator[Path]:
    """A BURLA_HOME for the session, with a local cluster of 2 slots; at the end no process of it may be left."""
    home = Path(tempfile.mkdtemp(prefix="burla-test-"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):  # they would hide what a user's calls meet
            patch.delenv(name, raising=False)
        patch.setenv("BURLA_HOME", str(home))
        patch.setenv("BURLA_LOCAL_CPUS", "2")
        patch.setenv("BURLA_LOCAL_IDLE_S", "300")
        yield home
        end_cluster(os.environ)
    shutil.rmtree(home)


@dataclass(frozen=True)
class Home:
    """A local cluster of one test: its environment, and its processes."""

    path: Path
    environ: dict[str, str]

    def processes(self) -> dict[str, psutil.Process]:
        """Return supervisor, head, node and zygote, by these names, as far as they live."""
        found = {}
        for process in cluster_processes(self.environ):
            kind = process_kind(process)
            if kind not in ("child", "gone"):
                found[kind] = process
        return found


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A BURLA_HOME for this test alone, in effect for this process and its subprocesses."""
    with home(monkeypatch) as path:
        yield Home(path, dict(os.environ))


@contextlib.contextmanager
def home(patch: pytest.MonkeyPatch, prefix: str = "burla-test-") -> Iterator[Path]:
    """Have a BURLA_HOME of one's own; at the end no process of its cluster may be left."""
    from burla.client import current

    path = Path(tempfile.mkdtemp(prefix=prefix))
    current.forget()
    patch.setenv("BURLA_HOME", str(path))
    try:
        yield path
        end_cluster(os.environ)
    finally:
        current.forget()
        shutil.rmtree(path, ignore_errors=True)


class Ledger:
    """A file that calls append to: what really ran, and when."""

    def __init__(self, path: Path):
        self.path = path

    def writer(self) -> Callable[[object], None]:
        """Return a function that calls can use, also in a child; one line each, atomically."""
        path = str(self.path)

        def write(entry: object) -> None:
            import os

            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{entry}\n".encode())
            os.close(fd)

        return write

    def entries(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


class Scripts:
    """Runs Python programs in processes of their own, as a user would."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, source: str, *arguments: str, name: str = "script.py", **options: object) -> subprocess.Popen[str]:
        path = self.folder / name
        path.write_text(textwrap.dedent(source))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder} | options
        process = subprocess.Popen([sys.executable, str(path), *arguments], text=True, **options)  # type: ignore[call-overload]
        self.started.append(process)
        return process

    def run(
        self, source: str, *arguments: str, timeout_s: float = 60, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Return what a program printed, to stdout and stderr, and its exit code."""
        process = self.start(source, *arguments, **options)
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    yield scripts
    for process in scripts.started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session", autouse=True)
def cluster_in_use(
    shared_home: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The cluster of `--on`, for this process and, as far as they can reach it, for its scripts."""
    kind = request.config.getoption("--on")
    if kind == "local":
        yield
        return
    import burla
    from tests import dask_clusters

    folder = tmp_path_factory.mktemp("cluster")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if kind in ("plain", "tls"):
            python = dask_clusters.bare_python(folder / "python")
            made = stack.enter_context(dask_clusters.hand_started(folder, python, tls=kind == "tls"))
            patch.setenv("BURLA_CLUSTER", made.address)
            for name, path in made.keys.items():
                option = name.removeprefix("tls_").replace("client_", "client__")
                patch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{option.upper()}", path)
            dask.config.refresh()
        else:
            cluster = stack.enter_context(dask_clusters.local_cluster(processes=kind == "processes"))
            stack.enter_context(burla.use(cluster))
            if kind == "processes":
                patch.setenv("BURLA_CLUSTER", cluster.scheduler_address)
        yield


# helpers --------------------------------------------------------------------------------------------------------------


def cluster_processes(environ: dict[str, str] | os._Environ[str]) -> list[psutil.Process]:
    """Return the living processes of the cluster whose BURLA_HOME the environment names."""
    home, found = environ["BURLA_HOME"], []
    for process in psutil.process_iter():
        try:
            ours = "burla." in " ".join(process.cmdline()) and process.environ().get("BURLA_HOME") == home
            if ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def process_kind(process: psutil.Process) -> str:
    """Return supervisor, head, node, zygote, child or client; `gone`: it has just ended."""
    try:
        command = " ".join(process.cmdline())
        parent = process.parent()
        above = " ".join(parent.cmdline()) if parent else ""
        if not command:
            return "gone"
        if "zygote" in command:
            return "child" if "zygote" in above else "zygote"
        if "burla.clusters.supervisor" not in command:
            return "client"
        if "burla.clusters.supervisor" not in above:
            return "supervisor"
        return "node" if any("zygote" in " ".join(child.cmdline()) for child in process.children()) else "head"
    except psutil.NoSuchProcess:
        return "gone"


def lives(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be collected is none."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], timeout_s: float = 15, what: str = "the condition") -> None:
    """Return as soon as a condition holds; fail if it does not in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"{what} did not come in {timeout_s} s"
        time.sleep(0.02)


def end_processes(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Ask processes to end, the last one first, and see to it that they do."""
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_cluster(environ: dict[str, str] | os._Environ[str]) -> None:
    """Stop a local cluster; fail if a process of it is left."""
    from burla.client import current

    current.forget()
    subprocess.run(
        [sys.executable, "-m", "burla.cli", "cluster", "stop"], env=environ, check=False, capture_output=True
    )
    wait_until(lambda: not cluster_processes(environ), 10, "the end of all processes of the cluster")
