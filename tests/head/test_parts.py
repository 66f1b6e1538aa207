"""Files that jobs share at the head, by their content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from pathlib import Path

import pytest

from burla import BlobBroken, StoreDamaged, blobs
from burla.head.parts import UNUSED_S, Parts
from burla.protocol import MESSAGE_BYTES, PARTS, Blob, GetPiece, PutPiece

DATA = bytes(range(256)) * 20_000  # of two messages


def blob_of(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data), zlib.crc32(data))


def put(parts: Parts, data: bytes) -> Blob:
    blob = blob_of(data)
    asyncio.run(blobs.send(parts.piece, PARTS, blob, data))
    return blob


def test_a_file_is_missing_until_all_of_it_is_there_then_it_is_read_as_it_was(tmp_path: Path):
    parts, blob = Parts(tmp_path / "parts"), blob_of(DATA)
    assert parts.missing([blob.id]) == (blob.id,)
    asyncio.run(parts.piece(PutPiece(PARTS, blob.id, 0, DATA[:MESSAGE_BYTES])))
    assert parts.missing([blob.id]) == (blob.id,)
    asyncio.run(parts.piece(PutPiece(PARTS, blob.id, MESSAGE_BYTES, DATA[MESSAGE_BYTES:], blob.crc)))
    assert parts.missing([blob.id]) == ()
    assert asyncio.run(blobs.fetch(Parts(tmp_path / "parts").piece, PARTS, blob)) == DATA
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "parts").iterdir()] == [0o600]


def test_a_file_that_arrives_broken_is_not_kept(tmp_path: Path):
    parts, blob = Parts(tmp_path), blob_of(DATA)
    with pytest.raises(BlobBroken, match="checksum"):
        asyncio.run(parts.piece(PutPiece(PARTS, blob.id, 0, b"other", blob.crc)))
    with pytest.raises(BlobBroken, match="piece at 5"):
        asyncio.run(parts.piece(PutPiece(PARTS, blob.id, 5, b"rest", blob.crc)))
    assert parts.missing([blob.id]) == (blob.id,) and list(tmp_path.iterdir()) == []
    with pytest.raises(BlobBroken, match="is not the name"):
        asyncio.run(parts.piece(GetPiece(PARTS, "../store", 0)))


def test_one_that_is_gone_says_what_to_do(tmp_path: Path):
    with pytest.raises(StoreDamaged, match="Submit the job again"):
        asyncio.run(Parts(tmp_path).piece(GetPiece(PARTS, "abc", 0)))


def test_what_no_job_needs_is_deleted_in_time(tmp_path: Path):
    parts = Parts(tmp_path)
    needed, fresh, old = put(parts, b"needed"), put(parts, b"fresh"), put(parts, b"old")
    now_s = fresh_s = (tmp_path / fresh.id).stat().st_mtime
    for blob in (needed, old):
        os.utime(tmp_path / blob.id, (now_s - UNUSED_S - 10, now_s - UNUSED_S - 10))
    parts.sweep(fresh_s, 0.0, ["{}", f'{{"id": "{needed.id}"}}'])
    assert {path.name for path in tmp_path.iterdir()} == {needed.id, fresh.id}
