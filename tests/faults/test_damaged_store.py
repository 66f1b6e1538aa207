"""Values of jobs that were changed, cut off or deleted in the store of a cluster that was down: found, named, alone."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

import burla
from burla import Job, StoreDamaged, UnknownJob
from burla.client import current
from tests.conftest import Home, Ledger, end_cluster, wait_until
from tests.faults.test_detached import kill_everything, store_folder

IN_FILE, AS_BLOB = 100_000, 1_500_000
VICTIMS = ("function", "input", "result")
COUNT = 4  # calls of a job; of an unfinished one the first two have ended


@dataclass
class Stored:
    """A job before its cluster went down: what is going to be damaged of it, and how large that is."""

    job: Job
    name: str
    victim: str
    size: int
    ended: bool
    gone: range = range(0)  # inputs whose results are in the file that is damaged: calls may have ended together

    @property
    def index(self) -> int:
        """The input that is concerned: of an unfinished job, an input that has not run, or a result that is there."""
        return 3 if self.victim == "input" else 1


def submit(ledger: Ledger, name: str, victim: str, size: int, gate: Path | None) -> Job:
    """A job of `COUNT` inputs with a large function, large inputs or large results; with a gate, two calls wait."""
    write = ledger.writer()
    ballast = random.Random(name).randbytes(size if victim == "function" else 0)
    input_bytes, result_bytes = (size if victim == one else 0 for one in ("input", "result"))
    waits_at = str(gate)

    def call(x: int, value: bytes) -> tuple[int, int, int, bytes]:
        import os
        import time

        write(f"{name} {x}")
        while waits_at != "None" and x >= 2 and not os.path.exists(waits_at):
            time.sleep(0.02)
        return x, len(ballast), len(value), bytes([x]) * result_bytes

    return burla.submit(call, [(x, bytes([x]) * input_bytes) for x in range(COUNT)])


def expected(one: Stored, index: int) -> tuple[int, int, int, bytes]:
    sizes = {victim: one.size if one.victim == victim else 0 for victim in VICTIMS}
    return index, sizes["function"], sizes["input"], bytes([index]) * sizes["result"]


def file_of(folder: Path, one: Stored) -> Path:
    """The file with the victim; note which results go with it."""
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        (number,) = connection.execute("SELECT number FROM jobs WHERE id = ?", (one.job.id,)).fetchone()
        query = {
            "function": "SELECT file, 0, 0 FROM jobs WHERE number = :number",
            "input": "SELECT file, 0, 0 FROM blocks WHERE key = (:number << 32) + :index",
            "result": "SELECT file, start, stop FROM events "
            "WHERE key >> 32 = :number AND kind = 1 AND start <= :index AND stop > :index",
        }[one.victim]
        name, start, stop = connection.execute(query, {"number": number, "index": one.index}).fetchone()
    one.gone = range(start, stop)
    return folder / "files" / str(number) / name


def flip(path: Path) -> None:
    at = path.stat().st_size // 2
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "killed"),
    [(flip, True), (cut_off, False), (Path.unlink, True), (flip, False)],
    ids=["flipped, killed", "cut off, stopped", "deleted, killed", "flipped, stopped"],
)
def test_damaged_values_are_named_and_concern_no_other_job(
    own_home: Home,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    killed: bool,
):
    """Function, an input or a result of ended and of unfinished jobs, in files and as blobs."""
    monkeypatch.setenv("BURLA_LOCAL_CPUS", "14")  # all that wait do so at once
    gate = tmp_path / "gate"
    jobs = [
        Stored(submit(ledger, name, victim, size, None if ended else gate), name, victim, size, ended)
        for victim in (*VICTIMS, "nothing")
        for size in (IN_FILE, AS_BLOB)
        for ended in (True, False)
        for name in [f"{victim}-{size}-{ended}"]
        if (victim, size) != ("nothing", AS_BLOB)
    ]
    for one in jobs:
        wait_until(lambda one=one: one.job.progress.done == (COUNT if one.ended else 2), 30, one.name)
    wait_until(lambda: len(ledger.entries()) == COUNT * len(jobs), 30, "all calls that wait")
    if killed:
        current.forget()
        kill_everything(own_home)
    else:
        end_cluster(own_home.environ)
    for one in jobs:
        if one.victim != "nothing":
            damage(file_of(store_folder(own_home), one))
    gate.touch()
    assert [job.id for job in burla.jobs()] == [one.job.id for one in reversed(jobs)]
    before = Counter(ledger.entries())
    for one in jobs:
        check(one)
    again = Counter(ledger.entries()) - before
    for one in jobs:
        ran = {int(entry.split()[1]) for entry in again.elements() if entry.split()[0] == one.name}
        assert ran <= may_run(one), f"{one.name}: {ran} ran again"


def may_run(one: Stored) -> set[int]:
    unfinished = set() if one.ended else {2, 3}
    return unfinished | set(one.gone)


def check(one: Stored) -> None:
    job = one.job
    everything = {index: expected(one, index) for index in range(COUNT)}
    if one.victim == "nothing" or (one.ended and one.victim != "result"):
        assert job.results(timeout_s=30) == list(everything.values()), one.name
    else:
        with pytest.raises(StoreDamaged, match=job.id) as caught:
            job.results(timeout_s=30)
        found = caught.value.burla_results
        assert found == {index: everything[index] for index in found}
        if one.victim == "function":
            assert found.keys() == {0, 1}
        elif one.victim == "input":
            assert {0, 1} <= found.keys() <= {0, 1, 2}
        else:
            assert found.keys() == everything.keys() - set(one.gone)
            assert caught.value.lost == ((one.gone.start, one.gone.stop),)
    if one.victim in ("function", "input"):
        with pytest.raises(StoreDamaged, match=job.id):
            job.retry_failed()
    else:
        assert job.retry_failed().results(timeout_s=30) == list(everything.values()), one.name
    if one.victim == "function":

        def again(x: int, value: bytes) -> int:
            return -x

        results = job.retry_failed(again).results(timeout_s=30)
        done = everything if one.ended else {index: everything[index] for index in (0, 1)}
        assert results == [done.get(index, -index) for index in range(COUNT)], "with a function given anew"


@pytest.mark.parametrize("table", ["blocks", "events"])
def test_an_unfinished_job_whose_rows_are_lost_stops_and_is_never_done_with_less(
    own_home: Home, ledger: Ledger, tmp_path: Path, table: str
):
    """Rows of inputs that have not run, or of results that were there; a job beside it goes on."""
    gate = tmp_path / "gate"
    write, waits_at = ledger.writer(), str(gate)

    def call(x: int) -> int:
        import os
        import time

        write(x)
        while x >= 2 and not os.path.exists(waits_at):
            time.sleep(0.02)
        return x * x

    job = burla.submit(call, range(6000))  # two blocks of inputs
    other = burla.submit(call, range(2, 5))
    wait_until(lambda: job.progress.done == 2, 30, "two results")
    end_cluster(own_home.environ)
    with closing(sqlite3.connect(store_folder(own_home) / "store.db")) as connection:
        deleted = {
            "blocks": "DELETE FROM blocks WHERE key >> 32 = 1 AND count < 4096",
            "events": "DELETE FROM events WHERE key = 1 << 32",
        }[table]
        assert connection.execute(deleted).rowcount == 1
        connection.commit()
    gate.touch()
    assert other.results(timeout_s=30) == [4, 9, 16]
    if table == "blocks":  # found when the store is opened: the job is in what is set aside, which is said
        (remark,) = burla.jobs().remarks
        assert job.id in remark and other.id not in remark
        with pytest.raises(UnknownJob):
            job.results(timeout_s=30)
        return
    with pytest.raises(StoreDamaged, match=f"{job.id}.*missing") as caught:
        job.results(timeout_s=30)
    found = caught.value.burla_results
    assert found == {x: x * x for x in found} and found.keys() <= {0, 1}
    assert (job.status, job.progress.total) == ("cancelled", 6000)
    assert job.retry_failed().results(timeout_s=30) == [x * x for x in range(6000)]


def test_what_a_cut_log_has_lost_is_said_and_runs_again(own_home: Home, ledger: Ledger, tmp_path: Path):
    """The newest commits of a cluster that was killed are gone: their calls, and no others, run again."""
    write, gates = ledger.writer(), str(tmp_path)

    def call(x: int) -> int:
        import os
        import time

        write(x)
        while not os.path.exists(f"{gates}/{x // 4}"):
            time.sleep(0.02)
        return x * x

    job = burla.submit(call, range(10))
    (tmp_path / "0").touch()
    wait_until(lambda: len(ledger.entries()) == 6, 30, "the first calls")
    assert len(list(itertools.islice(job.iter_results(), 4))) == 4, "what is shown is in the store"
    log = store_folder(own_home) / "store.db-wal"
    kept_bytes = log.stat().st_size
    (tmp_path / "1").touch()
    wait_until(lambda: len(ledger.entries()) == 10, 30, "more calls")
    assert len(list(itertools.islice(job.iter_results(), 8))) == 8
    current.forget()
    kill_everything(own_home)
    assert log.stat().st_size > kept_bytes
    os.truncate(log, kept_bytes)
    (tmp_path / "2").touch()
    listed = burla.jobs()
    assert "changes of the store were lost" in listed.remarks[0] and listed.remarks[0] in repr(listed)
    assert job.results(timeout_s=30) == [x * x for x in range(10)]
    assert Counter(ledger.entries()) == Counter({str(x): 1 + (x >= 4) for x in range(10)})


@pytest.mark.parametrize("seed", range(3))
def test_bits_flipped_anywhere_in_the_database_give_no_wrong_result(own_home: Home, seed: int):
    """Whole jobs of a stopped cluster are as they were; another either says that it is damaged, or is not there."""

    def call(x: int) -> tuple[int, bytes]:
        print("call", x)
        return x, bytes([x]) * 500

    jobs = [burla.submit(call, range(60)) for _ in range(12)]
    whole = [(x, bytes([x]) * 500) for x in range(60)]
    for job in jobs:
        assert job.results(timeout_s=30) == whole
    end_cluster(own_home.environ)
    dice = random.Random(seed)
    path = store_folder(own_home) / "store.db"
    data = bytearray(path.read_bytes())
    for _ in range(4):
        data[dice.randrange(100, len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    listed = {job.id: job for job in burla.jobs()}
    intact = 0
    for old in jobs:
        if old.id not in listed:
            assert any(old.id in remark or "number" in remark for remark in burla.jobs().remarks), "its loss is said"
            continue
        error = None
        try:
            found = dict(enumerate(old.results(timeout_s=30)))
            intact += 1
        except StoreDamaged as damaged:
            error, found = damaged, damaged.burla_results
        assert all(whole[index] == result for index, result in found.items())
        assert len(found) == len(whole) if error is None else old.id in str(error)
    assert intact >= len(jobs) - 4
