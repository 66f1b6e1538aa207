"""Opening the store: its lock, its version, its health. A damaged one is set aside, and what is whole carried over."""

from __future__ import annotations

import contextlib
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

from burla.errors import BlobBroken, StoreBusy, StoreUnknown
from burla.head import crashpoints, records
from burla.head.database import TAIL, connect, full, is_full
from burla.head.files import Files
from burla.head.operations import delete_statements
from burla.head.records import Damaged, Extent, StoredJob, first_key

log = logging.getLogger(__name__)

REMARK_S = 7 * 86_400.0  # for so long a remark is shown
_TABLES = ("blocks", "events")
_COUNTS = ("crashes", "trades")
_SMALL_TABLES = ("meta", "remarks", "nodes", "jobs", *records.JOB_TABLES)
_NEW = ".new"  # of a store that is to replace a damaged one


@dataclass(frozen=True, slots=True)
class Found:
    """What an opened store begins with. `jobs`: the highest number of a job so far; `extents`, `ids`: by number."""

    epoch: int
    remarks: tuple[str, ...]
    lock: int
    jobs: int
    extents: dict[int, Extent]
    ids: dict[int, str]


def open_store(folder: Path) -> Found:
    """Make a store ready, whatever has become of it. Raises StoreBusy, StoreUnknown, StoreFull."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        new = folder.with_name(folder.name + _NEW)
        if new.exists() and not folder.exists():  # the head was killed in the middle of `_replace`
            new.rename(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "reserve").unlink(missing_ok=True)  # the disk may be full; the writer makes it again
        try:
            _check(folder)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the second one: of a message about the first
            if is_full(folder, error):
                raise
            _replace(folder, new, error)
        return _begin(folder, lock)
    except BaseException as error:
        unlock(lock)
        if isinstance(error, Exception) and is_full(folder, error):
            raise full(folder, error) from error
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
    files = folder / "files"
    used = (folder / "tail").exists() or (files.exists() and any(files.iterdir()))
    if used and not (folder / "store.db").exists():
        raise sqlite3.DatabaseError("its database is missing")
    fd = os.open(
        folder / "store.db", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )  # SQLite's own files follow its mode
    os.close(fd)
    files.mkdir(mode=0o700, exist_ok=True)
    connection = connect(folder)
    try:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            if used or connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
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
        if _schema(connection) != _own_schema():
            raise sqlite3.DatabaseError("its tables are not what they were")
        # a quick check does not compare what is found by key with what there is
        for check in ("quick_check", *(f"integrity_check({table})" for table in _SMALL_TABLES)):
            found = [text for (text,) in connection.execute(f"PRAGMA {check}").fetchall()]
            if found != ["ok"]:
                raise sqlite3.DatabaseError("; ".join(found[:3]).replace("*** in database main ***\n", ""))
        (meta,) = connection.execute("SELECT * FROM meta").fetchall() or [()]
        if len(meta) != 4 or not all(isinstance(value, int) and 0 <= value < 1 << 62 for value in meta):
            raise sqlite3.DatabaseError("its first row cannot be read")
        if meta[3] >= records.JOBS:
            raise sqlite3.DatabaseError(f"it counts {meta[3]} jobs")
        for row in connection.execute("SELECT * FROM jobs"):
            try:
                _check_extent(connection, records.load_job(row))
            except Damaged as error:
                raise sqlite3.DatabaseError(f"job {row[1]}: {error}") from error
        for table in _COUNTS:
            for *facts, crc in connection.execute(f"SELECT * FROM {table}"):
                if records.facts_crc(*facts) != crc:
                    raise sqlite3.DatabaseError(f"{table} of job number {facts[0]}: a checksum is wrong")
    finally:
        connection.close()


def _own_schema() -> set[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(records.CREATE)
        return _schema(connection)


def _schema(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall())


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
        rows = connection.execute("SELECT number, size_bytes, inputs, events FROM jobs")
        extents = {number: Extent(*extent) for number, *extent in rows}
        for job in extents:
            files.remove_orphans(job, _files_of(connection, job))
        files.remove_strangers(extents)
        (folder / "tail").unlink(missing_ok=True)
        ids = dict(connection.execute("SELECT number, id FROM jobs").fetchall())
        epoch, jobs = connection.execute("SELECT epoch, jobs FROM meta").fetchone()
        remarks = tuple(text for (text,) in connection.execute("SELECT text FROM remarks ORDER BY at_s"))
        return Found(epoch, remarks, lock, max([jobs, *extents]), extents, ids)
    finally:
        connection.close()


def _missing_commits(folder: Path, connection: sqlite3.Connection) -> int:
    """Return how many commits that were acknowledged are not in the database."""
    try:
        tail = (folder / "tail").read_bytes()
    except FileNotFoundError:
        return 0
    (commits,) = connection.execute("SELECT commits FROM meta").fetchone()
    if len(tail) != TAIL.size:
        return 0
    acknowledged, crc = TAIL.unpack(tail)
    return max(0, acknowledged - commits) if crc == records.facts_crc(acknowledged) else 0


def _files_of(connection: sqlite3.Connection, job: int) -> Iterator[str]:
    for table in _TABLES:
        sql = f"SELECT file FROM {table} WHERE key >= ? AND key < ? AND file IS NOT NULL"
        for (name,) in connection.execute(sql, (first_key(job), first_key(job + 1))):
            yield name
    for sql in ("SELECT id FROM blobs WHERE job = ?", "SELECT file FROM jobs WHERE number = ? AND file IS NOT NULL"):
        for (name,) in connection.execute(sql, (job,)):
            yield name


# damage


def _replace(folder: Path, new: Path, error: Exception) -> None:
    """Carry what is whole of a damaged store over into a new one, and set it aside."""
    aside = folder.with_name(f"{folder.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    _check(new)
    carried, lost = _carry_over(folder, new)
    text = (
        f"{_date()}: the store was damaged ({error}). It was set aside, to be read only, as {aside}; {carried} jobs "
        "were whole and go on here" + (f", these were not: {', '.join(lost)}" if lost else "")
    )
    log.error(text)
    connection = connect(new)
    try:
        connection.execute("INSERT INTO remarks VALUES (?, ?)", (time.time(), text))
    finally:
        connection.close()
    folder.rename(aside)
    crashpoints.reach("store.in_replace")
    new.rename(folder)
    for path in [*aside.rglob("*"), aside]:
        if path.is_dir():
            path.chmod(0o500)
        elif path.stat().st_nlink == 1:  # the new store has the others, too
            path.chmod(0o400)


def _carry_over(damaged: Path, new: Path) -> tuple[int, list[str]]:
    """Copy jobs that read whole; return how many, and the names of those that do not."""
    if not (damaged / "store.db").exists():
        return 0, ["all of it"]
    try:
        reading = connect(damaged, read_only=True)
    except sqlite3.DatabaseError as error:
        log.error("nothing can be read: %s", error)
        return 0, ["all of it"]
    with contextlib.closing(reading) as source, contextlib.closing(connect(new)) as target:
        names = _names(source)
        lost = [] if names else ["all of it"]
        for number, name in sorted(names.items()):
            target.execute("BEGIN")
            try:
                (row,) = source.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchall()
                _copy_job(source, target, row, Files(damaged / "files"))
                _link_files(damaged / "files" / str(number), new / "files" / str(number))
                target.execute("COMMIT")
            except (sqlite3.DatabaseError, Damaged, BlobBroken, OSError, ValueError, TypeError) as error:
                if target.in_transaction:
                    target.execute("ROLLBACK")
                if is_full(new, error):
                    raise
                shutil.rmtree(new / "files" / str(number), ignore_errors=True)
                log.error("job %s cannot be read whole: %s", name, error)
                lost.append(name)
        target.execute("UPDATE meta SET jobs = ?", (max(names, default=0),))
    return len(names) - len(lost) if names else 0, lost


def _names(source: sqlite3.Connection) -> dict[int, str]:
    """Return the jobs of a damaged store by number, as far as they can be found: from both ends, and by the index."""
    names: dict[int, str] = {}
    for order in ("number", "number DESC", "id"):
        try:
            for number, name in source.execute(
                f"SELECT number, {'id' if order == 'id' else 'NULL'} FROM jobs ORDER BY {order}"
            ):
                if isinstance(number, int) and 0 < number < records.JOBS:
                    names[number] = str(name or names.get(number) or f"number {number}")
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            log.error("not all jobs can be found by %s: %s", order, error)
    return names


def _copy_job(source: sqlite3.Connection, target: sqlite3.Connection, row: tuple[Any, ...], files: Files) -> None:
    """Copy the rows of a job, each of which must be what was written. Raises Damaged, OSError."""
    number = row[0]

    def load(name: str) -> bytes:
        return files.read(number, name)

    extent = records.load_job(row).extent
    records.load_function(row, load)
    _insert(target, "jobs", row)
    keys = first_key(number), first_key(number + 1)
    inputs = events = 0
    for row in source.execute("SELECT * FROM blocks WHERE key >= ? AND key < ? ORDER BY key", keys):
        inputs += records.load_block(row, load).count
        _insert(target, "blocks", row)
    for row in source.execute("SELECT * FROM events WHERE key >= ? AND key < ? ORDER BY key", keys):
        records.check_event(row, load)
        events += 1
        _insert(target, "events", row)
    if (inputs, events) != (extent.inputs, extent.events):
        raise Damaged(f"{inputs} of {extent.inputs} inputs and {events} of {extent.events} events are there")
    for table in records.JOB_TABLES:
        for other in source.execute(f"SELECT * FROM {table} WHERE job = ?", (number,)):
            if table in _COUNTS and records.facts_crc(*other[:-1]) != other[-1]:
                continue  # without it a call is tried once more, or an output is shown twice
            _insert(target, table, other)
            if table == "blobs" and files.path(number, other[1]).stat().st_size != other[2]:
                raise Damaged(f"value {other[1]} has another size")


def _check_extent(connection: sqlite3.Connection, job: StoredJob) -> None:
    """Raise Damaged unless a job's last inputs and events are there."""
    keys = first_key(job.number), first_key(job.number + 1)
    ends = []
    for sql in ("SELECT max(key + count) FROM blocks", "SELECT max(key) + 1 FROM events"):
        (end,) = connection.execute(f"{sql} WHERE key >= ? AND key < ?", keys).fetchone()
        ends.append(0 if end is None else end - keys[0])
    if ends != [job.extent.inputs, job.extent.events]:
        raise Damaged(f"{ends[0]} of {job.extent.inputs} inputs and {ends[1]} of {job.extent.events} events are there")


def _insert(target: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> None:
    target.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _link_files(source: Path, target: Path) -> None:
    if source.exists():
        target.mkdir(mode=0o700)
        for path in source.iterdir():
            os.link(path, target / path.name)


def _date() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
