"""Finished jobs in a bucket: what is read from there is what the head had, and half a copy is none."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burla import bucket, serialize
from burla.bucket import Bucket
from burla.client.connection import Connection
from burla.client.copies import CopiesTarget
from burla.clusters.record import CloudCluster
from burla.errors import (
    ClusterLost,
    InvalidValue,
    MissingExtra,
    StoreDamaged,
    StoreUnreachable,
    UnknownJob,
)
from burla.head.connections import Service
from burla.head.copied import Copies
from burla.head.copier import Copier
from burla.head.copies import DATABASE, MANIFEST
from burla.head.head import Head
from burla.head.history import History
from burla.head.keeping import Keeping
from burla.head.parts import Parts
from burla.head.store import Store
from burla.head.vault import Vault
from burla.job import Job
from burla.protocol import (
    STDOUT,
    CallContext,
    Cancel,
    Ended,
    Event,
    GetJob,
    GetPiece,
    JobState,
    Kind,
    ListJobs,
    Output,
    Poll,
    Results,
)
from tests.head.samples import content, every_event, get_blob, in_a_loop, opened, put_blob, spec

CLUSTER = CloudCluster("c", "aws", "1", "me", 0.0, "", "", "", "", 600.0, False, 100)


class Rig:
    """A head's store, and what copies from it."""

    def __init__(self, folder: Path, store: Store):
        self.bucket = Bucket(f"file://{folder}/bucket/c")
        self.path = folder / "bucket" / "c"
        self.store = store
        self.head = Head(store, Parts(folder / "parts"), Vault(None))
        self.history = History(self.head)
        self.keeping = Keeping(self.bucket.url, 0.0)
        self.copier = Copier(self.head, self.history, self.keeping, self.bucket, folder / "store")
        self.copies = Copies(self.bucket, "c")

    async def job(self, name: str, events: Callable[[int], Any], **fields: Any) -> int:
        """Store a job that has ended."""
        number = self.store.add_job(spec(name, parent=None, **fields), "session", time.time(), True)
        found: list[Event] = await events(number)
        for at, event in enumerate([*found, Ended(JobState.DONE, None)]):
            self.store.add_event(number, at, event, True)
        self.store.update_job(number, True, state=JobState.DONE, total=3, done=3, ended_at_s=time.time())
        await self.store.committed()
        self.keeping.begin(await self.store.jobs())
        return number

    async def read(self, name: str) -> list[Event]:
        found: list[Event] = []
        after = 0
        while not any(isinstance(event, Ended) and event.error is None for event in found[-1:]):
            events = await self.copies.answer(Poll(name, after, 0.0, Kind.ALL, None))
            found, after = [*found, *events.events], events.next
        return found


async def no_events(number: int) -> list[Event]:
    return []


@in_a_loop
async def test_a_copy_holds_every_event_and_value_and_nothing_of_what_the_job_needed_to_run(tmp_path: Path):
    data = content(5_000_000)
    async with opened(tmp_path / "store") as store:
        rig = Rig(tmp_path, store)
        blobs = []

        async def events(number: int) -> list[Event]:
            blobs.append(await put_blob(store, number, "b10b", data))
            return [event for event in every_event(blobs[0]) if not isinstance(event, Ended)]

        secret = CallContext("/", {"TOKEN": "a-secret-token"}, ())
        number = await rig.job("job-1", events, context=secret, function=b"a-secret-function", sealed="a-secret-sealed")
        await rig.copier.look()
        assert rig.keeping.waiting == []
        written = b"".join(path.read_bytes() for path in rig.path.rglob("*") if path.is_file())
        assert b"a-secret" not in written
        here, _ = await store.events(number, 0, limit_bytes=10**9)
        assert await rig.read("job-1") == here
        pieces = b""
        while len(pieces) < len(data):
            pieces += await rig.copies.answer(GetPiece("job-1", "b10b", len(pieces)))
        assert pieces == data == await get_blob(store, number, blobs[0])
        info = await rig.copies.answer(GetJob("job"))
        assert info == replace(rig.history.described(*[await rig.history.stored("job-1")]), kept_until_s=None)
        rig.copies.close()


@in_a_loop
async def test_half_a_copy_is_none_and_what_a_head_of_before_has_copied_is_not_copied_again(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        rig = Rig(tmp_path, store)
        await rig.job("whole", no_events)
        await rig.job("half", no_events)
        await rig.copier.look()
        (rig.path / "half" / MANIFEST).unlink()
        (rig.path / "whole" / DATABASE).write_bytes(b"not to be touched")
        assert [info.id for info in (await rig.copies.answer(ListJobs())).jobs] == ["whole"]
        with pytest.raises(UnknownJob, match="half"):
            await rig.copies.answer(GetJob("half"))
        again = Rig(tmp_path, store)
        again.keeping.begin(await store.jobs())
        await again.copier.look()
        assert {info.id for info in (await again.copies.answer(ListJobs())).jobs} == {"whole", "half"}
        assert (rig.path / "whole" / DATABASE).read_bytes() == b"not to be touched"
        with pytest.raises(StoreDamaged, match=r"copy of job whole .*its checksum is wrong"):
            await again.copies.answer(Poll("whole", 0, 0.0))


@in_a_loop
async def test_a_bucket_that_fails_is_tried_again_and_the_head_is_told_why(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        rig = Rig(tmp_path, store)
        await rig.job("job", no_events)
        (tmp_path / "bucket").write_text("no folder")
        with pytest.raises(StoreUnreachable, match="cannot be reached"):
            await rig.copier.look()
        running = asyncio.ensure_future(rig.copier.run())
        while not rig.keeping.failure:
            await asyncio.sleep(0.01)
        running.cancel()
        assert rig.keeping.stays(time.time()) and "cannot be reached" in rig.keeping.remarks(time.time())[0]
        (tmp_path / "bucket").unlink()
        await rig.copier.look()
        assert not rig.keeping.stays(time.time())


@in_a_loop
async def test_an_idle_head_ends_when_somebody_has_read_what_only_it_has_and_not_before(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        rig = Rig(tmp_path, store)
        number = await rig.job("job", no_events)
        store.update_job(number, True, detached=True)
        await store.committed()
        service = Service(rig.head, 10.0, lambda: None, True)
        service.keeping = Keeping("", 3600.0)
        service.keeping.begin(await store.jobs())
        ended_s, now = time.time(), rig.head.last_active
        assert not service.is_idle(now + 1000, ended_s, 10.0)
        assert "nobody has read" in service.remarks()[0]
        assert service.is_idle(now + 1000, ended_s + 3601, 10.0)
        await service.history.poll(Poll("job", 0, 0.0, Kind.OUTPUT | Kind.ENDED))
        assert not service.is_idle(now + 1000, ended_s, 10.0), "these are not its results"
        await service.history.poll(Poll("job", 0, 0.0))
        read = rig.head.last_active
        assert not service.is_idle(read + 9, ended_s, 10.0), "who has read the journal may fetch large values"
        assert service.is_idle(read + 11, ended_s, 10.0) and service.remarks() == ()


@in_a_loop
async def test_a_job_that_is_deleted_leaves_no_copy(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        rig = Rig(tmp_path, store)
        await rig.job("job", no_events)
        await rig.copier.look()
        await rig.copier.remove("job")
        assert list(rig.path.iterdir()) == []


def test_the_job_object_reads_copies_and_says_what_needs_a_head(tmp_path: Path):
    values = [1, 2.5, "three"]

    @in_a_loop
    async def write() -> None:
        async with opened(tmp_path / "store") as store:
            rig = Rig(tmp_path, store)

            async def events(number: int) -> list[Event]:
                return [Output(1, STDOUT, b"hello\n"), Results(0, 3, False, serialize.dump_value(values))]

            await rig.job("job-1", events)
            await rig.copier.look()

    write()
    connection = Connection(CopiesTarget(replace(CLUSTER, store=f"file://{tmp_path}/bucket")))
    try:
        job = Job.told(connection, connection.ask(GetJob("job-1")))
        assert (job.results(), job.result(2), job.status) == (values, "three", "done")
        assert dict(job.iter_results()) == dict(enumerate(values))
        assert [(line.input_index, line.text) for line in job.logs()] == [(1, "hello")]
        assert job.errors() == [] and str(job.progress) == "3/3 done"
        for needs_a_head in (job.delete, job.retry_failed, lambda: job.input(0), lambda: connection.ask(Cancel("x"))):
            with pytest.raises(ClusterLost, match="burla cluster create c"):
                needs_a_head()
    finally:
        connection.close()


def test_a_copy_is_a_database_with_the_rows_of_its_job_alone(tmp_path: Path):
    @in_a_loop
    async def write() -> None:
        async with opened(tmp_path / "store") as store:
            rig = Rig(tmp_path, store)
            await rig.job("job-1", no_events)
            await rig.job("job-2", no_events)
            await rig.copier.look()

    write()
    folder = tmp_path / "bucket" / "c" / "job-2"
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        assert database.execute("SELECT id FROM jobs").fetchall() == [("job-2",)]
        assert database.execute("SELECT count(*) FROM events").fetchall() == [(1,)]
    assert json.loads((folder / MANIFEST).read_text())["job"]["id"] == "job-2"


def test_only_the_url_of_a_folder_that_outlives_machines_is_taken(monkeypatch: pytest.MonkeyPatch):
    for wrong in ("s3://", "memory://x", "/a/folder", "http://host/x", "s3:bucket"):
        with pytest.raises(InvalidValue, match="it must be the URL of a folder"):
            bucket.check(wrong)
    assert bucket.check("file:///mnt/results/") == "file:///mnt/results"

    monkeypatch.setitem(bucket.PACKAGES, "s3", "no-such-package")
    with pytest.raises(MissingExtra, match="pip install no-such-package"):
        bucket.check("s3://bucket/results")
    monkeypatch.setitem(bucket.PACKAGES, "s3", "distributed")
    import distributed

    assert bucket.requirements("s3://bucket/results") == [f"distributed=={distributed.__version__}"]
