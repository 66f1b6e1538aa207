"""What a call finds around it: the caller's folder, path and variables as of the call, and nothing of other calls."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil
import pytest

from burla import remote_parallel_map
from tests.conftest import Scripts, cluster_processes, process_kind, wait_until


def test_calls_see_folder_path_and_variables_as_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The cluster and this process's connection are older than all of these changes."""

    def surroundings(x: int) -> tuple[str, list[str], dict[str, str]]:
        import os
        import sys

        return os.getcwd(), sys.path, dict(os.environ)

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("BURLA_TEST_VARIABLE", f"{name} ünï=\n")
        monkeypatch.syspath_prepend(tmp_path / name)
        ((cwd, path, environ),) = remote_parallel_map(surroundings, [0])
        assert cwd == str(tmp_path / name)
        assert path[: len(sys.path)] == [os.path.abspath(entry) for entry in sys.path], "then what is the node's"
        differing = {key for key in environ.keys() | os.environ.keys() if environ.get(key) != os.environ.get(key)}
        own = [key for key in differing if key.endswith("_THREADS") or key == "BURLA_CHILD"]
        assert sorted(differing) == sorted(own)
    monkeypatch.delenv("BURLA_TEST_VARIABLE")
    assert "BURLA_TEST_VARIABLE" not in remote_parallel_map(surroundings, [0])[0][2]


def test_relative_files_and_modules_beside_the_script_are_found(scripts: Scripts, tmp_path: Path):
    (tmp_path / "beside.py").write_text("value = 42\n")
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "elsewhere.py").write_text("value = 43\n")
    done = scripts.run(
        """
        import sys
        from burla import remote_parallel_map
        sys.path.append("other")  # a relative entry means the same folder there
        def call(x):
            import beside, elsewhere
            return open("data.txt").read(), beside.value, elsewhere.value
        print(remote_parallel_map(call, [0]))
        """
    )
    assert done.stdout == "[('data', 42, 43)]\n" and done.stderr == ""


def test_a_folder_that_is_gone_is_named(scripts: Scripts, tmp_path: Path):
    (tmp_path / "gone").mkdir()
    done = scripts.run(
        """
        import os
        from burla import BurlaError, remote_parallel_map
        os.chdir("gone")
        def inputs():
            yield 1
            os.rmdir("../gone")
        try:
            remote_parallel_map(abs, inputs())
        except BurlaError as error:
            print(error)
        """
    )
    assert str(tmp_path / "gone") in done.stdout and done.stderr == ""


CHANGES = {
    "folder": "os.chdir('/')",
    "folder by descriptor": "os.fchdir(os.open('/', os.O_RDONLY))",
    "variable": "os.environ['BURLA_TEST_VARIABLE'] = 'changed'",
    "variable past Python's dict": "os.putenv('BURLA_TEST_VARIABLE', 'changed')",
    "deleted variable": "del os.environ['BURLA_TEST_VARIABLE']",
    "cleared variables": "os.environ.clear()",
    "stdout": "sys.stdout = io.StringIO()",
    "stderr": "sys.stderr = None",
    "everything": "os.chdir('/'); sys.stdout = sys.stderr = None; os.environ.clear()",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_one_call_does_not_reach_the_next(
    change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURLA_TEST_VARIABLE", "original")
    code = CHANGES[change]

    def call(x: int) -> tuple[object, ...]:
        import io
        import os
        import subprocess
        import sys

        seen = os.getpid(), os.getcwd(), os.environ.get("BURLA_TEST_VARIABLE")
        shell = subprocess.run(["/bin/sh", "-c", "echo $BURLA_TEST_VARIABLE"], capture_output=True, text=True)
        print("out", x)
        print("err", x, file=sys.stderr)
        if x == 0:
            exec(code, {"os": os, "sys": sys, "io": io})
        return *seen, shell.stdout

    results = remote_parallel_map(call, range(3), max_parallelism=1)
    assert len({pid for pid, *_ in results}) == 1, "one child ran all three, so that a change could have stayed"
    assert [rest for _, *rest in results] == [[str(tmp_path), "original", "original\n"]] * 3
    captured = capfd.readouterr()
    assert captured.out == "out 0\nout 1\nout 2\n"
    assert captured.err == "err 0\nerr 1\nerr 2\n"


def test_every_job_gets_fresh_children():
    def call(x: int) -> tuple[int, bool, bool, list[str], str]:
        import builtins
        import colorsys
        import json
        import os
        import sys
        import time

        seen = hasattr(builtins, "left"), hasattr(json, "left"), list(sys.path), os.environ.get("LEFT", "")
        builtins.left = json.left = colorsys.left = True  # pyright: ignore
        sys.path.append("/left")
        os.environ["LEFT"] = "left"
        time.sleep(0.05)
        return os.getpid(), *seen

    pids: set[int] = set()
    for _ in range(3):
        results = remote_parallel_map(call, range(2), max_parallelism=2)
        first = {pid: rest for pid, *rest in reversed(results)}  # of each child, its first call
        for left_builtin, left_module, path, left in first.values():
            assert (left_builtin, left_module, path[: len(sys.path)], left) == (False, False, sys.path, "")
            assert "/left" not in path
        assert not pids & first.keys()
        pids |= first.keys()


def test_children_of_a_job_that_ended_are_gone():
    def call(x: int) -> int:
        import os

        return os.getpid()

    pids = set(remote_parallel_map(call, range(10)))
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), 5, "the end of the children")


def test_jobs_leave_no_descriptors_behind():
    def descriptors() -> dict[str, int]:
        processes = cluster_processes(os.environ)
        found = {}
        for process in processes:
            with contextlib.suppress(psutil.Error):  # a child of the last job ends just now
                found[process_kind(process)] = process.num_fds()
        return {kind: count for kind, count in found.items() if kind not in ("child", "gone")}

    def nested(x: int) -> list[int]:
        from burla import remote_parallel_map

        print(x)
        return remote_parallel_map(abs, [-x])

    def jobs(count: int) -> None:
        for _ in range(count):
            assert remote_parallel_map(nested, [1, 2]) == [[1], [2]]

    jobs(3)
    before = descriptors()
    jobs(12)
    wait_until(lambda: all(count <= before[kind] + 4 for kind, count in descriptors().items()), 10, f"again {before}")


def test_stdin_of_calls_is_at_its_end():
    def call(x: int) -> tuple[str, bytes]:
        import os
        import sys

        return sys.stdin.read(), os.read(0, 10)

    assert remote_parallel_map(call, [0]) == [("", b"")]


@pytest.mark.local
def test_calls_have_no_terminal_and_none_of_the_nodes_descriptors():
    """A call can reach its own pipes, shared memory and log, but no connection of node or head, and no keys."""

    def call(x: int) -> tuple[int, list[str]]:
        import os
        from pathlib import Path

        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                pass  # the descriptor of the listing itself
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[4]), links

    ((terminal, links),) = remote_parallel_map(call, [0])
    assert terminal == 0
    node = {process_kind(process): process for process in cluster_processes(os.environ)}["node"]
    sockets = {f"socket:[{inode}]" for inode in _inodes_of_tcp(node.pid)}
    assert sockets and not sockets & set(links)
    assert not any("keys" in link for link in links)


def _inodes_of_tcp(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return {line.split()[9] for line in lines}
