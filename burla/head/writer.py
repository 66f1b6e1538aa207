"""The thread that writes the store: all that is queued becomes one transaction; a full disk is waited out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import queue
import sqlite3
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burla.errors import BlobBroken, BurlaError, ClusterLost, StoreBusy, StoreDamaged, StoreFull
from burla.head import crashpoints, records
from burla.head.files import Files

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # between tries while the disk is full
WIPE_AFTER_S = 1.0  # of quiet, after a deletion
RESERVE_BYTES = 4_000_000  # given up for a deletion while the disk is full
FREE_PAGES = 256  # so many unused pages the database keeps for what comes
STEP_PAGES = 256  # are given back at a time: SQLite's cache holds them, so that few go through the log
TAIL = struct.Struct("<QI")  # how many commits there were, and a checksum


@dataclass(frozen=True, slots=True)
class Sql:
    sql: str
    parameters: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class WriteFile:
    job: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class LinkFile:
    """The blob of another job, which may have been deleted, or damaged: that concerns who asks alone."""

    source: int
    target: int
    name: str
    size_bytes: int
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class SyncFiles:
    job: int


@dataclass(slots=True)
class Append:
    """A piece of a blob; what becomes of it concerns its sender alone."""

    job: int
    name: str
    offset_bytes: int
    data: bytes
    crc: int | None
    done: asyncio.Future[None]
    tried: bool = False
    size_bytes: int | None = None  # of the blob, after its last piece


@dataclass(frozen=True, slots=True)
class DeleteJob:
    job: int
    statements: tuple[Sql, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Call this in the loop, once what stands before is committed."""

    callback: Callable[[], None]


Operation = Sql | WriteFile | LinkFile | SyncFiles | Append | DeleteJob | Tell


@dataclass(slots=True)
class Batch:
    """What is committed together. `durable`: it has to survive the machine."""

    operations: list[Operation] = field(default_factory=list)
    durable: bool = False


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
        self._epoch = epoch
        self._on_full = on_full
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._closing = False
        self._full = False
        self._to_wipe = False  # the log still has what was deleted
        self._loose = False  # there may be unused pages to give back
        self._durable = True  # how the connection is set
        self._tail = os.open(folder / "tail", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._connection = connect(folder)  # before the reserve, because its shared memory takes room
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
        os.close(self._tail)

    # the thread

    def _run(self) -> None:
        try:
            while not self._closing:
                try:
                    first = self._queue.get(timeout=WIPE_AFTER_S if self._to_wipe else None)
                except queue.Empty:
                    self._wipe()
                else:
                    self._write(self._gather(first))
                while self._loose and self._queue.empty():
                    self._give_back()
            self._wipe()
        except Exception as error:  # whatever it is: nothing may be acknowledged any more
            log.exception("the store cannot be written")
            self._call(self._on_broken, error)
        finally:
            self._connection.close()

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
        deleted = _deleted(batch.operations)
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
            self._commit(statements, batch.durable)

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

    def _commit(self, statements: list[Sql], durable: bool) -> None:
        connection = self._connection
        if durable != self._durable:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        connection.execute("BEGIN IMMEDIATE")
        try:
            epoch, commits = connection.execute("SELECT epoch, commits FROM meta").fetchone()
            if epoch != self._epoch:
                raise StoreBusy(f"another head has taken over the store in {self._folder}", path=self._folder)
            for sql, group in itertools.groupby(statements, lambda one: one.sql):
                connection.executemany(sql, [one.parameters for one in group])
            connection.execute("UPDATE meta SET commits = ?", (commits + 1,))
            crashpoints.reach("store.before_commit")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        crashpoints.reach("store.after_commit")
        os.pwrite(self._tail, TAIL.pack(commits + 1, records.facts_crc(commits + 1)), 0)

    def _give_back(self) -> None:
        """Return some of the room that deleted rows took to the disk."""
        before = self._free_pages()
        if before > FREE_PAGES:
            self._tidy(f"PRAGMA incremental_vacuum({STEP_PAGES})")
        self._loose = FREE_PAGES < self._free_pages() < before

    def _free_pages(self) -> int:
        return self._connection.execute("PRAGMA freelist_count").fetchone()[0]

    def _wipe(self) -> None:
        """Empty the log."""
        self._to_wipe = False
        self._tidy("PRAGMA wal_checkpoint(TRUNCATE)")

    def _tidy(self, sql: str) -> None:
        """Do what a full disk may prevent: it is done the next time."""
        try:
            self._connection.executescript(sql)  # to its end: execute would give back one page
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise

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
            more = Batch() if _deleted(fresh) else self._gather(self._queue.get(timeout=AGAIN_S))
        except queue.Empty:
            return True
        batch.operations += more.operations
        batch.durable |= more.durable
        linked = {one.source for one in batch.operations if isinstance(one, LinkFile)}  # their files are still needed
        deletes = [one for one in _deleted([*fresh, *more.operations]) if one.job not in linked]
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
        self._connection.execute("PRAGMA secure_delete=OFF")  # zeros would take room in the log
        try:
            self._commit([statement for one in deletes for statement in one.statements], durable)
        finally:
            self._connection.execute("PRAGMA secure_delete=ON")
        for one in deletes:
            self._files.finish_delete(one.job)
        self._loose = True
        while self._loose:  # step by step, because what is given back goes through the log
            self._wipe()
            self._give_back()
        self._wipe()

    def _make_reserve(self) -> None:
        path = self._folder / "reserve"
        if path.exists() and path.stat().st_size == RESERVE_BYTES:
            return
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(bytes(RESERVE_BYTES))

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *arguments)


def connect(folder: Path, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the store's database, in autocommit mode."""
    connection = sqlite3.connect(folder / "store.db", timeout=30, isolation_level=None, check_same_thread=False)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # of a damaged row, for its checksum to tell
    if read_only:
        connection.execute("PRAGMA query_only=1")
    else:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        connection.execute("PRAGMA cell_size_check=1")
    return connection


def delete_statements(number: int) -> tuple[Sql, ...]:
    """Return what deletes all rows of a job."""
    keys = (records.first_key(number), records.first_key(number + 1))
    return (
        *(Sql(f"DELETE FROM {table} WHERE key >= ? AND key < ?", keys) for table in ("blocks", "events")),
        *(Sql(f"DELETE FROM {table} WHERE job = ?", (number,)) for table in records.JOB_TABLES),
        Sql("DELETE FROM jobs WHERE number = ?", (number,)),
    )


def is_full(folder: Path, error: Exception) -> bool:
    """Whether an error says that the disk is full."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:  # of the shared memory of its log, for which there is no room
            free = os.statvfs(folder)
            return free.f_bavail * free.f_frsize < RESERVE_BYTES
        return code == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full(folder: Path, error: Exception) -> StoreFull:
    """Return what is said of a full disk."""
    return StoreFull(
        f"the disk of the cluster's head is full ({folder}: {error}). Calls pause, nothing is lost, and all "
        "goes on when there is room: delete files there, or old jobs (burla jobs, burla job delete ID).",
        path=folder,
    )


def _deleted(operations: list[Operation]) -> list[DeleteJob]:
    return [operation for operation in operations if isinstance(operation, DeleteJob)]


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _refuse(done: asyncio.Future[None], error: BurlaError) -> None:
    if not done.done():
        done.set_exception(error)


def lost(error: Exception) -> ClusterLost:
    """Return what those are told who wait for what can no longer be written."""
    return ClusterLost(f"the head cannot write its store any more: {error}")
