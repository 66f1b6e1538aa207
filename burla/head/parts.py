"""Files that jobs share, named by their content: modules and wheels on their way to nodes that need them."""

from __future__ import annotations

import asyncio
import errno
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from burla.errors import BlobBroken, StoreDamaged, StoreFull
from burla.protocol import MESSAGE_BYTES, GetPiece, PutPiece

UNUSED_S = 3600.0  # kept at least so long: a job that refers to it may be on its way
PART = ".part"


class Parts:
    """See the module. A file is there whole, or not under its name."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._growing: dict[str, tuple[int, int]] = {}  # size and checksum so far

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those that are not here; the others count as used now."""
        missing: list[str] = []
        for name in names:
            try:
                os.utime(self._path(name))
            except FileNotFoundError:
                missing.append(name)
        return tuple(missing)

    async def piece(self, message: GetPiece | PutPiece) -> bytes | None:
        """Return, or take, a piece. Raises StoreDamaged: it is not here; BlobBroken, StoreFull."""
        if isinstance(message, GetPiece):
            return await asyncio.to_thread(self._read, message)
        return await asyncio.to_thread(self._write, message)

    def sweep(self, now_s: float, keep_s: float, documents: Iterable[str]) -> None:
        """Delete what no job of these environments refers to, and none has for so long."""
        if not self._folder.exists():
            return
        wanted = "\n".join(documents)
        for path in self._folder.iterdir():
            age_s = now_s - path.stat().st_mtime
            if path.stem not in wanted and age_s > max(keep_s, UNUSED_S):
                path.unlink()

    def _path(self, name: str) -> Path:
        if not name.isalnum():
            raise BlobBroken(f"{name!r} is not the name of a blob")
        return self._folder / name

    def _read(self, message: GetPiece) -> bytes:
        try:
            with open(self._path(message.blob), "rb") as file:
                file.seek(message.offset_bytes)
                return file.read(MESSAGE_BYTES)
        except FileNotFoundError:
            raise StoreDamaged(
                f"the head does not have {message.blob[:12]} any more, modules or a wheel that the function needs. "
                "Submit the job again.",
                path=str(self._folder / message.blob),
            ) from None

    def _write(self, message: PutPiece) -> None:
        path = self._path(message.blob)
        if path.exists():
            return  # somebody else has sent it meanwhile
        part = path.with_suffix(PART)
        size, crc = self._growing.get(message.blob, (0, 0)) if message.offset_bytes else (0, 0)
        if message.offset_bytes != size or (size and not part.exists()):
            self._growing.pop(message.blob, None)
            raise BlobBroken(f"piece at {message.offset_bytes} of a file of which {size} bytes are here")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            with open(part, "ab" if size else "wb", opener=_private) as file:
                file.write(message.data)
                if message.crc is not None:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreFull(f"the disk of the head is full: {self._folder}", path=str(self._folder)) from error
        self._growing[message.blob] = size + len(message.data), zlib.crc32(message.data, crc)
        if message.crc is None:
            return
        _, crc = self._growing.pop(message.blob)
        if crc != message.crc:
            part.unlink()
            raise BlobBroken("a file arrived with a wrong checksum")
        part.rename(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
