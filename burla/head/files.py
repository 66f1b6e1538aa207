"""The files of the store: large values of jobs, in a folder for each job; written apart, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

from burla.errors import BlobBroken
from burla.head import crashpoints
from burla.protocol import MESSAGE_BYTES

PART = ".part"  # not whole yet
GONE = ".gone"  # of a job that is being deleted


class Files:
    """See the module. What writes is called by the store's writer thread alone."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._growing: dict[Path, tuple[int, int]] = {}  # size and checksum so far of blobs that arrive

    @staticmethod
    def new_name() -> str:
        return secrets.token_hex(8)

    def path(self, job: int, name: str) -> Path:
        """Return where a file is. Raises BlobBroken for what is no name of ours."""
        if not name.isalnum():
            raise BlobBroken(f"{name!r} is not the name of a blob")
        return self.folder / str(job) / name

    def read(self, job: int, name: str) -> bytes:
        """Return a whole file. Raises OSError."""
        return self.path(job, name).read_bytes()

    def read_piece(self, job: int, name: str, offset_bytes: int) -> bytes:
        """Return at most `MESSAGE_BYTES` of a file. Raises OSError."""
        with open(self.path(job, name), "rb") as file:
            file.seek(offset_bytes)
            return file.read(MESSAGE_BYTES)

    # writing

    def write(self, job: int, name: str, data: bytes, durable: bool) -> None:
        """Write a file; there is all of it, or nothing under its name. Raises OSError."""
        path = self._made(job, name)
        part = path.with_suffix(PART)
        with open(part, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        self._finish(part, path, durable)

    def _finish(self, part: Path, path: Path, durable: bool) -> None:
        crashpoints.reach("store.before_rename")
        part.rename(path)
        crashpoints.reach("store.after_rename")
        if durable:
            self._sync_folder(path.parent)

    def append(self, job: int, name: str, offset_bytes: int, data: bytes, crc: int | None, durable: bool) -> int | None:
        """Add a piece to a blob; with `crc`, its last one, return its size. Raises BlobBroken, OSError."""
        path = self._made(job, name)
        part = path.with_suffix(PART)
        size, so_far = self._growing.get(path, (0, 0))
        if crc is not None and path.exists() and path.stat().st_size == offset_bytes + len(data):
            return offset_bytes + len(data)  # sent again after a break
        if offset_bytes == 0:
            size, so_far = 0, 0
        if offset_bytes != size or (size and not part.exists()):
            self._give_up(path)
            raise BlobBroken(f"piece at {offset_bytes} of a blob of which {size} bytes are here")
        try:
            with open(part, "ab" if size else "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                if durable and crc is not None:
                    os.fsync(file.fileno())
        except OSError:
            self._give_up(path)  # it comes again under another name: its beginning would only take room
            raise
        size, so_far = size + len(data), zlib.crc32(data, so_far)
        self._growing[path] = size, so_far
        if crc is None:
            return None
        del self._growing[path]
        if so_far != crc:
            part.unlink()
            raise BlobBroken("a blob arrived with a wrong checksum")
        self._finish(part, path, durable)
        return size

    def _give_up(self, path: Path) -> None:
        self._growing.pop(path, None)
        path.with_suffix(PART).unlink(missing_ok=True)

    def link(self, source: int, target: int, name: str, durable: bool) -> None:
        """Give another job the same file. Raises OSError."""
        path = self._made(target, name)
        if not path.exists():
            os.link(self.path(source, name), path)
        if durable:  # the other job may not have been
            _sync(path)
            self._sync_folder(path.parent)

    def sync(self, job: int) -> None:
        """Have all files of a job survive the machine. Raises OSError."""
        folder = self.folder / str(job)
        if folder.exists():
            for path in folder.iterdir():
                _sync(path)
            self._sync_folder(folder)

    # deleting

    def begin_delete(self, job: int) -> None:
        """Put the files of a job aside: from here on, it is deleted even if the head ends now."""
        folder = self.folder / str(job)
        gone = folder.with_suffix(GONE)
        if folder.exists() and gone.exists():  # begun before, on a full disk: what came later is of no use, either
            shutil.rmtree(folder)
        elif folder.exists():
            folder.rename(gone)

    def finish_delete(self, job: int) -> None:
        """Remove the files of a job whose rows are gone."""
        shutil.rmtree(self.folder / f"{job}{GONE}", ignore_errors=True)

    def half_deleted(self) -> list[int]:
        """Return the jobs whose deletion has begun."""
        return [int(path.stem) for path in self.folder.glob(f"*{GONE}") if path.stem.isdecimal()]

    def remove_orphans(self, job: int, known: Iterable[str]) -> None:
        """Remove files of a job that no row knows of: a crash came between file and row."""
        keep = set(known)
        folder = self.folder / str(job)
        for path in folder.iterdir() if folder.exists() else ():
            if path.name not in keep:
                path.unlink()

    def remove_strangers(self, jobs: Iterable[int]) -> None:
        """Remove folders of jobs that no row knows of."""
        keep = {str(job) for job in jobs}
        for path in self.folder.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _sync_folder(self, folder: Path) -> None:
        _sync(folder)
        _sync(self.folder)  # the folder itself may be new

    def _made(self, job: int, name: str) -> Path:
        path = self.path(job, name)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
        return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
