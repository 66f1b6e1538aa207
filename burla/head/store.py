"""The head's durable record of jobs: a database for small things, files for large ones.

Everything here is called in the thread of the head's loop. What is written is queued, handed over once for each turn of
the loop, and committed in groups by the writer's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from burla.errors import StoreFull
from burla.head import records, recovery
from burla.head.files import Files
from burla.head.operations import (
    Append,
    Batch,
    DeleteJob,
    LinkFile,
    Operation,
    Sql,
    SyncFiles,
    Tell,
    WriteFile,
    delete_statements,
)
from burla.head.reader import Reader, Replay, size_bytes
from burla.head.records import Extent, Status, first_key
from burla.head.writer import Writer, lost
from burla.protocol import Blob, Block, Event, JobSpec

log = logging.getLogger(__name__)

_ADD_JOB = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, NULL)"
_ADD_BLOCK = "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)"
_ADD_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SET_STATUS = "UPDATE jobs SET status = ?, status_crc = ? WHERE number = ?"
_SET_EXTENT = "UPDATE jobs SET size_bytes = ?, inputs = ?, events = ?, extent_crc = ? WHERE number = ?"


class Store(Reader):
    """See the module. `remarks`: what a user should know of it. `epoch`: how often it has been opened."""

    def __init__(self, folder: Path, found: recovery.Found, on_full: Any, on_broken: Any):
        files = Files(folder / "files")
        self.epoch = found.epoch
        self.remarks = found.remarks
        self._lock = found.lock
        self._jobs = found.jobs
        self._status: dict[int, Status] = {}
        self._extents = dict(found.extents)
        self._grown: set[int] = set()  # jobs whose extent has changed since it was written
        self._batch = Batch()
        self._handing_over = False
        self._closed = False
        self._broken: Exception | None = None
        self._own_on_broken = on_broken
        self._waiting: set[asyncio.Future[None]] = set()
        self._writer = Writer(folder, files, found.epoch, on_full, self._on_broken)
        super().__init__(folder, files, dict(found.ids))

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
        super().close()
        recovery.unlock(self._lock)

    @property
    def used_bytes(self) -> int:
        """About what all jobs take."""
        return sum(extent.size_bytes for extent in self._extents.values())

    def unfinished(self) -> list[Replay]:
        """Return the jobs that had not ended, in the order in which they came, to be gone on with."""
        found = super().unfinished()
        self._status |= {replay.job.number: replay.job.status for replay in found}
        return found

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
        self._grow(number, len(text) + size_bytes(spec.function))
        return number

    def update_job(self, number: int, durable: bool, **changes: Any) -> None:
        """Change fields of a job's `Status`. When it becomes detached, all of it has to survive the machine."""
        if changes.get("detached"):
            self._put(SyncFiles(number), durable)
        if number not in self._status:
            return  # it was deleted meanwhile
        self._status[number] = status = replace(self._status[number], **changes)
        self._put(Sql(_SET_STATUS, (*records.dump_status(number, status), number)), durable)

    def add_blocks(self, number: int, blocks: tuple[Block, ...], durable: bool) -> None:
        """Add inputs of a job."""
        for block in blocks:
            row, content, name = records.block_row(number, block, Files.new_name)
            if content is not None and name is not None:
                self._put(WriteFile(number, name, content), durable)
            self._put(Sql(_ADD_BLOCK, row), durable)
            self._grow(number, size_bytes(block.payload), inputs=block.first + block.count)

    def add_event(self, number: int, event_number: int, event: Event, durable: bool) -> None:
        """Add an event to a job's journal."""
        row, content, name = records.event_row(first_key(number) + event_number, event, Files.new_name)
        if content is not None and name is not None:
            self._put(WriteFile(number, name, content), durable)
        self._put(Sql(_ADD_EVENT, row), durable)
        self._grow(number, len(content or row[6] or b"") + 50, events=event_number + 1)

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
        self._extents.pop(number, None)
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
            extent = astuple(self._extents[number])
            batch.operations.append(Sql(_SET_EXTENT, (*extent, records.facts_crc(number, *extent), number)))
        if batch.operations:
            self._writer.put(batch)

    def _grow(self, number: int, size_bytes: int, inputs: int = 0, events: int = 0) -> None:
        before = self._extents.get(number, Extent())
        self._extents[number] = Extent(
            before.size_bytes + size_bytes, max(before.inputs, inputs), max(before.events, events)
        )
        self._grown.add(number)

    def _on_broken(self, error: Exception) -> None:
        self._broken = error
        for done in self._waiting:
            if not done.done():
                done.set_exception(lost(error))
        self._own_on_broken(error)
