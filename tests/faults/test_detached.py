"""Detached jobs outlive every process, a wrong clock, a damaged store and a full disk."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import burla
from burla.client import current
from burla.clusters import local
from tests.conftest import Home, Ledger, Scripts, cluster_processes, end_cluster, process_kind, wait_until

POINTS = """
    import os, sys, time
    import burla

    class Point:
        def __init__(self, x):
            self.x = x

    def call(x):
        fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"begin {x}\\n".encode())
        time.sleep(0.01)
        os.write(fd, f"end {x}\\n".encode())
        os.close(fd)
        return Point(x)

    LEDGER = sys.argv[1]
    job = burla.submit(call, range(1000))
    print(job.id, flush=True)
    job.wait()
"""

READER = """
    import sys, burla
    (job,) = burla.jobs()
    print(job.id, job.function_name)
    print([point.x for point in job.results(timeout_s=60)] == list(range(1000)))
"""


KILLED_IN_ORDER = ("supervisor", "head", "node", "zygote", "child", "gone")


def store_folder(home: Home) -> Path:
    (folder,) = home.path.glob("clusters/local-*/store")
    return folder


def kill_everything(home: Home) -> None:
    """Kill all processes of a cluster; what starts others first."""
    while processes := cluster_processes(home.environ):
        for process in sorted(processes, key=lambda process: KILLED_IN_ORDER.index(process_kind(process))):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass  # it went with another


def test_a_job_goes_on_after_every_process_was_killed(own_home: Home, scripts: Scripts, ledger: Ledger):
    """What had a result does not run again; the process that goes on with it does not know the result's class."""
    script = scripts.start(POINTS, str(ledger.path))
    assert script.stdout is not None
    job_id = script.stdout.readline().strip()
    wait_until(lambda: burla.attach(job_id).progress.done > 300, 60, "some results")
    done = finished(job_id)
    current.forget()
    script.kill()
    kill_everything(own_home)
    begun = Counter(ledger.entries())
    assert 300 < len(done) < 1000
    reader = scripts.run(READER, name="reader.py")
    assert reader.stdout.splitlines() == [f"{job_id} call", "True"], reader.stderr
    again = [int(entry.split()[1]) for entry, count in (Counter(ledger.entries()) - begun).items() if "begin" in entry]
    assert not done & set(again), "what was finished ran again"
    assert max(again) == 999


def finished(job_id: str) -> set[int]:
    """Return the inputs that have a result now, as the head says."""
    job = burla.attach(job_id)
    pairs = itertools.islice(job.iter_results(), job.progress.done)
    return {index for index, _ in pairs}


def test_a_call_within_a_call_notices_nothing_when_the_head_is_killed(own_home: Home, ledger: Ledger):
    write = ledger.writer()

    def outer(x: int) -> int:
        import time

        from burla import remote_parallel_map

        def inner(y: int) -> int:
            write((x, y))
            time.sleep(0.05)
            return y * y

        return sum(remote_parallel_map(inner, range(40)))

    job = burla.submit(outer, range(2))
    wait_until(lambda: len(ledger.entries()) > 20, 30, "some inner calls")
    own_home.processes()["head"].kill()
    assert job.results(timeout_s=60) == [sum(y * y for y in range(40))] * 2
    assert Counter(ledger.entries()) == Counter(str((x, y)) for x in range(2) for y in range(40)), "each ran once"


CLOCK = """
import datetime, os, time as _time
_file, _time_time, _time_ns = os.environ.get("SHIFTED_CLOCK"), _time.time, _time.time_ns
def _shift():
    try:
        with open(_file) as file:
            return float(file.read() or 0)
    except (OSError, TypeError):
        return 0.0
_time.time = lambda: _time_time() + _shift()
_time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
"""


def test_jumps_of_the_wall_clock_change_nothing(
    own_home: Home, scripts: Scripts, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """An hour forward, two back, one forward, in all processes, while calls run: none runs again, nothing times out."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    shift = tmp_path / "shift"
    monkeypatch.setenv("SHIFTED_CLOCK", str(shift))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "clock"), os.environ.get("PYTHONPATH", "")]))
    script = scripts.start(
        """
        import os, sys, time, burla

        def call(x):
            fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{x} {time.time()}\\n".encode())
            os.close(fd)
            time.sleep(0.25)
            return x

        LEDGER = sys.argv[1]
        print(burla.remote_parallel_map(call, range(200), detach=True) == list(range(200)), flush=True)
        """,
        str(ledger.path),
    )
    wait_until(lambda: len(ledger.entries()) >= 10, 30, "some calls")
    for number, jump_s in enumerate((3600, -3600, 0)):
        shift.write_text(str(jump_s))
        wait_until(lambda count=20 + 50 * number: len(ledger.entries()) >= count + 20, 30, "more calls")
    out, err = script.communicate(timeout=60)
    assert out == "True\n", err
    assert "silent" not in err
    entries = [line.split() for line in ledger.entries()]
    assert Counter(int(index) for index, _ in entries) == Counter(range(200))
    times = [float(at) for _, at in entries]
    assert max(times) - min(times) > 7000, "the calls saw the clock jump"


def test_a_cluster_stays_for_a_detached_job_that_nobody_watches_and_then_ends(
    own_home: Home, scripts: Scripts, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BURLA_LOCAL_IDLE_S", "1")
    script = scripts.run(
        """
        import burla, time
        print(burla.submit(lambda x: time.sleep(3) or x, range(4)).id)
        """
    )
    began = time.monotonic()
    wait_until(lambda: not cluster_processes(own_home.environ), 30, "the end of the cluster")
    assert time.monotonic() - began > 5, "two calls after two, 3 s each"
    job = burla.attach(script.stdout.strip())
    assert job.status == "done" and job.results() == [0, 1, 2, 3]


def test_a_damaged_database_is_set_aside_and_jobs_that_are_whole_go_on(own_home: Home):
    jobs = [burla.submit(lambda x: bytes(1000) + bytes([x]), range(100)) for _ in range(10)]
    expected = [job.results(timeout_s=60) for job in jobs]
    end_cluster(own_home.environ)
    path = store_folder(own_home) / "store.db"
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'crashes'").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with open(path, "r+b") as file:
        file.seek((root - 1) * page_bytes)
        file.write(b"\xff" * 100)
    listed = burla.jobs()
    assert "the store was damaged" in listed.remarks[0] and "damaged" in repr(listed)
    assert {job.id for job in listed} <= {job.id for job in jobs}
    for job, results in zip(jobs, expected, strict=True):
        if job.id in {one.id for one in listed}:
            assert job.results() == results
    (aside,) = store_folder(own_home).parent.glob("store.damaged-*")
    assert aside.stat().st_mode & 0o777 == 0o500 and str(aside) in listed.remarks[0]
    assert burla.remote_parallel_map(abs, [-1]) == [1]
    end_cluster(own_home.environ)
    assert burla.jobs().remarks == listed.remarks, "said again after a restart"


def test_results_that_vanished_from_the_store_are_missed_and_computed_again(own_home: Home, ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import time

        write(x)
        time.sleep(0.06)  # longer than a time box: a row for each
        return x * x

    job = burla.submit(call, range(6))
    assert job.results(timeout_s=30) == [x * x for x in range(6)]
    end_cluster(own_home.environ)
    connection = sqlite3.connect(store_folder(own_home) / "store.db")
    connection.execute("DELETE FROM events WHERE kind = 1 AND start = 3")
    connection.commit()
    connection.close()
    with pytest.raises(burla.StoreDamaged, match="1 of its 6 results are missing") as caught:
        burla.attach(job.id).results()
    assert caught.value.burla_results == {x: x * x for x in range(6) if x != 3}
    assert caught.value.burla_job.retry_failed().results(timeout_s=30) == [x * x for x in range(6)]
    assert Counter(ledger.entries()) == Counter({str(x): 1 + (x == 3) for x in range(6)})


def test_a_store_of_another_version_is_named_and_left_alone(own_home: Home):
    assert burla.submit(abs, [-1]).results(timeout_s=30) == [1]
    end_cluster(own_home.environ)
    path = store_folder(own_home) / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(burla.ClusterStartFailed, match=r"another version of burla \(schema 99; .*mv .*store"):
        burla.jobs()
    assert path.read_bytes() == before


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A BURLA_HOME on a disk of 60 MB of its own."""
    folder = Path(tempfile.mkdtemp(prefix="burla-test-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    current.forget()
    monkeypatch.setenv("BURLA_HOME", str(folder))
    try:
        yield folder
        end_cluster(os.environ)
    finally:
        current.forget()
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@pytest.mark.parametrize("detach", [True, False])
def test_a_full_disk_pauses_a_job_and_loses_nothing(small_disk: Path, scripts: Scripts, ledger: Ledger, detach: bool):
    """Somebody else's file fills it; the client is told, and all goes on when that is deleted."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(30_000_000))
    script = scripts.start(
        """
        import os, sys, time, burla

        def call(x):
            fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{x}\\n".encode())
            os.close(fd)
            print("call", x)
            time.sleep(0.01)
            return bytes([x]) * 300_000

        LEDGER = sys.argv[1]
        results = burla.remote_parallel_map(call, range(120), detach=sys.argv[2] == "True", spinner=False)
        print([(len(result), result[0]) for result in results] == [(300_000, x) for x in range(120)], flush=True)
        """,
        str(ledger.path),
        str(detach),
    )
    said = ""
    assert script.stderr is not None
    while "disk" not in said:
        said = script.stderr.readline()
        assert said, "it was told of the full disk"
    assert "is full" in said and "nothing is lost" in said
    begun = len(ledger.entries())
    assert begun < 120 and script.poll() is None
    ballast.unlink()
    out, err = script.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[-1] == "True", err
    assert Counter(lines[:-1]) == Counter(f"call {x}" for x in range(120))
    assert Counter(ledger.entries()) == Counter(map(str, range(120)))


def test_deleting_a_job_makes_room_on_a_full_disk(small_disk: Path, scripts: Scripts):
    old = burla.submit(lambda x: bytes(300_000), range(100))
    old.wait(60)
    new = burla.submit(lambda x: bytes([x]) * 300_000, range(100))
    wait_until(lambda: new._reader.look().remark is not None, 30, "a full disk")
    done = subprocess.run(
        [sys.executable, "-m", "burla.cli", "job", "delete", old.id], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert new.results(timeout_s=60) == [bytes([x]) * 300_000 for x in range(100)]


def test_two_heads_do_not_share_a_store(own_home: Home):
    """The second head is started as the supervisor does it, at the same folder."""
    assert burla.remote_parallel_map(abs, [-1]) == [1]
    code = f"""
import asyncio
from pathlib import Path
from burla.clusters.security import load_security
from burla.head.main import run_head
folder = Path({str(local.folder())!r})
asyncio.run(run_head("127.0.0.1", 0, load_security(folder), folder, None, print, True))
"""
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0 and "StoreBusy" in second.stderr and "another head uses the store" in second.stderr
    assert burla.remote_parallel_map(abs, [-2]) == [2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["head", "node"])
def test_a_process_that_stands_still_for_25_seconds_costs_nothing(own_home: Home, ledger: Ledger, kind: str):
    write = ledger.writer()

    def call(x: int) -> int:
        import time

        write(x)
        time.sleep(0.5)
        return x

    job = burla.submit(call, range(100))
    wait_until(lambda: len(ledger.entries()) > 5, 30, "some calls")
    process = own_home.processes()[kind]
    process.send_signal(signal.SIGSTOP)
    time.sleep(25)
    process.send_signal(signal.SIGCONT)
    assert job.results(timeout_s=90) == list(range(100))
    assert Counter(ledger.entries()) == Counter(map(str, range(100))), "each ran once"
