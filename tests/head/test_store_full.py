"""A full disk: nothing is lost, all waits, and goes on when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from burla.errors import BlobBroken, StoreFull
from burla.head.database import RESERVE_BYTES
from burla.head.records import FILE_BYTES
from burla.head.store import Store
from burla.protocol import Event, Output, Results
from tests.head.samples import (
    Told,
    all_events,
    blob_of,
    content,
    get_blob,
    in_a_loop,
    open_store,
    opened,
    put_blob,
    spec,
)

DISK_BYTES = 32_000_000


@dataclass(frozen=True)
class Disk:
    """A small disk, with a store on it, that something else can fill."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def fill(self) -> None:
        with open(self.folder / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1_000_000)):
                pass
        assert os.statvfs(self.folder).f_bavail == 0

    def make_room(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burla.head.writer.AGAIN_S", 0.02)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def job_with(store: Store, name: str, *events: Event) -> int:
    number = store.add_job(spec(name), "session", 1.5, True)
    for at, event in enumerate(events):
        store.add_event(number, at, event, True)
    await store.committed()
    return number


@in_a_loop
async def test_what_is_written_while_the_disk_is_full_waits_for_room_and_is_all_there(disk: Disk):
    told = Told()
    events: list[Event] = [Results(at, at + 1, False, content(100 if at % 3 else FILE_BYTES, at)) for at in range(120)]
    async with opened(disk.store, told) as store:
        number = await job_with(store, "job-1", *events[:5])
        disk.fill()
        shown: list[int] = []
        for at, event in enumerate(events[5:], 5):
            store.add_event(number, at, event, bool(at % 2))
            store.after_commit(lambda at=at: shown.append(at))
            if at % 10 == 0:
                await asyncio.sleep(0.005)
        waiting = asyncio.ensure_future(store.committed())
        await until(lambda: told.full)
        await asyncio.sleep(0.2)  # many tries
        assert [type(error) for error in told.full] == [StoreFull], "told once"
        assert str(disk.store) in str(told.full[0]) and "burla job delete" in str(told.full[0])
        assert not waiting.done() and len(shown) < 115
        assert await all_events(store, number) == events[: 5 + len(shown)], "what was there can be read meanwhile"
        disk.make_room()
        await waiting
        assert shown == list(range(5, 120))
        assert [type(error) for error in told.full] == [StoreFull, type(None)]
        assert await all_events(store, number) == events
        assert (disk.store / "reserve").stat().st_size == RESERVE_BYTES
        assert told.broken == []
    async with opened(disk.store) as store:
        assert await all_events(store, number) == events


@in_a_loop
async def test_a_disk_that_is_full_a_second_time_is_told_again(disk: Disk):
    told = Told()
    async with opened(disk.store, told) as store:
        number = await job_with(store, "job-1")
        for at in range(2):
            disk.fill()
            store.add_event(number, at, Results(at, at + 1, False, content(FILE_BYTES)), True)
            await until(lambda at=at: len(told.full) == 2 * at + 1)
            disk.make_room()
            await store.committed()
        assert [error is None for error in told.full] == [False, True, False, True]


@pytest.mark.parametrize("form", ["rows", "file"])
@pytest.mark.parametrize("first", [True, False])
def test_a_delete_makes_room_on_a_full_disk_also_if_it_is_what_finds_it_full(disk: Disk, form: str, first: bool):
    @in_a_loop
    async def test() -> None:
        told = Told()
        size, count = (FILE_BYTES - 1, 140) if form == "rows" else (9_000_000, 1)
        kept: list[Event] = [Results(at, at + 1, False, content(FILE_BYTES, at)) for at in range(20)]
        async with opened(disk.store) as store:
            old = await job_with(store, "old", *(Output(at, 1, content(size, at)) for at in range(count)))
            new = await job_with(store, "new")
        async with opened(disk.store, told) as store:  # its log is new and empty, and has to grow
            disk.fill()
            if not first:
                for at, event in enumerate(kept):
                    store.add_event(new, at, event, True)
                await until(lambda: told.full)
            store.delete_job(old)
            if first:
                for at, event in enumerate(kept):
                    store.add_event(new, at, event, True)
            async with asyncio.timeout(20):
                await store.committed()
            assert await all_events(store, new) == kept
            assert await store.find("old") is None
            assert told.broken == []
            assert told.full[-1:] == [None] or told.full == []
            assert (disk.store / "reserve").stat().st_size == RESERVE_BYTES
        async with opened(disk.store) as store:
            assert [stored.spec.id for stored in await store.jobs()] == ["new"]
            assert await all_events(store, new) == kept

    test()


@in_a_loop
async def test_a_job_that_is_written_and_deleted_while_the_disk_is_full_leaves_nothing(disk: Disk):
    told = Told()
    async with opened(disk.store, told) as store:
        kept = await job_with(store, "kept")
        gone = await job_with(store, "gone", Results(0, 1, False, content(FILE_BYTES)))
        disk.fill()
        store.add_event(kept, 0, Results(0, 1, False, content(FILE_BYTES)), True)
        await until(lambda: told.full)
        (disk.folder / "filler").open("r+b").truncate((disk.folder / "filler").stat().st_size - 200_000)
        store.add_event(gone, 1, Results(1, 2, False, content(FILE_BYTES, 1)), True)
        store.delete_job(gone)
        store.add_event(kept, 1, Results(1, 2, False, content(15_000_000)), True)
        await asyncio.sleep(0.3)  # many tries, each of which writes and deletes
        disk.make_room()
        async with asyncio.timeout(20):
            await store.committed()
        assert told.broken == []
        assert [path.name for path in (disk.store / "files").iterdir()] == [str(kept)]
        assert len(await all_events(store, kept)) == 2


@in_a_loop
async def test_a_job_whose_value_is_linked_while_the_disk_is_full_may_be_deleted_meanwhile(disk: Disk):
    told = Told()
    async with opened(disk.store, told) as store:
        old = await job_with(store, "old")
        new = await job_with(store, "new")
        blob = await put_blob(store, old, "b10b", content(1_000_000))
        disk.fill()
        store.add_event(new, 0, Results(0, 1, False, content(FILE_BYTES)), True)
        linking = asyncio.ensure_future(store.link_blob(old, new, blob, True))
        await until(lambda: told.full)
        store.delete_job(old)
        await asyncio.sleep(0.2)
        disk.make_room()
        async with asyncio.timeout(20):
            await linking
        assert told.broken == []
        assert await get_blob(store, new, blob) == content(1_000_000)
        assert await store.find("old") is None


@in_a_loop
async def test_a_blob_that_a_full_disk_refuses_leaves_nothing_and_is_taken_when_it_comes_again(disk: Disk):
    told = Told()
    data = content(3_000_000)
    async with opened(disk.store, told) as store:
        number = await job_with(store, "job-1")
        await store.put_piece(number, "b10b", 0, data[:1_000_000], None, True)
        disk.fill()
        with pytest.raises(StoreFull):
            await store.put_piece(number, "b10b", 1_000_000, data[1_000_000:2_000_000], None, True)
        assert not list((disk.store / "files").glob("*/*.part"))
        with pytest.raises(BlobBroken):
            await store.put_piece(number, "b10b", 1_000_000, data[1_000_000:2_000_000], None, True)
        disk.make_room()
        for offset in (0, 1_000_000, 2_000_000):
            crc = zlib.crc32(data) if offset == 2_000_000 else None
            await store.put_piece(number, "b10b", offset, data[offset : offset + 1_000_000], crc, True)
        assert await get_blob(store, number, blob_of("b10b", data)) == data
        assert told.broken == []


@in_a_loop
async def test_a_store_is_opened_on_a_full_disk_and_makes_room_there(disk: Disk):
    kept, size = Output(0, 1, b"x"), 9_000_000
    async with opened(disk.store) as store:
        await job_with(store, "kept", kept)
        old = await job_with(store, "old", Output(0, 1, content(size)))
    disk.fill()
    told = Told()
    async with opened(disk.store, told) as store:
        assert store.remarks == ()
        assert [stored.spec.id for stored in await store.jobs()] == ["old", "kept"]
        assert await all_events(store, 1) == [kept]
        store.delete_job(old)
        async with asyncio.timeout(20):
            await store.committed()
        assert told.broken == []
    assert not list(disk.folder.glob("*damaged*"))


@in_a_loop
async def test_a_store_that_cannot_even_be_opened_for_want_of_room_says_so_and_is_left_as_it_is(disk: Disk):
    async with opened(disk.store) as store:
        await job_with(store, "job-1")
    (disk.store / "reserve").unlink()
    disk.fill()
    for _ in range(2):
        with pytest.raises(StoreFull, match=str(disk.store)):
            open_store(disk.store)
        disk.fill()
    disk.make_room()
    async with opened(disk.store) as store:
        assert [stored.spec.id for stored in await store.jobs()] == ["job-1"]
        assert store.remarks == ()


@in_a_loop
async def test_closing_while_the_disk_is_full_ends_and_keeps_what_was_acknowledged(disk: Disk):
    told = Told()
    store = open_store(disk.store, told)
    number = await job_with(store, "job-1", Output(0, 1, b"acknowledged"))
    disk.fill()
    acknowledged: list[int] = []
    for at in range(1, 30):
        store.add_event(number, at, Results(at, at + 1, False, content(FILE_BYTES, at)), True)
        store.after_commit(lambda at=at: acknowledged.append(at))
    await until(lambda: told.full)
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    store.close()
    await asyncio.sleep(0.05)
    assert (acknowledged, told.broken) == ([], [])
    disk.make_room()
    async with opened(disk.store) as store:
        assert (await all_events(store, number))[0] == Output(0, 1, b"acknowledged")
        assert store.remarks == ()
        assert not list((disk.store / "files").glob("*/*.part"))
