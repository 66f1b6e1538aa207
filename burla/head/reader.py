"""The reading side of the store. It sees what is committed, and everything that it returns has been checked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from burla import outputs
from burla.errors import StoreDamaged
from burla.head import records
from burla.head.database import connect
from burla.head.files import Files
from burla.head.records import Damaged, StoredJob, check_facts, first_key, number_of
from burla.protocol import MESSAGE_BYTES, Blob, Block, Event, Kind, Payload

log = logging.getLogger(__name__)

ROWS = 20_000  # the most that one reading looks at
_T = TypeVar("_T")

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


class Reader:
    """Reads in a thread of its own; what ends in `_now`, and what is needed at the start, in the loop's."""

    def __init__(self, folder: Path, files: Files, ids: dict[int, str]):
        self._files = files
        self._ids = ids
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "burla-store-reader")
        self._connection = connect(folder, read_only=True)  # of the reader's thread
        self._here = connect(folder, read_only=True)  # of the loop's

    def close(self) -> None:
        """Read no more."""
        self._reader.shutdown()
        self._connection.close()
        self._here.close()

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
            event = records.load_event(row, lambda name: self._files.read(number, name))
            size += _event_size(event)
            if index is None or (event := outputs.about(event, index)) is not None:
                events.append(event)
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
            size += size_bytes(found[-1].payload)
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

    async def jobs(
        self, wanted: Callable[[StoredJob], bool] = lambda job: True, limit: int | None = None
    ) -> list[StoredJob]:
        """Return the jobs that are wanted, the newest first; without those whose rows are damaged."""
        rows = self._stored(self._connection, "ORDER BY number DESC", ())
        return await self._read(lambda: list(itertools.islice(filter(wanted, rows), limit)))

    async def find(self, job_id: str) -> StoredJob | None:
        """Return the job with this id, or the only one whose id begins so. Raises StoreDamaged."""
        if not job_id:
            return None  # the beginning of all
        where = "WHERE id >= ? AND id < ? ORDER BY id LIMIT 2"
        found = await self._read(lambda: list(self._stored(self._connection, where, (job_id, job_id + "\U0010ffff"))))
        exact = [job for job in found if job.spec.id == job_id]
        return (exact or found)[0] if exact or len(found) == 1 else None

    async def newest(self, owner: str) -> StoredJob | None:
        """Return the newest job of a user."""
        return next(iter(await self.jobs(lambda job: job.spec.owner == owner and job.listed, 1)), None)

    def _stored(self, connection: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Iterator[StoredJob]:
        for row in connection.execute(f"{_JOB} {where}", values):
            try:
                yield records.load_job(row)
            except Damaged as error:
                log.warning("job %s of the store: %s", row[1], error)

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
        if end != replay.job.extent.inputs:
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
        sql = "SELECT count(*) FROM events WHERE key >= ? AND key < ?"
        if self._here.execute(sql, keys).fetchone() != (replay.job.events,):
            raise Damaged("events are missing")
        sql = "SELECT sum(length(payload)) FROM events WHERE key >= ? AND key < ? AND kind = ?"
        replay.output_bytes = self._here.execute(sql, (*keys, int(Kind.OUTPUT))).fetchone()[0] or 0
        sql = "SELECT file FROM events WHERE key >= ? AND key < ? AND kind = ? AND form = ?"
        for (name,) in self._here.execute(sql, (*keys, int(Kind.OUTPUT), records.FILE)):
            with contextlib.suppress(FileNotFoundError):  # of a line that is gone, its reader is told
                replay.output_bytes += self._files.path(replay.job.number, name).stat().st_size

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


def size_bytes(payload: Payload) -> int:
    """Return about how much a payload takes in a message."""
    return len(payload) + 50 if isinstance(payload, bytes) else 50


def _event_size(event: Event) -> int:
    payload = next((getattr(event, name) for name in ("payload", "data", "packed") if hasattr(event, name)), None)
    return 100 + (len(payload) if isinstance(payload, bytes) else 0)
