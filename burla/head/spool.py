"""What the head keeps of a job: small things in memory up to a budget, the rest, and blobs, in files of a folder.

The files bound the memory of the head; they do not outlive it.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from burla.errors import BurlaError
from burla.protocol import MESSAGE_BYTES

MEMORY_BYTES = 32_000_000  # of one job; beyond it, things go to a file


class Spool:
    """Keeps things in the order of their arrival, by number. The folder is made when it is needed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._items: list[Any] = []  # the thing itself, or (offset, size) in the file
        self._on_disk: set[int] = set()
        self._memory_bytes = 0
        self._file: int | None = None
        self._file_bytes = 0
        self._blobs: dict[str, int] = {}  # sizes

    def __len__(self) -> int:
        return len(self._items)

    def append(self, thing: Any, size_bytes: int) -> None:
        """Keep a thing that takes about `size_bytes` of memory."""
        if self._memory_bytes + size_bytes <= MEMORY_BYTES:
            self._memory_bytes += size_bytes
            self._items.append(thing)
            return
        if self._file is None:
            self._file = os.open(self._made_folder() / "spool", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        data = pickle.dumps(thing, 5)
        if os.pwrite(self._file, data, self._file_bytes) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full", str(self._folder))
        self._on_disk.add(len(self._items))
        self._items.append((self._file_bytes, len(data)))
        self._file_bytes += len(data)

    def get(self, number: int) -> Any:
        """Return thing `number`, counted from 0."""
        item = self._items[number]
        if number not in self._on_disk:
            return item
        assert self._file is not None
        offset, size = item
        return pickle.loads(os.pread(self._file, size, offset))

    def put_piece(self, blob: str, data: bytes) -> None:
        """Add a piece to the end of a blob."""
        with open(self._path(blob), "ab", opener=_private) as file:
            file.write(data)
        self._blobs[blob] = self._blobs.get(blob, 0) + len(data)

    def get_piece(self, blob: str, offset_bytes: int) -> bytes:
        """Return at most `MESSAGE_BYTES` of a blob. Raises BurlaError if there is none of that name."""
        if blob not in self._blobs:
            raise BurlaError(f"the head has no blob {blob!r} of this job")
        with open(self._path(blob), "rb") as file:
            file.seek(offset_bytes)
            return file.read(MESSAGE_BYTES)

    def close(self) -> None:
        """Delete everything."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, blob: str) -> Path:
        if not blob.isalnum():
            raise BurlaError(f"{blob!r} is not the name of a blob")
        return self._made_folder() / blob

    def _made_folder(self) -> Path:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
