"""The thread that writes the store: all that is queued becomes one transaction; a full disk is waited out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burla.errors import BlobBroken, BurlaError, ClusterLost, StoreDamaged, StoreFull
from burla.head import crashpoints
from burla.head.database import RESERVE_BYTES, Database, full, is_full
from burla.head.files import Files
from burla.head.operations import Append, Batch, DeleteJob, LinkFile, Sql, SyncFiles, Tell, WriteFile, deletions

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # between tries while the disk is full
WIPE_AFTER_S = 1.0  # of quiet, after a deletion


class Writer:
    """See the module. `on_full` and `on_broken` are called in the loop."""

    def __init__(
        self,
        folder: Path,
        files: Files,
        epoch: int,
        on_full: Callable[[StoreFull | None], None],
        on_broken: Callable[[Exception], None],
    ):
        self._folder = folder
        self._files = files
        self._on_full = on_full
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._closing = False
        self._full = False
        self._to_wipe = False  # the log still has what was deleted
        self._loose = False  # there may be unused pages to give back
        self._database = Database(folder, epoch)  # before the reserve, because its shared memory takes room
        with contextlib.suppress(OSError):  # a full disk: the first write finds that, and says so
            self._make_reserve()
        self._thread = threading.Thread(target=self._run, name="burla-store", daemon=True)
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Queue a batch."""
        self._queue.put(batch)

    def close(self) -> None:
        """Write what is queued, unless the disk is full, and end."""
        self._queue.put(None)
        self._thread.join()

    # the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    first = self._queue.get(timeout=WIPE_AFTER_S if self._to_wipe else None)
                except queue.Empty:
                    self._to_wipe = False
                    self._database.wipe()
                else:
                    self._write(self._gather(first))
                while self._loose and self._queue.empty():
                    self._loose = self._database.give_back()
            self._database.wipe()
        except Exception as error:  # whatever it is: nothing may be acknowledged any more
            log.exception("the store cannot be written")
            self._call(self._on_broken, error)
        finally:
            self._database.close()

    def _gather(self, first: Batch | None) -> Batch:
        """Return all that is queued as one batch."""
        whole = Batch()
        batch = first
        while True:
            if batch is None:
                self._closing = True
                return whole
            whole.operations += batch.operations
            whole.durable |= batch.durable
            try:
                batch = self._queue.get_nowait()
            except queue.Empty:
                return whole

    def _write(self, batch: Batch) -> None:
        if not batch.operations:
            return
        while True:
            try:
                self._attempt(batch)
                break
            except (sqlite3.Error, OSError) as error:
                if not self._is_full(error):
                    raise
                if not self._wait_for_room(batch, error):
                    return  # the head ends: nobody was told that this is written
        if self._full:
            self._full = False
            self._call(self._on_full, None)
        deleted = deletions(batch.operations)
        for one in deleted:
            self._files.finish_delete(one.job)
        crashpoints.reach("store.before_tell")
        callbacks = [operation.callback for operation in batch.operations if isinstance(operation, Tell)]
        if callbacks:
            self._call(_call_all, callbacks)
        if deleted:
            self._loose = self._to_wipe = True

    def _attempt(self, batch: Batch) -> None:
        """Write files, then rows; all of the rows or none. May be repeated if it fails."""
        if self._full:
            self._make_reserve()
        statements: list[Sql] = []
        for operation in batch.operations:
            match operation:
                case Sql():
                    statements.append(operation)
                case WriteFile(job, name, data):
                    self._files.write(job, name, data, batch.durable)
                case LinkFile():
                    statements += self._link(operation, batch.durable)
                case SyncFiles(job):
                    self._files.sync(job)
                case Append():
                    statements += self._append(operation, batch.durable)
                case DeleteJob(job, deletes):
                    self._files.begin_delete(job)
                    crashpoints.reach("store.in_delete")
                    statements += deletes
                case Tell():
                    pass
        if statements:
            self._database.commit(statements, batch.durable)

    def _link(self, link: LinkFile, durable: bool) -> list[Sql]:
        try:
            self._files.link(link.source, link.target, link.name, durable)
        except FileNotFoundError as error:
            text = f"a value of {link.size_bytes:,} bytes that the head had stored is gone ({error.filename})"
            self._call(_refuse, link.done, StoreDamaged(text, path=error.filename))
            return []
        return [Sql("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (link.target, link.name, link.size_bytes))]

    def _append(self, piece: Append, durable: bool) -> list[Sql]:
        if not piece.tried:
            piece.tried = True
            try:
                piece.size_bytes = self._files.append(
                    piece.job, piece.name, piece.offset_bytes, piece.data, piece.crc, durable
                )
            except (BlobBroken, OSError) as error:
                if isinstance(error, OSError):
                    if not self._is_full(error):
                        raise
                    error = full(self._folder, error)
                self._call(_refuse, piece.done, error)
        if piece.size_bytes is None:
            return []
        return [Sql("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)", (piece.job, piece.name, piece.size_bytes))]

    # a full disk

    def _is_full(self, error: Exception) -> bool:
        return is_full(self._folder, error)

    def _wait_for_room(self, batch: Batch, error: Exception) -> bool:
        """Take in what comes, delete what is to be deleted; return False if the head ends."""
        fresh = []
        if not self._full:
            self._full = True
            fresh = list(batch.operations)
            log.warning("the disk is full: %s", error)
            self._call(self._on_full, full(self._folder, error))
        try:
            more = Batch() if deletions(fresh) else self._gather(self._queue.get(timeout=AGAIN_S))
        except queue.Empty:
            return True
        batch.operations += more.operations
        batch.durable |= more.durable
        linked = {one.source for one in batch.operations if isinstance(one, LinkFile)}  # their files are still needed
        deletes = [one for one in deletions([*fresh, *more.operations]) if one.job not in linked]
        if deletes:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / "reserve").unlink()
            try:
                self._attempt_deletes(deletes, batch.durable)
            except (sqlite3.Error, OSError) as error:
                if not self._is_full(error):
                    raise
                log.warning("no room to delete a job: %s", error)
        return not self._closing

    def _attempt_deletes(self, deletes: list[DeleteJob], durable: bool) -> None:
        """Delete rows and files; both are deleted once more in their turn, which does no harm."""
        for one in deletes:
            self._files.begin_delete(one.job)
        self._database.commit_deletes([statement for one in deletes for statement in one.statements], durable)
        for one in deletes:
            self._files.finish_delete(one.job)
        self._database.wipe()
        while self._database.give_back():  # step by step, because what is given back goes through the log
            self._database.wipe()
        self._database.wipe()

    def _make_reserve(self) -> None:
        path = self._folder / "reserve"
        if path.exists() and path.stat().st_size == RESERVE_BYTES:
            return
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(RESERVE_BYTES))

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _refuse(done: asyncio.Future[None], error: BurlaError) -> None:
    if not done.done():
        done.set_exception(error)


def lost(error: Exception) -> ClusterLost:
    """Return what those are told who wait for what can no longer be written."""
    return ClusterLost(f"the head cannot write its store any more: {error}")
