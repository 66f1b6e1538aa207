"""The life of the local cluster: how it starts, who finds it, what ends it, and what it does after a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import burla
from burla import ClusterStartFailed, UnsafeFiles, remote_parallel_map
from burla.clusters import local
from tests.conftest import Home, Ledger, Scripts, cluster_processes, end_cluster, process_kind, wait_until

PACKAGE = Path(burla.__file__).parent
ZYGOTE = "import os; from burla import remote_parallel_map; print(*remote_parallel_map(lambda x: os.getppid(), [0]))"


def kinds(environ: dict[str, str] | os._Environ[str] = os.environ) -> list[str]:
    return sorted(process_kind(process) for process in cluster_processes(environ))


def test_first_calls_of_several_processes_at_once_start_one_cluster(own_home: Home, scripts: Scripts):
    """Found by later processes too. `ready.json` says where a cluster was that is long gone."""
    where = local.folder()
    where.mkdir(mode=0o700, parents=True)
    stale = {"address": "tls://127.0.0.1:1", "source": "old", "pid": 1, "cpus": 1, "idle_after_s": 1}
    (where / "ready.json").write_text(json.dumps(stale))
    started = [scripts.start(ZYGOTE, name=f"{number}.py") for number in range(4)]
    outs = [script.communicate(timeout=60) for script in started]
    assert {err for _, err in outs} == {""}
    (zygote,) = {int(out) for out, _ in outs}
    assert own_home.processes()["zygote"].pid == zygote
    wait_until(lambda: kinds() == ["child", "child", "head", "node", "supervisor", "zygote"], what="one cluster")
    assert int(scripts.run(ZYGOTE).stdout) == zygote


def test_a_broken_ready_file_and_a_log_of_many_days_do_not_matter(own_home: Home):
    where = local.folder()
    where.mkdir(mode=0o700, parents=True)
    (where / "ready.json").write_text("{")
    (where / "log.txt").write_bytes(b"x" * 6_000_000)
    assert remote_parallel_map(abs, [-1]) == [1]
    assert (where / "log.txt").stat().st_size < 1_000_000
    assert remote_parallel_map(abs, [-2]) == [2]


def test_the_cluster_holds_nothing_of_its_caller_and_is_private(own_home: Home, tmp_path: Path):
    """Neither terminal, descriptors, session nor output; its files are the user's alone, whatever the umask."""
    held = tmp_path / "held.txt"
    read_end, write_end = os.pipe()
    ours, theirs = os.openpty()
    program = (
        "import fcntl, os, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.umask(0)\n"
        "print('sid', os.getsid(0), flush=True)\n"
        f"file = open({str(held)!r}, 'w'); os.set_inheritable(file.fileno(), True); {ZYGOTE}"
    )
    with open(tmp_path / "out.txt", "w+") as out:
        caller = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=theirs,
            stdout=out,
            stderr=theirs,
            pass_fds=(write_end,),
            start_new_session=True,
        )
        terminal = os.ttyname(theirs)
        os.close(theirs)
        os.close(write_end)
        assert caller.wait(60) == 0
        assert (tmp_path / "out.txt").read_text().startswith(f"sid {caller.pid}\n")
    assert os.read(read_end, 1) == b"", "the cluster has no copy of the other end"
    os.close(read_end)
    os.close(ours)

    wait_until(lambda: len(kinds()) == 6, what="an idle cluster")
    for process in cluster_processes(os.environ):
        kind = process_kind(process)
        links = {fd: os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
        assert not {str(held), str(tmp_path / "out.txt"), terminal} & set(links.values()), (kind, links)
        assert links["0"] == "/dev/null", kind
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert fields[4] == "0", f"{kind} has a terminal"
        assert os.getsid(process.pid) != caller.pid, kind
        assert process.cwd() != os.getcwd(), kind
    keys = list(own_home.path.glob("clusters/*/keys"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (*keys, keys[0].parent)] == [0o700] * 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys[0].iterdir()} == {0o600}


def test_all_state_is_under_burla_home(own_home: Home, tmp_path: Path, scripts: Scripts):
    elsewhere = [tmp_path / name for name in ("home", "tmp", "cwd")]
    for folder in elsewhere:
        folder.mkdir()
    environ = own_home.environ | {"HOME": str(elsewhere[0]), "TMPDIR": str(elsewhere[1])}
    environ |= {"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "", "PYTHONDONTWRITEBYTECODE": "1"}
    big = "remote_parallel_map(lambda x: x, [bytes(3_000_000)] * 4)"  # beyond what travels in one message
    done = scripts.run(f"{ZYGOTE}\nprint(len({big}))", env=environ, cwd=elsewhere[2])
    assert done.stdout.endswith("\n4\n") and done.stderr == ""
    assert [list(folder.iterdir()) for folder in elsewhere] == [[], [], []]
    assert [path.name for path in own_home.path.iterdir()] == ["clusters"]


def test_without_burla_home_state_is_in_the_home_folder_and_idle_0_ends_with_the_last_client(
    tmp_path: Path, scripts: Scripts
):
    environ = {name: value for name, value in os.environ.items() if name != "BURLA_HOME"}
    environ |= {"HOME": str(tmp_path), "BURLA_LOCAL_IDLE_S": "0"}

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue  # it ended meanwhile
        return found

    script = scripts.start(
        f"{ZYGOTE}\nimport sys\nsys.stdout.flush()\nsys.stdin.read()\n{ZYGOTE}", env=environ, stdin=-1
    )
    zygote = script.stdout.readline()
    assert [path.name[:6] for path in (tmp_path / ".burla" / "clusters").iterdir()] == ["local-"]
    time.sleep(1.5)  # long enough for a cluster that does not see its client to end
    assert script.communicate("", timeout=30)[0] == zygote, "the same cluster: its client was there all the time"
    wait_until(lambda: not alive(), 10, "the end of the cluster")


def test_an_idle_cluster_ends_by_itself_and_the_next_call_starts_another(
    own_home: Home, monkeypatch: pytest.MonkeyPatch
):
    def zygote(seconds: float) -> int:
        import os
        import time

        time.sleep(seconds)
        return os.getppid()

    monkeypatch.setenv("BURLA_LOCAL_IDLE_S", "1")
    (first,) = remote_parallel_map(zygote, [2.5])  # a busy cluster does not end
    assert own_home.processes()["zygote"].pid == first
    wait_until(lambda: not cluster_processes(os.environ), 10, "the end of the idle cluster")
    (second,) = remote_parallel_map(zygote, [0])
    assert second != first


@pytest.mark.parametrize("name", ["BURLA_LOCAL_IDLE_S", "BURLA_LOCAL_CPUS"])
def test_a_setting_that_is_not_a_number_is_named(own_home: Home, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "x")
    with pytest.raises((burla.InvalidValue, ClusterStartFailed), match=f"{name}='x'"):
        remote_parallel_map(abs, [-1])
    assert not cluster_processes(os.environ)


# crashes --------------------------------------------------------------------------------------------------------------


def test_the_call_after_a_crash_of_any_process_works(own_home: Home):
    """Made by a process that was connected before, at once and once more."""

    def zygote(x: int) -> tuple[int, int]:
        import os

        return x, os.getppid()

    remote_parallel_map(zygote, range(4))
    for _ in range(2):
        for kind in ("head", "node", "zygote", "supervisor"):
            victim = own_home.processes()[kind]
            victim.kill()
            victim.wait(10)
            for _ in range(2):
                assert [x for x, _ in remote_parallel_map(zygote, range(4))] == [0, 1, 2, 3], kind
    wait_until(lambda: kinds() == ["child", "child", "head", "node", "supervisor", "zygote"], what="one cluster")


def test_a_child_that_is_killed_while_idle_is_replaced(own_home: Home):
    def pid(x: int) -> int:
        import os

        return os.getpid()

    remote_parallel_map(pid, [0])

    def idle() -> list[psutil.Process]:
        return [process for process in cluster_processes(os.environ) if process_kind(process) == "child"]

    wait_until(lambda: len(idle()) == 2, what="two children that wait")
    victims = idle()
    for victim in victims:
        victim.kill()
    assert len(remote_parallel_map(pid, range(4))) == 4
    wait_until(lambda: len(idle()) == 2 and not set(idle()) & set(victims), what="two other children")


# another version ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """The environment in which a copy of the package with one other comment is imported."""
    shutil.copytree(PACKAGE, tmp_path / "other" / "burla", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "other" / "burla" / "cli.py", "a") as file:
        file.write("# changed\n")
    return dict(os.environ) | {"PYTHONPATH": str(tmp_path / "other")}


def command(name: str, environ: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `burla cluster …` with the package that the environment names."""
    arguments = [sys.executable, "-m", "burla.cli", "cluster", name]
    return subprocess.run(arguments, env=environ, cwd=folder, capture_output=True, text=True, check=False)


def test_a_cluster_of_another_version_is_replaced_when_idle_and_refused_when_busy(
    own_home: Home, scripts: Scripts, ledger: Ledger, other_version: dict[str, str], tmp_path: Path
):
    environ = own_home.environ | other_version
    busy = scripts.start(
        """
        import os, sys, time
        from burla import remote_parallel_map
        def long_call(x, ledger=sys.argv[1], go=sys.argv[2]):
            open(ledger, "a").write("running\\n")
            while not os.path.exists(go):
                time.sleep(0.02)
            return x
        print(remote_parallel_map(long_call, [1]))
        """,
        str(ledger.path),
        str(tmp_path / "go"),
        name="busy.py",
    )
    wait_until(ledger.entries, 30, "the call")
    supervisor = own_home.processes()["supervisor"].pid
    report = """
        import burla
        from burla import ClusterBusy, remote_parallel_map
        try:
            print(remote_parallel_map(abs, [-1]))
        except ClusterBusy as error:
            print(error)
        """
    refused = scripts.run(report, env=environ)
    assert f"pid {supervisor}" in refused.stdout and "long_call" in refused.stdout
    assert "burla cluster stop" in refused.stdout and refused.stderr == ""
    status = command("status", environ, tmp_path)
    assert "another version" in status.stdout and status.returncode == 0

    (tmp_path / "go").touch()
    out, err = busy.communicate(timeout=30)
    assert (out, err) == ("[1]\n", ""), "the busy job was not disturbed"

    assert scripts.run(report, env=environ).stdout == "[1]\n"
    assert own_home.processes()["supervisor"].pid != supervisor
    wait_until(lambda: len(kinds()) == 6, what="one cluster")
    assert command("stop", environ, tmp_path).returncode == 0
    wait_until(lambda: not cluster_processes(os.environ), 10, "the end of the other cluster")


# keys -----------------------------------------------------------------------------------------------------------------


@contextmanager
def mode(path: Path, number: int) -> Iterator[None]:
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(number)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize(("name", "number"), [(".", 0o755), ("keys", 0o750), ("keys/key.pem", 0o640)])
def test_files_that_others_can_read_are_refused_by_the_call(scripts: Scripts, name: str, number: int):
    assert remote_parallel_map(abs, [-1]) == [1]
    path = local.folder() / name
    with mode(path, number):
        done = scripts.run(
            """
            from burla import UnsafeFiles, remote_parallel_map
            try:
                print(remote_parallel_map(abs, [-1]))
            except UnsafeFiles as error:
                print(error.path, error, sep="\\n")
            """
        )
        where, message = done.stdout.splitlines()
        assert Path(where) == path.resolve() and f"{number:04o}" in message
        assert f"chmod {'600' if path.is_file() else '700'} {where}" in message, "how to mend it"
    assert remote_parallel_map(abs, [-1]) == [1]


def test_a_folder_that_others_can_write_to_is_refused_before_anything_starts(own_home: Home):
    where = local.folder()
    where.mkdir(parents=True)
    where.chmod(0o777)
    with pytest.raises(UnsafeFiles, match="0777"):
        remote_parallel_map(abs, [-1])
    assert list(where.iterdir()) == [] and not cluster_processes(os.environ)


def test_the_cluster_ends_by_its_supervisors_signal_with_all_its_processes(own_home: Home):
    remote_parallel_map(abs, [-1])
    own_home.processes()["supervisor"].send_signal(signal.SIGTERM)
    wait_until(lambda: not cluster_processes(os.environ), 10, "the end of all processes")
    assert not (local.folder() / "ready.json").exists()
    end_cluster(os.environ)
