"""Opening the store: its lock, its version, its health. A damaged one is set aside, and what is whole carried over."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burla.errors import StoreBusy, StoreUnknown
from burla.head import records
from burla.head.files import Files
from burla.head.records import Damaged, first_key
from burla.head.writer import TAIL, connect, delete_statements

log = logging.getLogger(__name__)

REMARK_S = 7 * 86_400.0  # for so long a remark is shown
_TABLES = ("blocks", "events")


@dataclass(frozen=True, slots=True)
class Found:
    """What an opened store begins with. `jobs`: the highest number of a job so far; `sizes`: of jobs, by number."""

    epoch: int
    remarks: tuple[str, ...]
    lock: int
    jobs: int
    sizes: dict[int, int]


def open_store(folder: Path) -> Found:
    """Make a store ready, whatever has become of it. Raises StoreBusy, StoreUnknown."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        try:
            _check(folder)
        except sqlite3.DatabaseError as error:
            _replace(folder, error)
        return _begin(folder, lock)
    except BaseException:
        unlock(lock)
        raise


def unlock(lock: int) -> None:
    """Let another head use the store."""
    os.close(lock)


def _lock(folder: Path) -> int:
    path = folder.with_name(f"{folder.name}.lock")  # beside it, because a damaged store is renamed
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreBusy(
            f"another head uses the store in {folder}. Only one can: end the other one first (burla cluster stop).",
            path=folder,
        ) from None
    return lock


def _check(folder: Path) -> None:
    """Raise sqlite3.DatabaseError unless the database is sound, StoreUnknown if it is another version's."""
    new = not (folder / "store.db").exists()
    for extra in ("store.db-wal", "store.db-shm", "tail") if new else ():
        (folder / extra).unlink(missing_ok=True)
    fd = os.open(
        folder / "store.db", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )  # SQLite's own files follow its mode
    os.close(fd)
    (folder / "files").mkdir(mode=0o700, exist_ok=True)
    connection = connect(folder)
    try:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise sqlite3.DatabaseError("it has no version")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            insert = "INSERT INTO meta VALUES (1, 0, 0, 0);"
            connection.executescript(f"BEGIN; {records.CREATE} {insert} PRAGMA user_version={records.SCHEMA}; COMMIT;")
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        if schema != records.SCHEMA:
            raise StoreUnknown(
                f"the jobs in {folder} were stored by another version of burla (schema {schema}; this one reads "
                f"{records.SCHEMA}). Use that version to read them, or move the folder away to begin anew: "
                f"mv {folder} {folder}.schema-{schema}",
                path=folder,
                schema=schema,
            )
        found = [text for (text,) in connection.execute("PRAGMA quick_check").fetchall()]
        if found != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(found[:3]))
        if connection.execute("SELECT count(*) FROM meta").fetchone() != (1,):
            raise sqlite3.DatabaseError("its first row is missing")
    finally:
        connection.close()


def _begin(folder: Path, lock: int) -> Found:
    """Begin a new epoch in a sound store, and remove what a crash has left behind."""
    connection = connect(folder)
    try:
        files = Files(folder / "files")
        missing = _missing_commits(folder, connection)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET epoch = epoch + 1")
        connection.execute("DELETE FROM remarks WHERE at_s < ?", (time.time() - REMARK_S,))
        if missing:
            text = (
                f"{_date()}: the last {missing} changes of the store were lost, because its log was damaged: calls "
                "whose outcome was among them run again"
            )
            connection.execute("INSERT INTO remarks VALUES (?, ?)", (time.time(), text))
        for job in files.half_deleted():
            for statement in delete_statements(job):
                connection.execute(statement.sql, statement.parameters)
        connection.execute("COMMIT")
        for job in files.half_deleted():
            files.finish_delete(job)
        sizes = dict(connection.execute("SELECT number, size_bytes FROM jobs").fetchall())
        for job in sizes:
            files.remove_orphans(job, _files_of(connection, job))
        files.remove_strangers(sizes)
        (folder / "tail").unlink(missing_ok=True)
        epoch, jobs = connection.execute("SELECT epoch, jobs FROM meta").fetchone()
        remarks = tuple(text for (text,) in connection.execute("SELECT text FROM remarks ORDER BY at_s"))
        return Found(epoch, remarks, lock, max([jobs, *sizes]), sizes)
    finally:
        connection.close()


def _missing_commits(folder: Path, connection: sqlite3.Connection) -> int:
    """Return how many commits that were acknowledged are not in the database."""
    try:
        tail = (folder / "tail").read_bytes()
    except FileNotFoundError:
        return 0
    (commits,) = connection.execute("SELECT commits FROM meta").fetchone()
    return max(0, TAIL.unpack(tail)[0] - commits) if len(tail) == TAIL.size else 0


def _files_of(connection: sqlite3.Connection, job: int) -> Iterator[str]:
    for table in _TABLES:
        sql = f"SELECT file FROM {table} WHERE key >= ? AND key < ? AND file IS NOT NULL"
        for (name,) in connection.execute(sql, (first_key(job), first_key(job + 1))):
            yield name
    for sql in ("SELECT id FROM blobs WHERE job = ?", "SELECT file FROM jobs WHERE number = ? AND file IS NOT NULL"):
        for (name,) in connection.execute(sql, (job,)):
            yield name


# damage


def _replace(folder: Path, error: sqlite3.DatabaseError) -> None:
    """Set a damaged store aside, and carry what is whole over into a new one."""
    aside = folder.with_name(f"{folder.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}")
    folder.rename(aside)
    folder.mkdir(mode=0o700)
    _check(folder)
    carried, lost = _carry_over(aside, folder)
    for path in [*aside.rglob("*"), aside]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    text = (
        f"{_date()}: the store was damaged ({error}). It was set aside, to be read only, as {aside}; {carried} jobs "
        "were whole and go on here" + (f", these were not: {', '.join(lost)}" if lost else "")
    )
    log.error(text)
    connection = connect(folder)
    try:
        connection.execute("INSERT INTO remarks VALUES (?, ?)", (time.time(), text))
    finally:
        connection.close()


def _carry_over(aside: Path, folder: Path) -> tuple[int, list[str]]:
    """Copy jobs that read whole; return how many, and the names of those that do not."""
    lost: list[str] = []
    carried = 0
    try:
        source = connect(aside)
        jobs = source.execute("SELECT * FROM jobs ORDER BY number").fetchall()
    except sqlite3.DatabaseError as error:
        log.error("no job can be read: %s", error)
        return 0, ["all of it"]
    target = connect(folder)
    try:
        for row in jobs:
            number = row[0]
            target.execute("BEGIN")
            try:
                _copy_job(source, target, row, Files(aside / "files"))
                _link_files(aside / "files" / str(number), folder / "files" / str(number))
                target.execute("COMMIT")
                carried += 1
            except (sqlite3.DatabaseError, Damaged, OSError, ValueError, TypeError) as error:
                target.execute("ROLLBACK")
                shutil.rmtree(folder / "files" / str(number), ignore_errors=True)
                log.error("job %s cannot be read whole: %s", row[1], error)
                lost.append(str(row[1]))
        target.execute("UPDATE meta SET jobs = ?", (max((row[0] for row in jobs), default=0),))
    finally:
        source.close()
        target.close()
    return carried, lost


def _copy_job(source: sqlite3.Connection, target: sqlite3.Connection, row: tuple[Any, ...], files: Files) -> None:
    """Copy the rows of a job, each of which must be what was written. Raises Damaged, OSError."""
    number = row[0]

    def load(name: str) -> bytes:
        return files.read(number, name)

    _, job_id, spec, session, _, form, payload, file, crc, status, status_crc, _ = row
    records.load_payload(form, payload, file, crc, load, number, records.text_crc(number, job_id, spec, session))
    records.load_status(number, status, status_crc)
    _insert(target, "jobs", row)
    keys = first_key(number), first_key(number + 1)
    for block in source.execute("SELECT * FROM blocks WHERE key >= ? AND key < ? ORDER BY key", keys):
        records.load_block(block, load)
        _insert(target, "blocks", block)
    expected = keys[0]
    for event in source.execute("SELECT * FROM events WHERE key >= ? AND key < ? ORDER BY key", keys):
        records.check_event(event, load)
        if event[0] != expected:
            raise Damaged(f"events before {event[0] - keys[0]} are missing")
        expected += 1
        _insert(target, "events", event)
    for table in records.JOB_TABLES:
        for other in source.execute(f"SELECT * FROM {table} WHERE job = ?", (number,)):
            _insert(target, table, other)
            if table == "blobs" and files.path(number, other[1]).stat().st_size != other[2]:
                raise Damaged(f"value {other[1]} has another size")


def _insert(target: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
    target.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _link_files(source: Path, target: Path) -> None:
    if source.exists():
        target.mkdir(mode=0o700)
        for path in source.iterdir():
            os.link(path, target / path.name)


def _date() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
