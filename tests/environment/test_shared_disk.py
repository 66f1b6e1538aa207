"""Nodes that share the client's disk: they run calls as the client would, whatever environment they have themselves."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from burla.environment import disk
from tests.conftest import wait_until
from tests.environment.lab import install, make_wheel, run, uv


def test_a_disk_is_known_by_a_file_that_only_its_user_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BURLA_HOME", str(tmp_path / "home"))
    origin = disk.origin()
    file = Path(origin.path)
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text() not in repr(origin)
    assert disk.is_here(origin) and disk.origin() == origin
    content = file.read_text()
    file.write_text(content[::-1])
    assert not disk.is_here(origin), "another machine has a file of that name, too"
    file.unlink()
    assert not disk.is_here(origin)


@pytest.mark.slow
def test_a_worker_in_another_environment_runs_calls_in_the_clients(pythons: tuple[Path, Path], tmp_path: Path):
    client, node = pythons
    install(client, str(make_wheel(tmp_path, "bt_only_client", {"bt_only_client.py": "WORD = 'client'"})))
    file, log = tmp_path / "scheduler.json", (tmp_path / "log.txt").open("wb")
    environ = {**os.environ, "BURLA_HOME": str(tmp_path / "home"), "VISIBLE": "as here"}

    def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(node), "-m", f"distributed.cli.{module}", "--host", "127.0.0.1", "--no-dashboard", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)

    script = tmp_path / "script.py"
    script.write_text(
        """
import json, os, sys, burla
burla.use(sys.argv[1])
def call(x):
    import bt_only_client
    return bt_only_client.WORD, sys.prefix == prefix, os.environ["VISIBLE"], os.getcwd() == here
prefix, here = sys.prefix, os.getcwd()
print(json.dumps(burla.remote_parallel_map(call, [0])))
"""
    )
    processes = [start("dask_scheduler", "--port", "0", "--scheduler-file", str(file))]
    try:
        wait_until(lambda: file.exists() and file.stat().st_size, 30, "the scheduler")
        address = json.loads(file.read_text())["address"]
        processes.append(start("dask_worker", address, "--nthreads", "1", "--no-nanny"))
        wait_until(lambda: "Registered to" in (tmp_path / "log.txt").read_text(), 30, "the worker")
        done = subprocess.run(
            [str(client), str(script), address], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environ
        )
        assert done.stdout == '[["client", true, "as here", true]]\n', done.stderr
        assert not (tmp_path / "home" / "environments").exists(), "nothing was made"
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(15)
        log.close()
        run(uv(), "pip", "uninstall", "--quiet", "--python", str(client), "bt_only_client")
