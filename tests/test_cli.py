"""The command `burla`: what it prints, and its exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from burla import remote_parallel_map
from burla.clusters import local
from tests.conftest import Home, Ledger, Scripts, cluster_processes, wait_until


def burla(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "burla.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_without_a_cluster_both_say_so_and_start_none(own_home: Home):
    assert burla("cluster", "status") == (3, "The local cluster is not up. The next call starts it.\n", "")
    assert burla("cluster", "stop") == (3, "The local cluster is not up.\n", "")
    assert not cluster_processes(os.environ)
    assert list(own_home.path.iterdir()) == []


def test_status_shows_nodes_idleness_and_jobs(scripts: Scripts, ledger: Ledger):
    assert remote_parallel_map(abs, [-1]) == [1]
    code, out, err = burla("cluster", "status")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"The local cluster is up \(pid \d+\): 2 CPUs, ends after 5 min idle\.", lines[0])
    assert re.fullmatch(r"  node \S+: 2 CPUs, [\d.]+ GB RAM", lines[1])
    assert re.fullmatch(r"  no jobs; idle for \d+ s", lines[2]) and len(lines) == 3

    script = scripts.start(
        """
        import sys, time
        from burla import remote_parallel_map
        def crunch(x, ledger=sys.argv[1]):
            open(ledger, "a").write("running\\n")
            time.sleep(0 if x < 2 else 300)
        remote_parallel_map(crunch, range(1000))
        """,
        str(ledger.path),
    )
    wait_until(lambda: len(ledger.entries()) == 4, 30, "four calls")
    line = r"  job \w+ crunch: running, 2/1,000 done, 2 running, \d+ s"
    wait_until(lambda: re.fullmatch(line, burla("cluster", "status")[1].splitlines()[2]), 15, "the job's line")
    script.terminate()
    assert script.wait(30) != 0


def test_stop_ends_the_cluster_and_its_jobs(own_home: Home, scripts: Scripts, ledger: Ledger):
    script = scripts.start(
        """
        import sys, time
        from burla import BurlaError, remote_parallel_map
        def call(x, ledger=sys.argv[1]):
            open(ledger, "a").write("running\\n")
            try:
                time.sleep(300)
            finally:
                open(ledger, "a").write("cleaned\\n")
        try:
            remote_parallel_map(call, range(2))
        except BurlaError as error:
            print(type(error).__name__, error)
        """,
        str(ledger.path),
    )
    wait_until(lambda: len(ledger.entries()) == 2, 30, "two calls")
    assert burla("cluster", "stop") == (0, "The local cluster has ended.\n", "")
    wait_until(lambda: not cluster_processes(os.environ), 10, "the end of all processes")
    assert script.communicate(timeout=30) == ("ClusterLost the cluster was ended while the job ran\n", "")
    assert sorted(ledger.entries()) == ["cleaned"] * 2 + ["running"] * 2
    assert burla("cluster", "status")[0] == 3


def test_an_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path):
    assert remote_parallel_map(abs, [-1]) == [1]
    key = local.folder() / "keys" / "key.pem"
    key.chmod(0o644)
    try:
        code, out, err = burla("cluster", "status")
    finally:
        key.chmod(0o600)
    assert (code, out) == (1, "")
    assert err.startswith(f"burla: {key} has mode 0644") and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["cluster"], ["cluster", "fly"], ["fly"]])
def test_wrong_usage_shows_what_is_right_and_exits_with_2(arguments: list[str]):
    code, out, err = burla(*arguments)
    assert (code, out) == (2, "") and err.startswith("usage: burla")
