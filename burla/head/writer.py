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

from burla.errors import BlobBroken, BurlaError, ClusterLost, StoreBusy, StoreFull
from burla.head import crashpoints, records
from burla.head.files import Files

log = logging.getLogger(__name__)

AGAIN_S = 0.5  # between tries while the disk is full
RESERVE_BYTES = 4_000_000  # given up for a deletion while the disk is full
FREE_PAGES = 256  # so many unused pages the database keeps for what comes
TAIL = struct.Struct("<Q")


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
    source: int
    target: int
    name: str


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
        self._durable = True  # how the connection is set
        self._tail = os.open(folder / "tail", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        self._connection = connect(self._folder)
        try:
            while not self._closing:
                batch = self._gather(self._queue.get())
                self._write(batch)
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
        deleted = [operation.job for operation in batch.operations if isinstance(operation, DeleteJob)]
        for job in deleted:
            self._files.finish_delete(job)
        crashpoints.reach("store.before_tell")
        callbacks = [operation.callback for operation in batch.operations if isinstance(operation, Tell)]
        if callbacks:
            self._call(_call_all, callbacks)
        if deleted:
            self._give_back()

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
                case LinkFile(source, target, name):
                    self._files.link(source, target, name, batch.durable)
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
                    error = self._error(error)
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
        os.pwrite(self._tail, TAIL.pack(commits + 1), 0)

    def _give_back(self) -> None:
        """Return room that deleted rows took to the disk; what a full disk prevents is done the next time."""
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        if free > FREE_PAGES:
            try:
                self._connection.execute(f"PRAGMA incremental_vacuum({free})").fetchall()
            except sqlite3.Error as error:
                if not self._is_full(error):
                    raise

    # a full disk

    def _is_full(self, error: Exception) -> bool:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_IOERR:  # of the shared memory of its log, for which there is no room
                free = os.statvfs(self._folder)
                return free.f_bavail * free.f_frsize < RESERVE_BYTES
            return code == sqlite3.SQLITE_FULL
        return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)

    def _error(self, error: Exception) -> StoreFull:
        return StoreFull(
            f"the disk of the cluster's head is full ({self._folder}: {error}). Calls pause, nothing is lost, and all "
            "goes on when there is room: delete files there, or old jobs (burla jobs, burla job delete ID).",
            path=self._folder,
        )

    def _wait_for_room(self, batch: Batch, error: Exception) -> bool:
        """Take in what comes, delete what is to be deleted; return False if the head ends."""
        if not self._full:
            self._full = True
            log.warning("the disk is full: %s", error)
            self._call(self._on_full, self._error(error))
        try:
            more = self._gather(self._queue.get(timeout=AGAIN_S))
        except queue.Empty:
            return True
        batch.operations += more.operations
        batch.durable |= more.durable
        deletes = Batch([one for one in more.operations if isinstance(one, DeleteJob)], batch.durable)
        if deletes.operations:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / "reserve").unlink()
            try:
                self._attempt_deletes(deletes)
            except (sqlite3.Error, OSError) as error:
                if not self._is_full(error):
                    raise
                log.warning("no room to delete a job: %s", error)
        return not self._closing

    def _attempt_deletes(self, deletes: Batch) -> None:
        """Delete rows and files; both are deleted once more in their turn, which does no harm."""
        jobs = [operation for operation in deletes.operations if isinstance(operation, DeleteJob)]
        for one in jobs:
            self._files.begin_delete(one.job)
        self._commit([statement for one in jobs for statement in one.statements], deletes.durable)
        for one in jobs:
            self._files.finish_delete(one.job)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

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
    if read_only:
        connection.execute("PRAGMA query_only=1")
    else:
        connection.execute("PRAGMA synchronous=FULL")
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


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _refuse(done: asyncio.Future[None], error: BurlaError) -> None:
    if not done.done():
        done.set_exception(error)


def lost(error: Exception) -> ClusterLost:
    """Return what those are told who wait for what can no longer be written."""
    return ClusterLost(f"the head cannot write its store any more: {error}")
