"""Jobs, inputs and events of every form, and a store to put them into."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burla.errors import StoreFull
from burla.head.records import FILE_BYTES
from burla.head.store import Store
from burla.protocol import (
    Blob,
    Block,
    CallContext,
    Ended,
    Event,
    Failure,
    JobSpec,
    JobState,
    Notice,
    Output,
    Results,
)

SIZES = (0, 1, FILE_BYTES - 1, FILE_BYTES, 300_000)  # the two in the middle: the last in a row, the first in a file


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test, as the head runs: all of it in one loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass
class Told:
    """What a store has told its head."""

    full: list[StoreFull | None] = field(default_factory=list)
    broken: list[Exception] = field(default_factory=list)


def open_store(folder: Path, told: Told | None = None) -> Store:
    told = Told() if told is None else told
    return Store.open(folder, on_full=told.full.append, on_broken=told.broken.append)


@contextlib.asynccontextmanager
async def opened(folder: Path, told: Told | None = None) -> AsyncIterator[Store]:
    """A store that is closed at the end."""
    store = open_store(folder, told)
    try:
        yield store
    finally:
        store.close()


def spec(job_id: str = "job-1", **fields: Any) -> JobSpec:
    """Return a spec in which nothing is as by default."""
    values: dict[str, Any] = {
        "function_name": "f <lambda> é \udcff",
        "function": b"a function",
        "context": CallContext(
            "/home/jo \udc80", {"A": "1", "BYTES": "\udcff\udc80", "É": "\u2028 \x01"}, ("", "/lib")
        ),
        "func_cpu": 2,
        "func_ram_bytes": 3,
        "func_gpu": "A100",
        "image": "image",
        "max_parallelism": 4,
        "grow": True,
        "start_timeout_s": 1.5,
        "depth": 1,
        "parent": "job-0",
        "detach": True,
        "on_error": "continue",
        "owner": "jo",
        "resumed": "job-00",
    }
    return JobSpec(id=job_id, **(values | fields))


def content(size_bytes: int, seed: int = 0) -> bytes:
    """Return bytes of which no part is like another."""
    pattern = b"".join((seed * 1_000_003 + i).to_bytes(5, "big") for i in range(size_bytes // 5 + 1))
    return pattern[:size_bytes]


def blob_of(name: str, data: bytes) -> Blob:
    return Blob(name, len(data), zlib.crc32(data))


def every_event(blob: Blob) -> Iterator[Event]:
    """Return events of every kind, form and size."""
    index = 0
    for size in SIZES:
        for each in (False, True):
            yield Results(index, index + 3, each, content(size, index))
            index += 3
        yield Failure(index, content(size, index))
        yield Output(index, 1, content(size, index))
        yield Output(index, 2, b"\xff\x00")
        index += 1
    yield Results(index, index + 1, False, blob)
    yield Notice("a sentence, é, \udcff")
    yield Notice("")
    for state in JobState:
        for error in (None, b"", b"an error"):
            yield Ended(state, error)


def every_block(blob: Blob) -> list[Block]:
    """Return blocks of every form and size, in order and without gaps."""
    blocks: list[Block] = []
    for payload in (*(content(size, size) for size in SIZES), blob):
        for each in (False, True):
            first = blocks[-1].first + blocks[-1].count if blocks else 0
            blocks.append(Block(first, 5, each, payload))
    return blocks


async def put_blob(store: Store, number: int, name: str, data: bytes, piece_bytes: int = 4_000_000) -> Blob:
    for offset in range(0, len(data), piece_bytes):
        end = offset + piece_bytes
        crc = zlib.crc32(data) if end >= len(data) else None
        await store.put_piece(number, name, offset, data[offset:end], crc, True)
    return blob_of(name, data)


async def get_blob(store: Store, number: int, blob: Blob) -> bytes:
    data = b""
    while len(data) < blob.size_bytes:
        data += await store.piece(number, blob.id, len(data))
    return data


async def all_events(store: Store, number: int, **filters: Any) -> list[Event]:
    events: list[Event] = []
    after, length = 0, None
    while length is None or after < length:
        some, next_after = await store.events(number, after, **filters)
        events += some
        if next_after == after:
            break
        after = next_after
    return events


async def all_blocks(store: Store, number: int, total: int, **limits: Any) -> list[Block]:
    blocks: list[Block] = []
    index = 0
    while index < total:
        blocks += await store.blocks(number, index, **limits)
        index = blocks[-1].first + blocks[-1].count
    return blocks
