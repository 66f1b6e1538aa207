"""Whatever has become of the store's files: each value that is read is what was written, or is said to be damaged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from burla.errors import StoreUnknown
from burla.head.database import connect
from burla.head.records import SHIFT
from burla.protocol import JobState, Kind, Notice
from tests.head.samples import all_events, in_a_loop, opened, spec
from tests.head.survey import Sample, Survey, mark, survey, write_samples

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = 4096
SEED = int(os.environ.get("BURLA_TEST_SEED", "0"))
FLIPS = int(os.environ.get("BURLA_TEST_FLIPS", "3"))  # of each page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("whole") / "store"
    return folder, asyncio.run(write_samples(folder))


class Copies:
    """Stores to be damaged, each like the whole one."""

    def __init__(self, whole: Path, folder: Path):
        self._whole = whole
        self._folder = folder
        self._count = 0

    def make(self) -> Path:
        self._count += 1
        copy = self._folder / str(self._count) / "store"
        copy.mkdir(0o700, parents=True)
        for path in self._whole.iterdir():
            if path.name != "reserve":
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy / path.name)
        return copy

    def remove(self, copy: Path) -> None:
        shutil.rmtree(copy.parent)


@pytest.fixture
def copies(whole: tuple[Path, list[Sample]], tmp_path: Path) -> Iterator[Copies]:
    yield Copies(whole[0], tmp_path)
    shutil.rmtree(tmp_path)


@pytest.fixture
def samples(whole: tuple[Path, list[Sample]]) -> list[Sample]:
    return whole[1]


def flip(path: Path, position: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


@in_a_loop
async def test_a_whole_store_reads_whole(copies: Copies, samples: list[Sample]):
    found = await survey(copies.make(), samples)
    assert not found.detected


@pytest.mark.parametrize("part", range(4))
def test_a_flipped_bit_on_any_page_is_detected_or_harmless_and_harms_no_job_elsewhere(
    copies: Copies, samples: list[Sample], part: int
):
    database = (copies._whole / "store.db").read_bytes()
    chance = random.Random(SEED * 10 + part)
    detected = 0
    for page in range(part, len(database) // PAGE_BYTES, 4):
        content = database[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]
        here = {sample.spec.id for sample in samples if mark(sample.spec.id)[1:-1] in content}
        for at in range(FLIPS):
            offset = chance.randrange(12) if at == 0 else chance.randrange(PAGE_BYTES)
            bit = chance.randrange(8)
            copy = copies.make()
            flip(copy / "store.db", page * PAGE_BYTES + offset, bit)
            try:
                found = asyncio.run(survey(copy, samples))
            except StoreUnknown:
                assert page == 0 and 60 <= offset < 64, "the version itself"
                continue
            except BaseException as error:
                error.add_note(f"page {page} offset {offset} bit {bit}")
                raise
            assert not here or found.harmed <= here, (page, offset, bit, found.remarks)
            detected += found.detected
            copies.remove(copy)
    assert detected > 5


def test_a_value_that_has_changed_in_any_column_is_detected_or_harmless_and_harms_its_job_alone(
    copies: Copies, samples: list[Sample]
):
    sample = next(one for one in samples if one.status.state is JobState.RUNNING)
    own = {"jobs": "number = {0}", "blobs": "job = {0}", "crashes": "job = {0}", "trades": "job = {0}"}
    detected = set()
    for table in (*own, "blocks", "events"):
        row = own.get(table, f"key = ({{0}} << {SHIFT}) + 5").format(sample.number)
        copy = copies.make()
        with contextlib.closing(connect(copy)) as connection:
            columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        for column in columns:
            copy = copies.make()
            with contextlib.closing(connect(copy)) as connection:
                select = f"SELECT {column} FROM {table} WHERE {row} LIMIT 1"
                (value,) = connection.execute(select).fetchone()
                where = f"{row} AND {column} IS ?"
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (changed(value), value))
            found = asyncio.run(survey(copy, samples))
            assert found.harmed <= {sample.spec.id}, (table, column)
            if found.detected:
                detected.add((table, column))
            copies.remove(copy)
        everything = {(table, column) for column in columns}
        everything.discard(("blocks", "payload"))  # it is in a file
        assert table == "blobs" or everything <= detected, (
            everything - detected
        )  # blobs are known by what refers to them


def changed(value: object) -> object:
    match value:
        case int() | float():
            return value + 1000
        case str():
            return value.replace("1", "2") + " "
        case bytes():
            return value[:-1]
        case _:
            return "x"


@pytest.mark.parametrize("table", ["blocks", "events"])
def test_the_last_rows_of_a_job_cannot_vanish_unsaid(copies: Copies, samples: list[Sample], table: str):
    copy = copies.make()
    with contextlib.closing(connect(copy)) as connection:
        connection.execute(f"DELETE FROM {table} WHERE key = (SELECT max(key) FROM {table} WHERE key < 5 << {SHIFT})")
    found = asyncio.run(survey(copy, samples))
    assert found.harmed == {samples[2].spec.id}
    assert samples[2].spec.id in found.remarks[0]


@in_a_loop
async def test_an_event_whose_kind_has_changed_is_not_skipped(copies: Copies, samples: list[Sample]):
    for kind in ("0", "32", "NULL", "'x'", "5"):
        copy = copies.make()
        with contextlib.closing(connect(copy)) as connection:
            connection.execute(f"UPDATE events SET kind = {kind} WHERE key = (1 << {SHIFT}) + 4")
        async with opened(copy) as store:
            for kinds in (Kind.RESULTS, Kind.ALL):
                events, _ = await store.events(1, 4, kinds)
                assert isinstance(events[0], Notice) and "event 4 of this job cannot be read" in events[0].text


def test_a_damaged_count_is_dropped_once_and_its_job_is_kept(copies: Copies, samples: list[Sample]):
    copy = copies.make()
    with contextlib.closing(connect(copy)) as connection:
        connection.execute("UPDATE crashes SET attempts = 9 WHERE job = 4")
    for _ in range(2):
        found = asyncio.run(survey(copy, samples))
        assert (found.harmed, len(found.remarks)) == (set(), 1)


def large_files(folder: Path, sample: Sample) -> list[Path]:
    return sorted((folder / "files" / str(sample.number)).iterdir())


@pytest.mark.parametrize("what", ["deleted", "truncated", "emptied", "flipped", "replaced"])
def test_a_file_that_has_changed_is_detected_and_harms_its_job_alone(copies: Copies, samples: list[Sample], what: str):
    for sample in samples[1:3]:
        for at in range(len(large_files(copies._whole, sample))):
            copy = copies.make()
            path = large_files(copy, sample)[at]
            match what:
                case "deleted":
                    path.unlink()
                case "truncated":
                    os.truncate(path, path.stat().st_size - 1)
                case "emptied":
                    os.truncate(path, 0)
                case "flipped":
                    flip(path, path.stat().st_size // 2, 3)
                case "replaced":
                    shutil.copy(large_files(copy, samples[0])[at], path)
            found = asyncio.run(survey(copy, samples))
            assert found.harmed == {sample.spec.id}, path
            assert found.remarks == (), "the store goes on as it is"
            copies.remove(copy)


@pytest.mark.parametrize("pages", [0.2, 0.5, 0.9])
def test_a_truncated_database_is_set_aside_and_whole_jobs_are_carried_over(
    copies: Copies, samples: list[Sample], pages: float
):
    copy = copies.make()
    size = (copy / "store.db").stat().st_size
    os.truncate(copy / "store.db", int(size * pages) // PAGE_BYTES * PAGE_BYTES)
    found = asyncio.run(survey(copy, samples))
    (remark,) = found.remarks
    (aside,) = copy.parent.glob("store.damaged-*")
    assert str(aside) in remark
    assert stat.S_IMODE(aside.stat().st_mode) == 0o500
    assert stat.S_IMODE((aside / "store.db").stat().st_mode) == 0o400
    assert stat.S_IMODE((copy / "store.db").stat().st_mode) == 0o600
    again = asyncio.run(survey(copy, samples))
    assert (again.remarks, again.harmed) == (found.remarks, found.harmed), "said again, and nothing more is lost"


@pytest.mark.parametrize("what", ["deleted", "emptied", "garbage", "another database"])
def test_a_database_that_is_gone_is_said_and_what_is_left_is_set_aside(
    copies: Copies, samples: list[Sample], what: str
):
    copy = copies.make()
    database = copy / "store.db"
    match what:
        case "deleted":
            database.unlink()
        case "emptied":
            os.truncate(database, 0)
        case "garbage":
            database.write_bytes(random.Random(1).randbytes(100_000))
        case "another database":
            database.unlink()
            with sqlite3.connect(database) as other:
                other.execute("CREATE TABLE meta (one)")
    for _ in range(2):
        found = asyncio.run(survey(copy, samples))
        assert found.harmed == {sample.spec.id for sample in samples}
        (remark,) = found.remarks
        assert "all of it" in remark
    (aside,) = copy.parent.glob("store.damaged-*")
    assert len(list(aside.rglob("files/*/*"))) == len(list(copies._whole.rglob("files/*/*"))), "values are kept there"


@in_a_loop
async def test_a_remark_is_shown_for_some_days_and_after_restarts(
    copies: Copies, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
):
    copy = copies.make()
    (copy / "store.db").unlink()
    clock = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: clock)
    shown = []
    for days in (0, 6, 2):
        clock += days * 86_400
        async with opened(copy) as store:
            shown.append(len(store.remarks))
    assert shown == [1, 1, 0]


@in_a_loop
async def test_a_new_store_goes_on_with_new_numbers_after_damage(copies: Copies, samples: list[Sample]):
    copy = copies.make()
    flip(copy / "store.db", 36, 0)  # how many pages are free
    async with opened(copy) as store:
        assert len(store.remarks) == 1
        number = store.add_job(spec("new"), "session", 1.5, True)
        assert number > samples[-1].number
        await store.committed()
        assert store.used_bytes > 100_000
    found = await survey_without_new(copy, samples)
    assert not found.harmed


async def survey_without_new(folder: Path, samples: list[Sample]) -> Survey:
    async with opened(folder) as store:
        stored = await store.find("new")
        assert stored is not None
        store.delete_job(stored.number)
    return await survey(folder, samples)


# the log of a head that was killed

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.head.survey import open_samples

async def main():
    await open_samples(Path(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose head was killed when all samples were acknowledged, most of them in its log alone."""
    folder = tmp_path_factory.mktemp("killed") / "store"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (folder / "store.db-wal").stat().st_size > 100_000
    return folder


def test_a_log_that_is_whole_after_a_kill_loses_nothing(killed: Path, samples: list[Sample], tmp_path: Path):
    found = asyncio.run(survey(Copies(killed, tmp_path).make(), samples))
    assert not found.detected


def test_a_flipped_bit_in_the_log_of_a_killed_head_is_said_or_harmless(
    killed: Path, samples: list[Sample], tmp_path: Path
):
    copies = Copies(killed, tmp_path)
    chance = random.Random(SEED)
    log = (killed / "store.db-wal").stat().st_size
    said = 0
    for at in range(20 * FLIPS):
        copy = copies.make()
        offset = chance.randrange(32) if at % 4 == 0 else chance.randrange(log)
        flip(copy / "store.db-wal", offset, chance.randrange(8))
        found = asyncio.run(lost_commits(copy, samples))
        said += found
        copies.remove(copy)
    assert said > 10


async def lost_commits(folder: Path, samples: list[Sample]) -> bool:
    """Check that a store says so if anything is missing; whatever is there is what was written."""
    async with opened(folder) as store:
        (said,) = [remark for remark in store.remarks if "changes of the store were lost" in remark] or [""]
        names = [stored.spec.id for stored in await store.jobs()]
        known = {sample.spec.id: sample for sample in samples}
        for stored in await store.jobs():
            if stored.spec.id in known:
                events = await all_events(store, stored.number)
                assert events == known[stored.spec.id].events[: len(events)]
                assert said or events == known[stored.spec.id].events
        assert said or known.keys() <= set(names)
        return bool(said)


@in_a_loop
async def test_a_flipped_count_of_commits_makes_no_false_alarm(killed: Path, samples: list[Sample], tmp_path: Path):
    copies = Copies(killed, tmp_path)
    for position in range((killed / "tail").stat().st_size):
        copy = copies.make()
        flip(copy / "tail", position, 6)
        async with opened(copy) as store:
            assert store.remarks == ()
