"""A cluster elsewhere for all tests of this folder: a scheduler here, a worker with two slots on another `Machine`."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.environment.lab import HERE, ROOT, THERE, Index, Machine, machine, make_environment


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

    def log(self) -> str:
        return (self.machine.folder / "log.txt").read_text()


def start_node(elsewhere: Elsewhere, **environ: str) -> None:
    """Have one worker more on the other machine."""
    command = [str(elsewhere.node), "-m", "distributed.cli.dask_worker", elsewhere.address, "--host", THERE]
    elsewhere.machine.run(*command, "--nthreads", "2", "--no-nanny", "--no-dashboard", environ=environ)


@pytest.fixture(scope="session")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The Pythons of a client and of nodes: two virtual environments with burla."""
    folder = tmp_path_factory.mktemp("pythons")
    return make_environment(folder / "client"), make_environment(folder / "node")


@pytest.fixture(scope="module")
def elsewhere(pythons: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    if os.geteuid() != 0:
        pytest.skip("another machine is made of namespaces, which takes root")
    folder = tmp_path_factory.mktemp("elsewhere")
    client, node = pythons
    for name in ("client/project", "node"):
        (folder / name).mkdir(parents=True)
    index = Index(folder / "index")
    hidden = (folder / "client", client.parents[1], ROOT)
    with machine(folder / "node", *hidden) as other:
        file = folder / "scheduler.json"
        command = [str(node), "-m", "distributed.cli.dask_scheduler", "--host", HERE, "--port", "0", "--no-dashboard"]
        with open(folder / "scheduler.txt", "wb") as log:
            scheduler = subprocess.Popen([*command, "--scheduler-file", str(file)], stdout=log, stderr=log, cwd=folder)
        try:
            wait_until(lambda: file.exists() and file.stat().st_size, 30, "the scheduler")
            made = Elsewhere(folder, other, index, client, json.loads(file.read_text())["address"], node)
            start_node(made, UV_DEFAULT_INDEX=index.url(HERE))
            wait_until(lambda: "Registered to" in made.log(), 30, "the worker")
            yield made
        finally:
            scheduler.terminate()
            scheduler.wait(15)
            index.close()
