"""The rows of the store: its schema, and how messages become rows and come back, each with a checksum.

Nothing of it is a pickle of our own classes: another version of burla must be able to read what this one wrote. Rows of
one job lie together: their keys are its number, shifted, plus a number within the job. A checksum has two halves: what
a row says can be checked without its payload.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from burla.protocol import (
    KIND_OF,
    Blob,
    Block,
    CallContext,
    Ended,
    Event,
    Failure,
    JobSpec,
    JobState,
    Kind,
    Lost,
    Notice,
    Origin,
    Output,
    Outputs,
    Payload,
    Results,
)

SCHEMA = 1
SHIFT = 32  # a job has less than 2**32 events and inputs
JOBS = 1 << 63 - SHIFT  # there are less than so many
FILE_BYTES = 64_000  # from here on, bytes are a file: 614 MiB/s, against 72 in the database
INLINE, FILE, BLOB = range(3)  # forms of a payload

CREATE = """
CREATE TABLE meta (one INTEGER PRIMARY KEY, epoch INTEGER, commits INTEGER, jobs INTEGER);
CREATE TABLE remarks (at_s REAL, text TEXT);
CREATE TABLE nodes (node TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, spec TEXT, session TEXT, created_at_s REAL,
    form INTEGER, payload BLOB, file TEXT, crc INTEGER,
    status TEXT, status_crc INTEGER, size_bytes INTEGER, inputs INTEGER, events INTEGER, extent_crc INTEGER
);
CREATE TABLE blocks (
    key INTEGER PRIMARY KEY, count INTEGER, each INTEGER, form INTEGER, payload BLOB, file TEXT, crc INTEGER
);
CREATE TABLE events (
    key INTEGER PRIMARY KEY, kind INTEGER, start INTEGER, stop INTEGER, detail INTEGER,
    form INTEGER, payload BLOB, file TEXT, crc INTEGER
);
CREATE TABLE blobs (job INTEGER, id TEXT, size_bytes INTEGER, PRIMARY KEY (job, id)) WITHOUT ROWID;
CREATE TABLE crashes (
    job INTEGER, input INTEGER, attempts INTEGER, crc INTEGER, PRIMARY KEY (job, input)
) WITHOUT ROWID;
CREATE TABLE trades (job INTEGER, node TEXT, trade INTEGER, crc INTEGER, PRIMARY KEY (job, node)) WITHOUT ROWID;
"""
JOB_TABLES = ("blobs", "crashes", "trades")  # beside those whose keys hold the job's number

Load = Callable[[str], bytes]  # reads the file of a payload, by name


class Damaged(Exception):
    """A row, or its file, is not what was written."""


@dataclass(frozen=True, slots=True)
class Status:
    """What changes of a job; a JSON document in its row."""

    detached: bool = False
    complete: bool = False
    state: JobState = JobState.RECEIVING
    error: bytes | None = None
    total: int = 0
    done: int = 0
    failed: int = 0
    ended_at_s: float | None = None
    ran_s: float = 0.0  # this and the next two: see `budgets.Spent`
    node_s: float = 0.0
    usd: float | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a job there is in the store."""

    size_bytes: int = 0
    inputs: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as the store has it. The function of `spec` is empty; it is read apart."""

    number: int
    spec: JobSpec
    session: str
    created_at_s: float
    status: Status
    extent: Extent

    @property
    def size_bytes(self) -> int:
        return self.extent.size_bytes

    @property
    def events(self) -> int:
        return self.extent.events

    @property
    def listed(self) -> bool:
        """Whether it is a job of a user, and not of a call that waits for it."""
        return self.spec.parent is None or self.status.detached


def first_key(job: int) -> int:
    return job << SHIFT


def number_of(key: int) -> int:
    return key & ((1 << SHIFT) - 1)


# payloads


@dataclass(frozen=True, slots=True)
class Stored:
    """A payload in the columns form, payload, file and crc; `content`: what has to be written to the file first."""

    form: int
    payload: bytes | None
    file: str | None
    crc: int
    content: bytes | None = None

    @property
    def columns(self) -> tuple[int, bytes | None, str | None, int]:
        return self.form, self.payload, self.file, self.crc


def store_payload(payload: Payload, new_name: Callable[[], str], *facts: int) -> Stored:
    """Return how a payload is stored; its checksum covers the `facts` of its row, too."""
    if isinstance(payload, Blob):
        packed = struct.pack("<QI", payload.size_bytes, payload.crc)
        return Stored(BLOB, packed, payload.id, _crc(zlib.crc32(packed), BLOB, payload.id, facts))
    crc = zlib.crc32(payload)
    if len(payload) < FILE_BYTES:
        return Stored(INLINE, payload, None, _crc(crc, INLINE, None, facts))
    name = new_name()
    return Stored(FILE, None, name, _crc(crc, FILE, name, facts), payload)


def check_facts(form: int, file: str | None, crc: int, *facts: int) -> None:
    """Check what a row says, except its payload. Raises Damaged."""
    if not isinstance(crc, int) or crc != _crc(crc & 0xFFFFFFFF, form, file, facts):
        raise Damaged("its checksum is wrong")


def load_payload(form: int, payload: bytes | None, file: str | None, crc: int, load: Load, *facts: int) -> Payload:
    """Return a payload from its columns. Raises Damaged."""
    check_facts(form, file, crc, *facts)
    data = load(file) if form == FILE and file is not None else payload
    if not isinstance(data, bytes) or zlib.crc32(data) != crc & 0xFFFFFFFF:
        raise Damaged("its checksum is wrong")
    if form == BLOB and file is not None:
        return Blob(file, *struct.unpack("<QI", data))
    return data


def _crc(payload_crc: int, form: int, file: str | None, facts: tuple[int, ...]) -> int:
    return (facts_crc(payload_crc, form, file, *facts) >> 1) << 32 | payload_crc  # SQLite's integers are signed


def facts_crc(*facts: float | str | None) -> int:
    """Return a checksum of small values and their types."""
    return zlib.crc32(ascii(facts).encode())


# events

_SEVERAL = 0  # in the place of a stream
_STATES = tuple(JobState)  # an Ended row holds the position: never reorder


def event_row(key: int, event: Event, new_name: Callable[[], str]) -> tuple[tuple[Any, ...], bytes | None, str | None]:
    """Return the row of an event, and the content and name of its file if it has one."""
    start, stop, detail, payload = _parts(event)
    kind = int(KIND_OF[type(event)])
    stored = store_payload(payload, new_name, key, kind, start, stop, detail)
    return (key, kind, start, stop, detail, *stored.columns), stored.content, stored.file


def _parts(event: Event) -> tuple[int, int, int, Payload]:
    match event:
        case Results(start, stop, each, payload):
            return start, stop, int(each), payload
        case Failure(index, payload):
            return index, index + 1, 0, payload
        case Output(index, stream, data):
            return index, index + 1, stream, data
        case Outputs(start, stop, packed):
            return start, stop, _SEVERAL, packed
        case Notice(text):
            return -1, -1, 0, text.encode("utf-8", "surrogateescape")
        case Ended(state, error):
            return -1, -1, 2 * _STATES.index(state) + (error is not None), error or b""
        case Lost():
            raise TypeError("what is lost is found when it is read, and never written")


def load_event(row: tuple[Any, ...], load: Load) -> Event:
    """Return the event of a row; of one that is damaged, what can be said."""
    key, kind, start, stop, *_ = row
    try:
        return check_event(row, load)
    except (Damaged, OSError) as error:
        if kind in (Kind.RESULTS, Kind.FAILURE) and isinstance(start, int) and isinstance(stop, int):
            return Lost(start, stop, str(error))
        return Notice(f"event {number_of(key)} of this job cannot be read any more: {error}")


def check_event(row: tuple[Any, ...], load: Load) -> Event:
    """Return the event of a row. Raises Damaged, OSError."""
    key, kind, start, stop, detail, form, payload, file, crc = row
    try:
        value = load_payload(form, payload, file, crc, load, key, kind, start, stop, detail)
        return _event(kind, start, stop, detail, value)
    except IndexError as error:
        raise Damaged(f"it cannot be read: {error}") from error


def _event(kind: int, start: int, stop: int, detail: int, payload: Payload) -> Event:
    if kind == Kind.RESULTS:
        return Results(start, stop, bool(detail), payload)
    if not isinstance(payload, bytes):
        raise Damaged("it is no blob")
    if kind == Kind.FAILURE:
        return Failure(start, payload)
    if kind == Kind.OUTPUT:
        return Outputs(start, stop, payload) if detail == _SEVERAL else Output(start, detail, payload)
    if kind == Kind.NOTICE:
        return Notice(payload.decode("utf-8", "surrogateescape"))
    if kind == Kind.ENDED:
        return Ended(_STATES[detail // 2], payload if detail % 2 else None)
    raise Damaged(f"it is of kind {kind}")


# blocks


def block_row(job: int, block: Block, new_name: Callable[[], str]) -> tuple[tuple[Any, ...], bytes | None, str | None]:
    """Return the row of a block, and the content and name of its file if it has one."""
    key = first_key(job) + block.first
    stored = store_payload(block.payload, new_name, key, block.count, int(block.each))
    return (key, block.count, int(block.each), *stored.columns), stored.content, stored.file


def load_block(row: tuple[Any, ...], load: Load) -> Block:
    """Return the block of a row. Raises Damaged, OSError."""
    key, count, each, form, payload, file, crc = row
    return Block(number_of(key), count, bool(each), load_payload(form, payload, file, crc, load, key, count, each))


# jobs


def dump_spec(spec: JobSpec) -> str:
    """Return a spec as JSON, without its function."""
    document = asdict(spec)
    del document["function"]
    return json.dumps(document, sort_keys=True)


def load_spec(text: str) -> JobSpec:
    """Return the spec of a document. Raises Damaged."""
    try:
        document = json.loads(text)
        context, origin = document.pop("context"), document.pop("origin", None)
        return JobSpec(
            function=b"",
            context=CallContext(context["cwd"], context["environ"], tuple(context["sys_path"])),
            origin=None if origin is None else Origin(**origin),
            **document,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"what the job asks for cannot be read: {type(error).__name__}") from error


def dump_status(number: int, status: Status) -> tuple[str, int]:
    """Return a status as JSON, and its checksum."""
    document = asdict(status) | {"state": status.state.value, "error": status.error and status.error.hex()}
    text = json.dumps(document, sort_keys=True)
    return text, facts_crc(number, text)


def load_job(row: tuple[Any, ...]) -> StoredJob:
    """Return the job of a row. Raises Damaged."""
    number, job_id, text, session, created_at_s, form, _, file, crc, *rest = row
    status, status_crc, *extent, extent_crc = rest
    check_facts(form, file, crc, *function_facts(row))
    spec = load_spec(text)
    if spec.id != job_id:
        raise Damaged("its id is wrong")
    if facts_crc(number, *extent) != extent_crc:
        raise Damaged("how large it is cannot be read: its checksum is wrong")
    return StoredJob(
        number=number,
        spec=spec,
        session=session,
        created_at_s=created_at_s,
        status=load_status(number, status, status_crc),
        extent=Extent(*extent),
    )


def function_facts(row: tuple[Any, ...]) -> tuple[int, int]:
    """Return what the checksum of a job's function covers beside it: the beginning of its row."""
    return row[0], facts_crc(*row[:5])


def load_function(row: tuple[Any, ...], load: Load) -> Payload:
    """Return the function of a job's row. Raises Damaged, OSError."""
    form, payload, file, crc = row[5:9]
    return load_payload(form, payload, file, crc, load, *function_facts(row))


def load_status(number: int, text: str, crc: int) -> Status:
    """Return the status of a document. Raises Damaged."""
    try:
        if facts_crc(number, text) != crc:
            raise Damaged("how the job stands cannot be read: its checksum is wrong")
        document = json.loads(text)
        error = document["error"]
        document |= {"state": JobState(document["state"]), "error": None if error is None else bytes.fromhex(error)}
        return Status(**document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"how the job stands cannot be read: {type(error).__name__}") from error
