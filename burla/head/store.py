"""The head's durable record of jobs: a database for small things, files for large ones.

Everything here is called in the thread of the head's loop. What is written is queued, handed over once for each turn of
the loop, and committed in groups by the writer's thread; what is read comes from a thread of its own, and is committed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from burla.errors import StoreDamaged, StoreFull
from burla.head import records, recovery
from burla.head.files import Files
from burla.head.records import Damaged, Status, StoredJob, check_facts, first_key, number_of
from burla.head.writer import (
    Append,
    Batch,
    DeleteJob,
    LinkFile,
    Operation,
    Sql,
    SyncFiles,
    Tell,
    WriteFile,
    Writer,
    connect,
    delete_statements,
    lost,
)
from burla.protocol import MESSAGE_BYTES, Blob, Block, Event, JobSpec, Kind, Payload

log = logging.getLogger(__name__)

ROWS = 20_000  # the most that one reading looks at
_T = TypeVar("_T")

_ADD_JOB = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL)"
_ADD_BLOCK = "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)"
_ADD_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SET_STATUS = "UPDATE jobs SET status = ?, status_crc = ? WHERE number = ?"
_SET_SIZE = "UPDATE jobs SET size_bytes = ?, size_crc = ? WHERE number = ?"
_JOB = "SELECT * FROM jobs"
_BLOCK = "SELECT key, count, each, form, payload, file, crc FROM blocks"
_EVENT = "SELECT key, kind, start, stop, detail, form, payload, file, crc FROM events"


@dataclass(slots=True)
class Replay:
    """What is needed to go on with a job. `damage`: why that is not possible."""

    job: StoredJob
    blocks: list[tuple[int, int]] = field(default_factory=list)  # (first, count)
    outcomes: list[tuple[int, int, bool]] = field(default_factory=list)  # (start, stop, failed)
    crashes: dict[int, int] = field(default_factory=dict)
    trades: dict[str, int] = field(default_factory=dict)
    output_bytes: int = 0
    damage: StoreDamaged | None = None


class Store:
    """See the module. `remarks`: what a user should know of it. `epoch`: how often it has been opened."""

    def __init__(self, folder: Path, found: recovery.Found, on_full: Any, on_broken: Any):
        self.folder = folder
        self.epoch = found.epoch
        self.remarks = found.remarks
        self._lock = found.lock
        self._files = Files(folder / "files")
        self._jobs = found.jobs
        self._status: dict[int, Status] = {}
        self._ids: dict[int, str] = dict(found.ids)
        self._sizes: dict[int, int] = dict(found.sizes)
        self._grown: set[int] = set()  # jobs whose size has changed since it was written
        self._batch = Batch()
        self._handing_over = False
        self._closed = False
        self._broken: Exception | None = None
        self._own_on_broken = on_broken
        self._waiting: set[asyncio.Future[None]] = set()
        self._writer = Writer(folder, self._files, found.epoch, on_full, self._on_broken)
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "burla-store-reader")
        self._connection = connect(folder, read_only=True)  # of the reader's thread
        self._here = connect(folder, read_only=True)  # of the loop's

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        on_full: Callable[[StoreFull | None], None],
        on_broken: Callable[[Exception], None],
    ) -> Store:
        """Open the store of a folder, made if it is missing; to be called in the loop.

        `on_full` is told when the disk is full, and with None when it is not any more; `on_broken`, when nothing can be
        written any more. Raises StoreBusy, StoreUnknown.
        """
        return cls(folder, recovery.open_store(folder), on_full, on_broken)

    def close(self) -> None:
        """Write what is queued, and let others use the store."""
        if self._closed:
            return
        self._closed = True
        self._hand_over()
        self._writer.close()
        self._reader.shutdown()
        self._connection.close()
        self._here.close()
        recovery.unlock(self._lock)

    @property
    def used_bytes(self) -> int:
        """About what all jobs take."""
        return sum(self._sizes.values())

    # writing

    def add_job(self, spec: JobSpec, session: str, created_at_s: float, durable: bool) -> int:
        """Write a new job down; return its number."""
        self._jobs += 1
        number = self._jobs
        text = records.dump_spec(spec)
        row = (number, spec.id, text, session, float(created_at_s))
        function = records.store_payload(spec.function, Files.new_name, *records.function_facts(row))
        if function.content is not None and function.file is not None:
            self._put(WriteFile(number, function.file, function.content), durable)
        self._status[number] = status = Status()
        self._ids[number] = spec.id
        self._put(Sql(_ADD_JOB, (*row, *function.columns, *records.dump_status(number, status))), durable)
        self._put(Sql("UPDATE meta SET jobs = ?", (number,)), durable)
        self._grow(number, len(text) + _size(spec.function))
        return number

    def update_job(self, number: int, durable: bool, **changes: Any) -> None:
        """Change fields of a job's `Status`. When it becomes detached, all of it has to survive the machine."""
        if changes.get("detached"):
            self._put(SyncFiles(number), durable)
        self._status[number] = status = replace(self._status[number], **changes)
        self._put(Sql(_SET_STATUS, (*records.dump_status(number, status), number)), durable)

    def add_blocks(self, number: int, blocks: tuple[Block, ...], durable: bool) -> None:
        """Add inputs of a job."""
        for block in blocks:
            row, content, name = records.block_row(number, block, Files.new_name)
            if content is not None and name is not None:
                self._put(WriteFile(number, name, content), durable)
            self._put(Sql(_ADD_BLOCK, row), durable)
            self._grow(number, _size(block.payload))

    def add_event(self, number: int, event_number: int, event: Event, durable: bool) -> None:
        """Add an event to a job's journal."""
        row, content, name = records.event_row(first_key(number) + event_number, event, Files.new_name)
        if content is not None and name is not None:
            self._put(WriteFile(number, name, content), durable)
        self._put(Sql(_ADD_EVENT, row), durable)
        self._grow(number, len(content or row[6] or b"") + 50)

    def set_crashes(self, number: int, index: int, attempts: int, durable: bool) -> None:
        """Note how often a call has ended its process."""
        crc = records.facts_crc(number, index, attempts)
        self._put(Sql("INSERT OR REPLACE INTO crashes VALUES (?, ?, ?, ?)", (number, index, attempts, crc)), durable)

    def set_trade(self, number: int, node: str, trade: int, durable: bool) -> None:
        """Note the newest trade of a node about a job."""
        crc = records.facts_crc(number, node, trade)
        self._put(Sql("INSERT OR REPLACE INTO trades VALUES (?, ?, ?, ?)", (number, node, trade, crc)), durable)

    def set_node(self, node: str, present: bool) -> None:
        """Note that a node is a member, or is none any more."""
        sql = "INSERT OR REPLACE INTO nodes VALUES (?)" if present else "DELETE FROM nodes WHERE node = ?"
        self._put(Sql(sql, (node,)), False)

    def forget_nodes(self) -> None:
        """No node of before can come back."""
        self._put(Sql("DELETE FROM nodes", ()), False)

    async def put_piece(
        self, number: int, blob_id: str, offset_bytes: int, data: bytes, crc: int | None, durable: bool
    ) -> None:
        """Add a piece to a blob; `crc` comes with the last one. Raises BlobBroken, StoreFull, ClusterLost."""
        self._files.path(number, blob_id)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(Append(number, blob_id, offset_bytes, data, crc, done), durable)
        self._grow(number, len(data))
        await self._committed(done)

    async def link_blob(self, source: int, target: int, blob: Blob, durable: bool) -> None:
        """Give another job the same blob. Raises StoreDamaged if it is gone, ClusterLost."""
        self._files.path(target, blob.id)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(LinkFile(source, target, blob.id, blob.size_bytes, done), durable)
        self._grow(target, blob.size_bytes)
        await self._committed(done)

    def delete_job(self, number: int) -> None:
        """Delete a job, its rows and its files."""
        self._status.pop(number, None)
        self._sizes.pop(number, None)
        self._ids.pop(number, None)
        self._grown.discard(number)
        self._put(DeleteJob(number, delete_statements(number)), False)

    async def committed(self) -> None:
        """Return when all that was written before is committed. Raises ClusterLost if that cannot be any more."""
        await self._committed(asyncio.get_running_loop().create_future())

    async def _committed(self, done: asyncio.Future[None]) -> None:
        if self._broken is not None:
            raise lost(self._broken)
        self._waiting.add(done)
        self.after_commit(lambda: None if done.done() else done.set_result(None))
        try:
            await done
        finally:
            self._waiting.discard(done)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this in the loop when all that was written before is committed."""
        self._put(Tell(callback), False)

    def _put(self, operation: Operation, durable: bool) -> None:
        self._batch.operations.append(operation)
        self._batch.durable |= durable
        if not self._handing_over:
            self._handing_over = True
            asyncio.get_running_loop().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        batch, self._batch = self._batch, Batch()
        grown, self._grown = self._grown, set()
        for number in grown:
            size_bytes = self._sizes[number]
            batch.operations.append(Sql(_SET_SIZE, (size_bytes, records.facts_crc(number, size_bytes), number)))
        if batch.operations:
            self._writer.put(batch)

    def _grow(self, number: int, size_bytes: int) -> None:
        self._sizes[number] = self._sizes.get(number, 0) + size_bytes
        self._grown.add(number)

    def _on_broken(self, error: Exception) -> None:
        self._broken = error
        for done in self._waiting:
            if not done.done():
                done.set_exception(lost(error))
        self._own_on_broken(error)

    # reading

    async def events(
        self,
        number: int,
        after: int,
        kinds: Kind = Kind.ALL,
        index: int | None = None,
        limit_bytes: int = MESSAGE_BYTES,
    ) -> tuple[list[Event], int]:
        """Return events of a job from number `after` on, and the number after the last one that was looked at.

        One that is damaged is returned as `Lost`, or as a notice that says so.
        """
        return await self._read(lambda: self._events(number, after, kinds, index, limit_bytes))

    def _events(
        self, number: int, after: int, kinds: Kind, index: int | None, limit_bytes: int
    ) -> tuple[list[Event], int]:
        low = first_key(number)
        last = self._connection.execute(
            "SELECT max(key) FROM (SELECT key FROM events WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)",
            (low + after, first_key(number + 1), ROWS),
        ).fetchone()[0]
        if last is None:
            return [], after
        # what is of no kind is damaged, and may have been of any
        where = "key >= ? AND key <= ? AND ((kind & ?) IS NOT 0 OR kind NOT IN (1, 2, 4, 8, 16))"
        values = [low + after, last, int(kinds)]
        if index is not None:
            where, values = f"{where} AND start <= ? AND ? < stop", [*values, index, index]
        events: list[Event] = []
        size = 0
        for row in self._connection.execute(f"{_EVENT} WHERE {where} ORDER BY key", values):
            events.append(records.load_event(row, lambda name: self._files.read(number, name)))
            size += _event_size(events[-1])
            if size >= limit_bytes:
                return events, number_of(row[0]) + 1
        return events, number_of(last) + 1

    async def blocks(self, number: int, index: int, limit_bytes: int = MESSAGE_BYTES) -> list[Block]:
        """Return blocks of a job, the first of them with input `index`. Raises StoreDamaged."""
        return await self._read(lambda: self._blocks(self._connection, number, index, limit_bytes))

    def block_now(self, number: int, first: int) -> Block:
        """Return the block whose first input is `first`. Raises StoreDamaged."""
        return self._blocks(self._here, number, first, 1)[0]

    def _blocks(self, connection: sqlite3.Connection, number: int, index: int, limit_bytes: int) -> list[Block]:
        low = first_key(number)
        sql = (
            f"{_BLOCK} WHERE key >= (SELECT max(key) FROM blocks WHERE key >= ? AND key <= ?) AND key < ? ORDER BY key"
        )
        found: list[Block] = []
        size = 0
        for row in connection.execute(sql, (low, low + index, first_key(number + 1))):
            try:
                found.append(records.load_block(row, lambda name: self._files.read(number, name)))
            except (Damaged, OSError) as error:
                first, count = number_of(row[0]), row[1]
                raise self._damaged(
                    number, f"inputs {first} to {first + count - 1}", error, first, first + count
                ) from error
            size += _size(found[-1].payload)
            if size >= limit_bytes:
                break
        if not found or found[0].first + found[0].count <= index:
            raise self._damaged(number, f"input {index}", "it is missing", index, index + 1)
        return found

    async def piece(self, number: int, blob_id: str, offset_bytes: int) -> bytes:
        """Return at most `MESSAGE_BYTES` of a blob, from an offset on. Raises StoreDamaged."""

        def read() -> bytes:
            try:
                data = self._files.read_piece(number, blob_id, offset_bytes)
            except OSError as error:
                raise self._damaged(number, f"value {blob_id}", error) from error
            if not data:
                raise self._damaged(number, f"value {blob_id}", f"it ends after {offset_bytes} bytes")
            return data

        return await self._read(read)

    async def check_blob(self, number: int, blob: Blob) -> None:
        """Read a blob through. Raises StoreDamaged if it is not what was written."""

        def read() -> None:
            size = crc = 0
            try:
                while data := self._files.read_piece(number, blob.id, size):
                    size, crc = size + len(data), zlib.crc32(data, crc)
            except OSError as error:
                raise self._damaged(number, f"value {blob.id}", error) from error
            if (size, crc) != (blob.size_bytes, blob.crc):
                raise self._damaged(number, f"value {blob.id}", "its checksum is wrong")

        await self._read(read)

    async def with_function(self, job: StoredJob) -> StoredJob:
        """Return a job with its function. Raises StoreDamaged."""

        def read() -> Payload:
            row = self._connection.execute(f"{_JOB} WHERE number = ?", (job.number,)).fetchone()
            if row is None:
                raise self._damaged(job.number, "its function", "it was deleted")
            try:
                return records.load_function(row, lambda name: self._files.read(job.number, name))
            except (Damaged, OSError) as error:
                raise self._damaged(job.number, "its function", error) from error

        return replace(job, spec=replace(job.spec, function=await self._read(read)))

    async def jobs(self) -> list[StoredJob]:
        """Return all jobs, the newest first; without those whose rows are damaged."""
        return await self._read(lambda: self._stored(self._connection, "ORDER BY number DESC", ()))

    async def find(self, job_id: str) -> StoredJob | None:
        """Return the job with this id, or the only one whose id begins so. Raises StoreDamaged."""
        if not job_id:
            return None  # the beginning of all
        where = "WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        found = await self._read(lambda: self._stored(self._connection, where, (job_id, job_id + "\U0010ffff")))
        exact = [job for job in found if job.spec.id == job_id]
        return (exact or found)[0] if exact or len(found) == 1 else None

    async def newest(self, owner: str) -> StoredJob | None:
        """Return the newest job of a user."""
        return next((job for job in await self.jobs() if job.spec.owner == owner and job.spec.parent is None), None)

    def _stored(self, connection: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> list[StoredJob]:
        stored = []
        for row in connection.execute(f"{_JOB} {where}", values).fetchall():
            try:
                stored.append(records.load_job(connection, row))
            except Damaged as error:
                log.warning("job %s of the store: %s", row[1], error)
        return stored

    def knows(self, job_id: str) -> bool:
        """Whether there is a job with this id, committed."""
        return self._here.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is not None

    # at the start

    def nodes(self) -> set[str]:
        """Return the nodes that were members when the store was last used."""
        return {node for (node,) in self._here.execute("SELECT node FROM nodes")}

    def unfinished(self) -> list[Replay]:
        """Return the jobs that had not ended, in the order in which they came."""
        found = []
        for job in self._stored(self._here, "ORDER BY number", ()):
            if not job.status.state.ended:
                self._status[job.number] = job.status
                found.append(self._replay(job))
        return found

    def _replay(self, job: StoredJob) -> Replay:
        replay = Replay(job)
        for what, read in (
            ("its inputs", self._replay_blocks),
            ("an outcome", self._replay_events),
            ("what its nodes have told", self._replay_nodes),
            ("its function", self._replay_function),
        ):
            try:
                read(replay)
            except (Damaged, OSError) as error:
                replay.damage = self._damaged(job.number, what, error)
        return replay

    def _replay_blocks(self, replay: Replay) -> None:
        keys = first_key(replay.job.number), first_key(replay.job.number + 1)
        sql = "SELECT key, count, each, form, file, crc FROM blocks WHERE key >= ? AND key < ? ORDER BY key"
        end = 0
        for key, count, each, form, file, crc in self._here.execute(sql, keys):
            first = number_of(key)
            check_facts(form, file, crc, key, count, each)
            if first != end:
                raise Damaged(f"those from {end} to {first - 1} are missing")
            replay.blocks.append((first, count))
            end = first + count
        if replay.job.status.complete and end != replay.job.status.total:
            raise Damaged(f"those from {end} on are missing")

    def _replay_events(self, replay: Replay) -> None:
        keys = first_key(replay.job.number), first_key(replay.job.number + 1)
        sql = (
            "SELECT key, kind, start, stop, detail, form, file, crc FROM events "
            "WHERE key >= ? AND key < ? AND (kind IN (4, 8, 16)) IS NOT 1"
        )
        outcomes: list[tuple[int, int, bool]] = []
        for key, kind, start, stop, detail, form, file, crc in self._here.execute(sql, keys):
            check_facts(form, file, crc, key, kind, start, stop, detail)
            outcomes.append((start, stop, kind == Kind.FAILURE))
        replay.outcomes = _merged(outcomes)
        sql = "SELECT count(*), max(key) FROM events WHERE key >= ? AND key < ?"
        count, last = self._here.execute(sql, keys).fetchone()
        if count and count != number_of(last) + 1:
            raise Damaged("events are missing")
        sql = "SELECT sum(length(payload)) FROM events WHERE key >= ? AND key < ? AND kind = ?"
        replay.output_bytes = self._here.execute(sql, (*keys, int(Kind.OUTPUT))).fetchone()[0] or 0

    def _replay_nodes(self, replay: Replay) -> None:
        number = replay.job.number
        for found, table in ((replay.crashes, "crashes"), (replay.trades, "trades")):
            for _, key, value, crc in self._here.execute(f"SELECT * FROM {table} WHERE job = ?", (number,)):
                if records.facts_crc(number, key, value) != crc:
                    raise Damaged("its checksum is wrong")
                found[key] = value

    def _replay_function(self, replay: Replay) -> None:
        number = replay.job.number
        row = self._here.execute(f"{_JOB} WHERE number = ?", (number,)).fetchone()
        records.load_function(row, lambda name: self._files.read(number, name))

    def _damaged(self, number: int, what: str, why: object, start: int = 0, stop: int = 0) -> StoreDamaged:
        job = self._ids.get(number, f"number {number}")
        return StoreDamaged(
            f"what the head had stored of job {job} cannot be read any more: {what}: {why}. "
            "Other jobs are not concerned.",
            job=job,
            start=start,
            stop=stop,
        )

    async def _read(self, read: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)


def _merged(outcomes: list[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    """Return outcomes in order, as few as can be: of a million calls there may be a million rows."""
    merged: list[tuple[int, int, bool]] = []
    for start, stop, failed in sorted(outcomes):
        if merged and merged[-1][1:] == (start, failed):
            start = merged.pop()[0]
        merged.append((start, stop, failed))
    return merged


def _size(payload: Payload) -> int:
    return len(payload) + 50 if isinstance(payload, bytes) else 50


def _event_size(event: Event) -> int:
    payload = getattr(event, "payload", None) or getattr(event, "data", None)
    return 100 + (len(payload) if isinstance(payload, bytes) else 0)
