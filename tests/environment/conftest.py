"""A cluster elsewhere for all tests of this folder: a scheduler here, a worker with two slots on another `Machine`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.environment.lab import (
    HERE,
    ROOT,
    THERE,
    Index,
    Machine,
    distributions,
    install,
    machine,
    make_environment,
    run,
    uv,
)


@dataclass
class Elsewhere:
    """A cluster whose node shares nothing with its client, and a client: a Python, and a folder of scripts."""

    folder: Path
    machine: Machine
    index: Index
    client: Path  # its Python
    address: str
    node: Path  # its Python
    scripts: int = 0
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """The client's folder of scripts and modules."""
        return self.folder / "client" / "project"

    def run(self, source: str, **files: str) -> object:
        """Return what a script of the client leaves in `result`, with `files` as modules beside it."""
        for name, text in files.items():
            (self.project / f"{name}.py").write_text(textwrap.dedent(text))
        done = self.start(source)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, source: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the client; its last line of output is `result`, as JSON."""
        self.scripts += 1
        script = self.project / f"script_{self.scripts}.py"
        head = f"import json, os, sys, burla\nburla.use({self.address!r})\n"
        script.write_text(head + textwrap.dedent(source) + "\nprint(json.dumps(result))\n")
        try:
            return subprocess.run(
                [str(self.client), str(script)],
                capture_output=True,
                text=True,
                timeout=110,
                cwd=self.project,
                env={**os.environ, **self.environ, "BURLA_HOME": str(self.folder / "client" / "home")},
            )
        finally:
            script.unlink()

    @contextlib.contextmanager
    def installed(self, *packages: str | Path, find: Path | None = None) -> Iterator[None]:
        """Have packages at the client for a while: from the index, or with `find` from a folder of wheels."""
        before = set(distributions(self.client))
        chosen = ["--no-index", "--find-links", str(find)] if find else ["--default-index", self.index.url("127.0.0.1")]
        install(self.client, *map(str, packages), options=("--no-cache", *chosen))
        try:
            yield
        finally:
            gone = sorted(set(distributions(self.client)) - before)
            run(uv(), "pip", "uninstall", "--quiet", "--python", str(self.client), *gone)

    def log(self) -> str:
        """Return what the workers wrote."""
        file = self.machine.folder / "log.txt"
        return file.read_text() if file.exists() else ""


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Pythons of a client and of nodes: two virtual environments with burla."""
    if os.geteuid() != 0:
        pytest.skip("another machine is made of namespaces, which takes root")
    folder = tmp_path_factory.mktemp("pythons")
    return make_environment(folder / "client"), make_environment(folder / "node")


@contextlib.contextmanager
def cluster_elsewhere(folder: Path, pythons: tuple[Path, Path], **environ: str) -> Iterator[Elsewhere]:
    """Have a cluster elsewhere; `environ` of its node, besides our own index."""
    client, node = pythons
    for name in ("client/project", "node"):
        (folder / name).mkdir(parents=True)
    index = Index(folder / "index")
    with machine(folder / "node", folder / "client", client.parents[1], ROOT) as other:
        file = folder / "scheduler.json"
        command = [str(node), "-m", "distributed.cli.dask_scheduler", "--host", HERE, "--port", "0", "--no-dashboard"]
        with open(folder / "scheduler.txt", "wb") as log:
            scheduler = subprocess.Popen([*command, "--scheduler-file", str(file)], stdout=log, stderr=log, cwd=folder)
        try:
            wait_until(lambda: file.exists() and file.stat().st_size, 30, "the scheduler")
            made = Elsewhere(folder, other, index, client, json.loads(file.read_text())["address"], node)
            start_node(made, **{"UV_DEFAULT_INDEX": index.url(HERE), **environ})
            yield made
        finally:
            scheduler.terminate()
            scheduler.wait(15)
            index.close()


def start_node(elsewhere: Elsewhere, **environ: str) -> None:
    """Have one worker more on the other machine."""
    command = [str(elsewhere.node), "-m", "distributed.cli.dask_worker", elsewhere.address, "--host", THERE]
    before = elsewhere.log().count("Registered to")
    elsewhere.machine.run(*command, "--nthreads", "2", "--no-nanny", "--no-dashboard", environ=environ)
    wait_until(lambda: elsewhere.log().count("Registered to") > before, 30, "the worker")


@pytest.fixture(scope="module")
def elsewhere(pythons: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    with cluster_elsewhere(tmp_path_factory.mktemp("elsewhere"), pythons) as made:
        yield made
