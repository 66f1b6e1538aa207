"""The store's database as its one writer sees it: transactions that are fenced by the epoch, and tidying up."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import struct
from pathlib import Path

from burla.errors import StoreBusy, StoreFull
from burla.head import crashpoints, records
from burla.head.operations import Sql

RESERVE_BYTES = 4_000_000  # given up for a deletion while the disk is full
FREE_PAGES = 256  # so many unused pages the database keeps for what comes
STEP_PAGES = 256  # are given back at a time: SQLite's cache holds them, so that few go through the log
TAIL = struct.Struct("<QI")  # how many commits there were, and a checksum


class Database:
    """See the module; of one thread, but for its making."""

    def __init__(self, folder: Path, epoch: int):
        self._folder = folder
        self._epoch = epoch
        self._durable = True  # how the connection is set
        self._tail = os.open(folder / "tail", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._connection = connect(folder)

    def close(self) -> None:
        self._connection.close()
        os.close(self._tail)

    def commit(self, statements: list[Sql], durable: bool) -> None:
        """Write rows, all or none. Raises StoreBusy if another head has the store now."""
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

    def commit_deletes(self, statements: list[Sql], durable: bool) -> None:
        """Delete rows with little room: zeros in their place would have to go through the log."""
        self._connection.execute("PRAGMA secure_delete=OFF")
        try:
            self.commit(statements, durable)
        finally:
            self._connection.execute("PRAGMA secure_delete=ON")

    def give_back(self) -> bool:
        """Return some of the room that deleted rows took to the disk; whether there is more of it."""
        before = self._free_pages()
        if before > FREE_PAGES:
            self._tidy(f"PRAGMA incremental_vacuum({STEP_PAGES})")
        return FREE_PAGES < self._free_pages() < before

    def _free_pages(self) -> int:
        return self._connection.execute("PRAGMA freelist_count").fetchone()[0]

    def wipe(self) -> None:
        """Empty the log."""
        self._tidy("PRAGMA wal_checkpoint(TRUNCATE)")

    def _tidy(self, sql: str) -> None:
        """Do what a full disk may prevent: it is done the next time."""
        try:
            self._connection.executescript(sql)  # to its end: execute would give back one page
        except sqlite3.Error as error:
            if not is_full(self._folder, error):
                raise


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
