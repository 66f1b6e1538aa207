"""What is put into the store comes out of it as it was."""

from __future__ import annotations

import asyncio
import stat
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from burla.errors import BlobBroken, StoreBusy, StoreDamaged, StoreUnknown
from burla.head.database import FREE_PAGES, connect
from burla.head.records import FILE_BYTES, SCHEMA, StoredJob
from burla.head.store import Store
from burla.protocol import Block, Event, Failure, JobState, Kind, Notice, Output, Results
from tests.head.samples import (
    Told,
    all_blocks,
    all_events,
    blob_of,
    content,
    every_block,
    every_event,
    get_blob,
    in_a_loop,
    opened,
    put_blob,
    spec,
)
from tests.head.survey import samples_of, survey

STORES = Path(__file__).parent / "stores"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def found(store: Store, job_id: str) -> StoredJob:
    stored = await store.find(job_id)
    assert stored is not None
    return stored


# round trips


@in_a_loop
async def test_events_of_every_kind_form_and_size_come_back_equal_also_after_a_restart(folder: Path):
    events = list(every_event(blob_of("b10b", b"somewhere")))
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        for at, event in enumerate(events):
            store.add_event(number, at, event, bool(at % 2))
        await store.committed()
        assert await all_events(store, number) == events
    async with opened(folder) as store:
        assert await all_events(store, number) == events
        assert (await found(store, "job-1")).events == len(events)


@in_a_loop
async def test_blocks_of_every_form_and_size_come_back_equal_also_after_a_restart(folder: Path):
    data = content(5_000_000)
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        blob = await put_blob(store, number, "b10b", data)
        blocks = every_block(blob)
        total = sum(block.count for block in blocks)
        store.add_blocks(number, tuple(blocks), True)
        await store.committed()
        assert await all_blocks(store, number, total) == blocks
    async with opened(folder) as store:
        assert await all_blocks(store, number, total) == blocks
        assert [store.block_now(number, block.first) for block in blocks] == blocks
        assert await get_blob(store, number, blob) == data


@pytest.mark.parametrize("size", [0, FILE_BYTES - 1, FILE_BYTES])
def test_what_a_job_asks_for_comes_back_equal_with_its_function_and_its_surrogates(folder: Path, size: int):
    @in_a_loop
    async def test() -> None:
        wanted = spec(function=content(size))
        async with opened(folder) as store:
            number = store.add_job(wanted, "session é", 1.5, True)
            await store.committed()
        async with opened(folder) as store:
            stored = await found(store, wanted.id)
            assert (stored.number, stored.session, stored.created_at_s) == (number, "session é", 1.5)
            assert stored.spec == replace(wanted, function=b"")
            assert (await store.with_function(stored)).spec == wanted

    test()


@in_a_loop
async def test_a_function_that_is_a_blob_comes_back_as_one(folder: Path):
    blob = blob_of("f00", b"function")
    async with opened(folder) as store:
        store.add_job(spec(function=blob), "session", 1.5, True)
        await store.committed()
        assert (await store.with_function(await found(store, "job-1"))).spec.function == blob


@in_a_loop
async def test_how_a_job_stands_comes_back_equal(folder: Path):
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        store.update_job(number, False, complete=True, total=9)
        store.update_job(
            number, True, detached=True, state=JobState.STOPPING, error=b"\x00\xff", done=5, failed=4, ended_at_s=7.25
        )
        await store.committed()
    async with opened(folder) as store:
        status = (await found(store, "job-1")).status
        assert (status.complete, status.detached, status.state) == (True, True, JobState.STOPPING)
        assert (status.error, status.total, status.done, status.failed) == (b"\x00\xff", 9, 5, 4)
        assert status.ended_at_s == 7.25


@in_a_loop
async def test_an_unfinished_job_comes_back_with_all_that_it_takes_to_go_on(folder: Path):
    async with opened(folder) as store:
        for name, state in (("ended", JobState.DONE), ("first", JobState.RUNNING), ("second", JobState.RECEIVING)):
            number = store.add_job(spec(name), "session", 1.5, True)
            store.update_job(number, True, state=state, complete=state is not JobState.RECEIVING, total=8)
            store.add_blocks(number, (Block(0, 5, False, b"a"), Block(5, 3, True, b"b")), True)
            events = [Results(0, 2, False, b"r"), Output(2, 1, b"twelve bytes"), Failure(2, b"f"), Notice("n")]
            for at, event in enumerate(events):
                store.add_event(number, at, event, True)
            store.set_crashes(number, 3, 1, True)
            store.set_crashes(number, 3, 2, True)
            store.set_trade(number, "node", 6, True)
            store.set_trade(number, "node", 7, True)
        for node, present in (("node", True), ("gone", True), ("gone", False), ("node", True)):
            store.set_node(node, present)
        await store.committed()
    async with opened(folder) as store:
        first, second = store.unfinished()
        assert [first.job.spec.id, second.job.spec.id] == ["first", "second"]
        assert (first.damage, first.job.events) == (None, 4)
        assert first.blocks == [(0, 5), (5, 3)]
        assert first.outcomes == [(0, 2, False), (2, 3, True)]
        assert (first.crashes, first.trades, first.output_bytes) == ({3: 2}, {"node": 7}, 12)
        assert store.nodes() == {"node"}
        store.update_job(first.job.number, True, done=1)
        await store.committed()
        status = (await found(store, "first")).status
        assert (status.state, status.total, status.done) == (JobState.RUNNING, 8, 1), "what was before is kept"
        store.forget_nodes()
    async with opened(folder) as store:
        assert store.nodes() == set()


# finding


@in_a_loop
async def test_jobs_are_found_by_id_or_by_a_beginning_that_only_one_has(folder: Path):
    async with opened(folder) as store:
        for name in ("aab", "aac", "a", "b%", "b_1", "c\U0001f600"):
            store.add_job(spec(name), "session", 1.5, True)
        await store.committed()

        async def find(job_id: str) -> str | None:
            stored = await store.find(job_id)
            return stored and stored.spec.id

        assert await find("a") == "a", "exact, although others begin so"
        assert await find("aa") is None, "two begin so"
        assert await find("aac") == "aac"
        assert await find("b%") == "b%"
        assert await find("b_") == "b_1"
        assert await find("c") == "c\U0001f600"
        assert await find("x") is None
        assert await find("aabb") is None


@in_a_loop
async def test_jobs_are_listed_newest_first_and_the_newest_is_each_owners(folder: Path):
    async with opened(folder) as store:
        for at, owner in enumerate(("jo", "al", "jo", "al")):
            store.add_job(spec(f"job-{at}", owner=owner, parent=None), "session", 9.0 - at, True)  # the clock went back
        store.add_job(spec("nested", owner="jo", parent="job-2"), "session", 1.5, True)
        await store.committed()
        assert [stored.spec.id for stored in await store.jobs()] == ["nested", "job-3", "job-2", "job-1", "job-0"]
        newest = await store.newest("jo")
        assert newest is not None and newest.spec.id == "job-2"
        assert await store.newest("nobody") is None


@in_a_loop
async def test_events_are_read_by_kind_by_input_and_from_a_number_on(folder: Path):
    events: list[Event] = [
        Output(0, 1, b"o0"), Results(0, 3, False, b"r0"), Failure(3, b"f3"),
        Notice("n"), Output(2, 2, b"o2"), Results(4, 6, True, b"r4"), Output(4, 1, b"o4"),
    ]  # fmt: skip
    async with opened(folder) as store:
        other = store.add_job(spec("other"), "session", 1.5, True)
        number = store.add_job(spec(), "session", 1.5, True)
        for job in (other, number):
            for at, event in enumerate(events):
                store.add_event(job, at, event, True)
        await store.committed()
        assert await store.events(number, 0) == (events, 7)
        assert await store.events(number, 5) == (events[5:], 7)
        assert await store.events(number, 7) == ([], 7)
        assert await store.events(number, 0, Kind.RESULTS) == ([events[1], events[5]], 7)
        assert await store.events(number, 0, Kind.FAILURE | Kind.NOTICE) == (events[2:4], 7)
        assert await store.events(number, 0, Kind.ENDED) == ([], 7)
        assert await store.events(number, 0, Kind.ALL, 2) == ([events[1], events[4]], 7)
        assert await store.events(number, 0, Kind.ALL, 3) == ([events[2]], 7)
        assert await store.events(number, 2, Kind.OUTPUT, 4) == ([events[6]], 7)
        assert await store.events(other + 2, 0) == ([], 0), "no such job"


@in_a_loop
async def test_reading_ends_when_about_a_message_is_full_and_goes_on_after_it(folder: Path):
    events: list[Event] = [Output(at, 1, b"x" * 1000) for at in range(50)]
    blocks = [Block(at * 2, 2, False, b"y" * 1000) for at in range(50)]
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        for at, event in enumerate(events):
            store.add_event(number, at, event, True)
        store.add_blocks(number, tuple(blocks), True)
        await store.committed()
        some, after = await store.events(number, 0, limit_bytes=3000)
        assert (some, after) == (events[:3], 3)
        assert await all_events(store, number, limit_bytes=5000) == events
        assert len(await store.events(number, 4, limit_bytes=0)) == 2
        assert await store.blocks(number, 7, limit_bytes=2000) == blocks[3:5], "the first has input 7"
        assert await all_blocks(store, number, 100, limit_bytes=5000) == blocks
        with pytest.raises(StoreDamaged):
            await store.blocks(number, 100)


@in_a_loop
async def test_a_reading_looks_at_no_more_than_so_many_rows(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("burla.head.reader.ROWS", 10)
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        for at in range(25):
            store.add_event(number, at, Output(at, 1, b"x"), True)
        await store.committed()
        assert await store.events(number, 0, Kind.RESULTS) == ([], 10), "none of these, and there may be more"
        assert len(await all_events(store, number)) == 25


# blobs


@in_a_loop
async def test_a_blob_comes_in_pieces_which_may_be_sent_again(folder: Path):
    data = content(10_000)
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        blob = await put_blob(store, number, "b10b", data, 4000)
        await store.put_piece(number, "b10b", 8000, data[8000:], blob.crc, True)  # its reply was lost
        assert await get_blob(store, number, blob) == data
        with pytest.raises(BlobBroken, match="of which 0 bytes"):
            await store.put_piece(number, "new", 4000, data[4000:8000], None, True)
        await store.put_piece(number, "again", 0, b"x", None, True)
        assert await get_blob(store, number, await put_blob(store, number, "again", data, 4000)) == data, "from 0"
        with pytest.raises(BlobBroken, match="checksum"):
            await store.put_piece(number, "wrong", 0, b"x", 1, True)
        for name in ("../../x", "", "a/b", "a.part"):
            with pytest.raises(BlobBroken, match="not the name"):
                await store.put_piece(number, name, 0, b"x", 1, True)


@in_a_loop
async def test_a_blob_outlives_the_job_that_it_was_linked_from(folder: Path):
    data = content(100_000)
    async with opened(folder) as store:
        old = store.add_job(spec("old"), "session", 1.5, True)
        new = store.add_job(spec("new"), "session", 1.5, True)
        blob = await put_blob(store, old, "b10b", data)
        for _ in range(2):  # a message may be sent again
            await store.link_blob(old, new, blob, True)
        store.delete_job(old)
        await store.committed()
        assert await get_blob(store, new, blob) == data
        with pytest.raises(StoreDamaged):
            await store.piece(old, blob.id, 0)
        with pytest.raises(StoreDamaged, match="is gone"):
            await store.link_blob(old, store.add_job(spec("newer"), "session", 1.5, True), blob, True)
    async with opened(folder) as store:
        assert await get_blob(store, new, blob) == data
        await store.check_blob(new, blob)
        with pytest.raises(StoreDamaged, match=r"job new .* checksum"):
            await store.check_blob(new, replace(blob, crc=blob.crc ^ 1))


# commits


@in_a_loop
async def test_callbacks_come_in_order_each_after_the_commit_of_what_was_written_before(folder: Path):
    order: list[tuple[int, int]] = []
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        reader = connect(folder, read_only=True)

        def note(at: int) -> None:
            order.append((at, reader.execute("SELECT count(*) FROM events").fetchone()[0]))

        for at in range(200):
            store.add_event(number, at, Output(at, 1, b"x"), False)
            store.after_commit(lambda at=at: note(at))
            if at % 7 == 0:
                await asyncio.sleep(0)
        await store.committed()
        reader.close()
    assert [at for at, _ in order] == list(range(200))
    assert all(rows > at for at, rows in order)


@in_a_loop
async def test_closing_writes_what_is_queued(folder: Path):
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, False)
        store.add_event(number, 0, Output(0, 1, b"x"), False)
    async with opened(folder) as store:
        assert await all_events(store, number) == [Output(0, 1, b"x")]
        assert store.epoch == 2


# deleting


@in_a_loop
async def test_numbers_of_jobs_are_never_used_again(folder: Path):
    numbers: list[int] = []
    for at in range(3):
        async with opened(folder) as store:
            for one in range(2):
                numbers.append(store.add_job(spec(f"job-{at}-{one}"), "session", 1.5, True))
                store.delete_job(numbers[-1])
    assert numbers == [1, 2, 3, 4, 5, 6]


@in_a_loop
async def test_a_deleted_job_leaves_no_byte_of_its_values_behind(folder: Path):
    secrets = {name: f"secret {name} ".encode() * 20 for name in ("function", "input", "result", "output", "environ")}
    marks = [secret[:40] for secret in secrets.values()]
    async with opened(folder) as store:
        kept = store.add_job(spec("kept", function=b"other"), "session", 1.5, True)
        asked = spec("gone", function=secrets["function"])
        asked = replace(asked, context=replace(asked.context, environ={"KEY": secrets["environ"].decode()}))
        number = store.add_job(asked, "session", 1.5, True)
        store.add_blocks(number, (Block(0, 1, False, secrets["input"]), Block(1, 1, False, content(FILE_BYTES))), True)
        blob = await put_blob(store, number, "b10b", content(200_000))
        for at in range(1000):
            store.add_event(number, 2 * at, Results(at, at + 1, False, secrets["result"] * 20), True)
            store.add_event(number, 2 * at + 1, Output(at, 1, secrets["output"]), True)
        await store.committed()
        before = (folder / "store.db").stat().st_size + (folder / "store.db-wal").stat().st_size
        assert before > 8_000_000
        assert all(any(mark in path.read_bytes() for path in folder.iterdir() if path.is_file()) for mark in marks)
        assert store.used_bytes > 6_000_000
        store.delete_job(number)
        await store.committed()
        assert not list((folder / "files").glob(f"{number}*"))
        assert await store.find("gone") is None
        assert store.used_bytes < 10_000
        async with asyncio.timeout(20):  # the log is emptied when it has been quiet for a moment
            while any(mark in path.read_bytes() for path in folder.iterdir() if path.is_file() for mark in marks):
                await asyncio.sleep(0.02)
        assert (folder / "store.db").stat().st_size < (FREE_PAGES + 20) * 4096
        assert (folder / "store.db-wal").stat().st_size < 1_000_000
        with pytest.raises(StoreDamaged):
            await store.piece(number, blob.id, 0)
        assert (await found(store, "kept")).number == kept


@in_a_loop
async def test_sizes_of_jobs_are_known_after_a_restart(folder: Path):
    async with opened(folder) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        await put_blob(store, number, "b10b", content(500_000))
        store.add_event(number, 0, Results(0, 1, False, content(100_000)), True)
        store.add_event(number, 1, Output(0, 1, content(1000)), True)
        await store.committed()
        used = store.used_bytes
        assert 601_000 < used < 610_000
        assert (await found(store, "job-1")).size_bytes == used
    async with opened(folder) as store:
        assert store.used_bytes == used


# the folder


@in_a_loop
async def test_nobody_else_can_read_what_is_stored_whatever_the_umask(folder: Path):
    async with opened(folder) as store:
        number = store.add_job(spec(function=content(FILE_BYTES)), "session", 1.5, True)
        await put_blob(store, number, "b10b", b"x", 1)
        await store.put_piece(number, "part", 0, b"x", None, True)
        await store.committed()
        lock = folder.with_name("store.lock")
        paths = [folder, lock, *folder.rglob("*")]
        names = {path.name for path in paths}
        assert {"store.lock", "store.db", "store.db-wal", "store.db-shm", "tail", "reserve", "part.part"} <= names
        for path in paths:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


@in_a_loop
async def test_a_second_head_is_refused_until_the_first_one_ends(folder: Path):
    async with opened(folder) as store:
        with pytest.raises(StoreBusy, match="another head uses the store") as caught:
            async with opened(folder):
                pass
        assert caught.value.path == folder
        store.add_job(spec(), "session", 1.5, True)
        await store.committed()
    async with opened(folder) as store:
        assert [stored.spec.id for stored in await store.jobs()] == ["job-1"]


@in_a_loop
async def test_a_head_that_was_replaced_acknowledges_nothing_more(folder: Path):
    told = Told()
    async with opened(folder, told) as store:
        number = store.add_job(spec(), "session", 1.5, True)
        await store.committed()
        code = f"""
from pathlib import Path
from burla.head.database import connect
connect(Path({str(folder)!r})).execute("UPDATE meta SET epoch = epoch + 1")
"""
        await run_python(code)
        acknowledged: list[int] = []
        store.add_event(number, 0, Output(0, 1, b"late"), True)
        store.after_commit(lambda: acknowledged.append(0))
        with pytest.raises(Exception, match="taken over") as caught:
            await store.committed()
        assert type(caught.value).__name__ == "ClusterLost"
        assert [type(error) for error in told.broken] == [StoreBusy]
        with pytest.raises(Exception, match="taken over"):
            await store.put_piece(number, "b10b", 0, b"x", None, True)
        with pytest.raises(Exception, match="taken over"):
            await store.committed()
        assert acknowledged == []
    async with opened(folder) as store:
        assert await all_events(store, number) == []


@in_a_loop
async def test_a_store_of_another_version_is_left_as_it_is_and_the_error_says_what_to_do(folder: Path):
    async with opened(folder) as store:
        store.add_job(spec(), "session", 1.5, True)
    connection = connect(folder)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for _ in range(2):
        with pytest.raises(StoreUnknown, match=rf"schema 99; .*mv {folder} {folder}.schema-99") as caught:
            async with opened(folder):
                pass
        assert (caught.value.schema, caught.value.path) == (99, folder)
    connection = connect(folder)
    connection.execute("PRAGMA user_version=1")
    connection.close()
    async with opened(folder) as store:
        assert [stored.spec.id for stored in await store.jobs()] == ["job-1"]


@pytest.mark.parametrize("archive", sorted(STORES.glob("*.zip")), ids=lambda path: path.stem)
def test_stores_that_earlier_heads_have_written_are_read(archive: Path, tmp_path: Path):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    for _ in range(2):
        assert not asyncio.run(survey(tmp_path / "store", samples_of())).detected


def test_there_is_a_store_of_this_schema():
    assert (STORES / f"schema-{SCHEMA}.zip").exists(), "python -m tests.head.make_store_fixture makes it"


@in_a_loop
async def test_the_wall_clock_decides_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    clock = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: clock)
    for jump in (0, 3600, -7200):
        clock += jump
        async with opened(folder) as store:
            number = store.add_job(spec(f"job{jump}"), "session", clock, True)
            store.add_event(number, 0, Output(0, 1, b"x"), True)
            clock -= 3600
            store.add_event(number, 1, Output(1, 1, b"y"), True)
            await store.committed()
            assert await all_events(store, number) == [Output(0, 1, b"x"), Output(1, 1, b"y")]
    async with opened(folder) as store:
        jobs = await store.jobs()
        assert [stored.spec.id for stored in jobs] == ["job-7200", "job3600", "job0"]
        assert store.epoch == 4


async def run_python(code: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
