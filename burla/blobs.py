"""Large values on their way to and from the head: in pieces, checked as a whole at the other end."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from burla.errors import BlobBroken, StoreDamaged
from burla.protocol import MESSAGE_BYTES, Blob, GetPiece, Payload, PutPiece

Ask = Callable[[Any], Awaitable[Any]]


async def put(ask: Ask, job: str, data: bytes) -> Blob:
    """Give the head a large value; returned when it is in the store. `ask` may repeat a message after a break."""
    while True:
        blob = describe(data)
        try:
            await send(ask, job, blob, data)
        except BlobBroken:
            continue  # the head was started again in the middle
        return blob


def describe(data: bytes) -> Blob:
    """Return a new blob for a large value that is yet to be sent."""
    return Blob(secrets.token_hex(8), len(data), zlib.crc32(data))


async def send(ask: Ask, job: str, blob: Blob, data: bytes) -> None:
    """Give the head the bytes of a blob; returned when they are in its store. Raises BlobBroken."""
    for offset in range(0, len(data), MESSAGE_BYTES):
        end = offset + MESSAGE_BYTES
        await ask(PutPiece(job, blob.id, offset, data[offset:end], blob.crc if end >= len(data) else None))


async def fetch(ask: Ask, job: str, payload: Payload) -> bytes:
    """Return the bytes of a payload, from the head if need be. Raises StoreDamaged."""
    if isinstance(payload, bytes):
        return payload
    data = bytearray()
    while len(data) < payload.size_bytes:
        data += await ask(GetPiece(job, payload.id, len(data)))
    if zlib.crc32(data) != payload.crc:
        raise StoreDamaged(
            f"a value of job {job} that the head has stored ({payload.size_bytes:,} bytes) has changed on its disk. "
            "What else it holds is not concerned; job.retry_failed() computes lost results again.",
            job=job,
        )
    return bytes(data)
