"""What a finished job is in a bucket: a folder of its id, in the format of the store. Writes it, and reads it.

    JOB_ID/store.db        SQLite, the schema of `records`: the row of the job, and its events
    JOB_ID/NAME            a value that is a file in the store, too; its checksum is in the row that names it
    JOB_ID/manifest.json   written last: without it, there is no copy

Function, inputs and environment are not copied: nobody runs a job from there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from burla.bucket import Bucket
from burla.errors import StoreDamaged
from burla.head import records
from burla.head.database import connect
from burla.head.files import Files
from burla.head.records import Damaged, first_key
from burla.protocol import MESSAGE_BYTES, CallContext, JobInfo, JobState, Snapshot

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "store.db"  # as `connect` names it


def copy(store: Path, files: Files, number: int, info: JobInfo, bucket: Bucket, work: Path) -> None:
    """Copy a job that has ended; blocks. `store`: the store's folder; `work`: a folder that is empty.

    Raises StoreUnreachable, Damaged, OSError.
    """
    for name in _write_rows(store, number, work):
        path = files.path(number, name)
        if path.exists():  # who reads the result is told of one that is gone
            bucket.send(path, f"{info.id}/{name}")
    bucket.send(work / DATABASE, f"{info.id}/{DATABASE}")
    bucket.write(f"{info.id}/{MANIFEST}", _dump_manifest(info, number, _sha256(work / DATABASE)))


def remove(bucket: Bucket, job_id: str) -> None:
    """Remove a copy, or half of one. Raises StoreUnreachable."""
    bucket.remove(f"{job_id}/{MANIFEST}")
    bucket.remove(job_id)


def _write_rows(store: Path, number: int, work: Path) -> list[str]:
    """Write the rows of a job to a database of its own; return the files that they name. Raises Damaged."""
    with closing(connect(store, read_only=True)) as theirs, closing(connect(work)) as ours:
        ours.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {records.CREATE} BEGIN")
        theirs.execute("BEGIN")  # so that all that is read is of one moment
        row = theirs.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise Damaged("it was deleted")
        _insert(ours, "jobs", [_without_function(row)])
        keys = first_key(number), first_key(number + 1)
        events = theirs.execute("SELECT * FROM events WHERE key >= ? AND key < ?", keys)
        while rows := events.fetchmany(1000):
            _insert(ours, "events", rows)
        ours.execute("COMMIT")
        return [name for (name,) in ours.execute("SELECT DISTINCT file FROM events WHERE file IS NOT NULL")]


def _insert(database: sqlite3.Connection, table: str, rows: list[Any]) -> None:
    database.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _without_function(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row of a job without what is only needed to run it, which may hold secrets."""
    spec = replace(records.load_job(row).spec, context=CallContext("", {}, ()), sealed=None, environment=None)
    new = (*row[:2], records.dump_spec(spec), "", row[4])
    function = records.store_payload(b"", Files.new_name, *records.function_facts(new))
    return (*new, *function.columns, *row[9:])


def _dump_manifest(info: JobInfo, number: int, sha256: str) -> bytes:
    job = asdict(info) | {"snapshot": asdict(info.snapshot) | {"state": info.snapshot.state.value}}
    document = {"format": FORMAT, "schema": records.SCHEMA, "number": number, "sha256": sha256, "job": job}
    return json.dumps(document, indent=1).encode()


class Copy:
    """The manifest of a copy. Raises StoreDamaged where it cannot be read."""

    def __init__(self, bucket: Bucket, job_id: str):
        """Raises FileNotFoundError if there is none, StoreUnreachable."""
        data = bucket.read(f"{job_id}/{MANIFEST}")
        try:
            document = json.loads(data)
            if (document["format"], document["schema"]) != (FORMAT, records.SCHEMA):
                raise ValueError("it was written by another version of burla")
            job = document["job"]
            snapshot = job["snapshot"] | {"state": JobState(job["snapshot"]["state"]), "slowest": ()}
            self.info = JobInfo(**job | {"snapshot": Snapshot(**snapshot), "kept_until_s": None})
            self.number: int = document["number"]
            self._sha256: str = document["sha256"]
        except (ValueError, TypeError, KeyError) as error:
            raise _damaged(bucket, job_id, error) from error
        self._bucket = bucket

    def fetch(self, folder: Path) -> None:
        """Bring the rows to a folder. Raises StoreDamaged, StoreUnreachable."""
        path = folder / DATABASE
        try:
            self._bucket.fetch(f"{self.info.id}/{DATABASE}", path)
        except FileNotFoundError as error:
            raise _damaged(self._bucket, self.info.id, error) from error
        if _sha256(path) != self._sha256:
            raise _damaged(self._bucket, self.info.id, ValueError("its checksum is wrong"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(bucket: Bucket, job_id: str, error: Exception) -> StoreDamaged:
    return StoreDamaged(f"the copy of job {job_id} at {bucket.url} cannot be read: {error}.", job=job_id)


class CopiedFiles(Files):
    """The files of a copy, read where they are."""

    def __init__(self, bucket: Bucket, job_id: str):
        super().__init__(Path())
        self._bucket = bucket
        self._id = job_id

    def read(self, job: int, name: str) -> bytes:
        """Return a whole file. Raises OSError, StoreUnreachable."""
        return self._bucket.read(f"{self._id}/{self.path(job, name).name}")

    def read_piece(self, job: int, name: str, offset_bytes: int) -> bytes:
        """Return at most `MESSAGE_BYTES` of a file. Raises OSError, StoreUnreachable."""
        where = f"{self._id}/{self.path(job, name).name}"
        return self._bucket.read(where, offset_bytes, offset_bytes + MESSAGE_BYTES)
