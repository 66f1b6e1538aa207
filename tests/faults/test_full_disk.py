"""A full disk beyond a pause: jobs are refused by name, a cluster that died on it starts there, and goes on."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import burla
from burla.client import current
from tests.conftest import Home, Ledger, Scripts, wait_until
from tests.faults.test_detached import kill_everything
from tests.faults.test_detached import small_disk as small_disk  # a fixture


def fill(folder: Path) -> Path:
    """Take all the room there is, and return what takes it."""
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1_000_000, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return ballast


def delete(job_id: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "burla.cli", "job", "delete", job_id],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_cluster_that_is_killed_on_a_full_disk_goes_on_there_when_an_old_job_is_deleted(
    small_disk: Path, ledger: Ledger, tmp_path: Path
):
    """Nothing that was acknowledged runs again; deleting is done by a process that knows of nothing."""
    home = Home(small_disk, {"BURLA_HOME": str(small_disk)})
    write, gate = ledger.writer(), str(tmp_path / "gate")
    old = burla.submit(lambda x: bytes([x]) * 300_000, range(40))
    old.wait(60)

    def call(x: int) -> bytes:
        import os
        import time

        write(x)
        print("call", x)
        while x >= 4 and not os.path.exists(gate):
            time.sleep(0.02)
        return bytes([x]) * 300_000

    job = burla.submit(call, range(40))
    wait_until(lambda: job.progress.done == 4 and len(ledger.entries()) == 6, 30, "the first results")
    ballast = fill(small_disk)
    Path(gate).touch()
    wait_until(lambda: job._reader.look().remark is not None, 30, "a full disk")
    acknowledged = {index for index, _ in itertools.islice(job.iter_results(), 4)}
    current.forget()
    kill_everything(home)
    begun = Counter(ledger.entries())
    assert len(begun) < 40
    delete(old.id)
    assert job.results(timeout_s=60) == [bytes([x]) * 300_000 for x in range(40)]
    assert ballast.exists(), "the job that was deleted has made the room"
    again = Counter(ledger.entries()) - begun
    twice = Counter(map(str, job.logs())) - Counter(f"call {x}" for x in range(40))
    assert set(map(str, job.logs())) == {f"call {x}" for x in range(40)}
    assert set(twice) <= {f"call {x}" for x in begun & again}, "a line came twice only of a call that ran twice"
    assert not acknowledged & set(map(int, again)), "what was acknowledged ran again"


def test_a_new_job_is_refused_on_a_full_disk_by_name_and_taken_when_there_is_room(small_disk: Path):
    job = burla.submit(lambda x: x, range(3))
    assert job.results(timeout_s=30) == [0, 1, 2]
    ballast = fill(small_disk)
    with pytest.raises(burla.StoreFull, match="burla job delete") as caught:
        burla.submit(len, [bytes(2_000_000)] * 4)
    assert str(small_disk) in str(caught.value)
    assert job.results(timeout_s=30) == [0, 1, 2], "what is there can be read"
    ballast.unlink()
    wait_until(lambda: burla.jobs()[0]._reader.look().remark is None, 10, "room")
    assert burla.submit(len, [bytes(2_000_000)] * 4).results(timeout_s=60) == [2_000_000] * 4
    assert len([one for one in burla.jobs() if one.status not in ("done", "cancelled")]) == 0


def test_a_cluster_cannot_start_on_a_full_disk_without_saying_so(small_disk: Path, scripts: Scripts):
    """There is not even room for its keys, or for its database."""
    ballast = fill(small_disk)
    program = "import burla; print(burla.remote_parallel_map(abs, [-1]))"
    failed = scripts.run(program, timeout_s=90)
    assert failed.returncode == 1 and ("full" in failed.stderr or "No space left" in failed.stderr), failed.stderr
    ballast.unlink()
    assert scripts.run(program, timeout_s=90).stdout == "[1]\n"
