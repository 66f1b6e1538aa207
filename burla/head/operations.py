"""What the writer is asked to do: rows and files, in batches that are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from burla.head import records


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


def delete_statements(number: int) -> tuple[Sql, ...]:
    """Return what deletes all rows of a job."""
    keys = (records.first_key(number), records.first_key(number + 1))
    return (
        *(Sql(f"DELETE FROM {table} WHERE key >= ? AND key < ?", keys) for table in ("blocks", "events")),
        *(Sql(f"DELETE FROM {table} WHERE job = ?", (number,)) for table in records.JOB_TABLES),
        Sql("DELETE FROM jobs WHERE number = ?", (number,)),
    )


def deletions(operations: Iterable[Operation]) -> list[DeleteJob]:
    """Return the deletions among operations."""
    return [operation for operation in operations if isinstance(operation, DeleteJob)]
