"""A place outside the cluster for copies of results: a folder under an fsspec URL.

Its libraries raise what they like; here all of that is StoreUnreachable, except that a file is not there.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burla.errors import InvalidValue, MissingExtra, StoreUnreachable

# the beginning of a URL → the package that it needs beside fsspec
PACKAGES = {"file": "", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs"}


def check(url: str) -> str:
    """Return a URL as it is kept. Raises InvalidValue, MissingExtra: what it needs is not installed here."""
    known, separator, path = url.partition("://")
    if known not in PACKAGES or not separator or not path.strip("/"):
        raise InvalidValue(
            f"store={url!r}: it must be the URL of a folder that outlives machines, such as s3://bucket/results; it "
            f"begins with one of {', '.join(f'{one}://' for one in PACKAGES)}."
        )
    requirements(url)
    return url.rstrip("/")


def requirements(url: str) -> list[str]:
    """Return what a machine has to install for a URL, in the version of this process. Raises MissingExtra."""
    package = PACKAGES[url.partition("://")[0]]
    if not package:
        return []
    try:
        return [f"{package}=={importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(f"store={url!r} needs the package {package}: pip install {package}") from error


class Bucket:
    """See the module. `url`: as `check` returns it. Every method blocks, and raises StoreUnreachable."""

    def __init__(self, url: str):
        self.url = url
        self._opened: tuple[Any, str] | None = None

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            import fsspec

            options = {"auto_mkdir": True} if self.url.startswith("file:") else {}
            # not one that this process, or the one that it was forked from, uses for something else
            self._opened = fsspec.url_to_fs(self.url, skip_instance_cache=True, **options)
        return self._opened

    @contextmanager
    def _files(self) -> Iterator[tuple[Any, str]]:
        """Give the file system and our folder in it."""
        try:
            yield self._open()
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreUnreachable(
                f"{self.url} cannot be reached: {type(error).__name__}: {error}. Are there credentials for it?",
                url=self.url,
            ) from error

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return a file, or some of it. Raises FileNotFoundError."""
        with self._files() as (files, root):
            return files.cat_file(f"{root}/{name}", start=start, end=stop)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to this machine's disk. Raises FileNotFoundError."""
        with self._files() as (files, root):
            files.get_file(f"{root}/{name}", str(path))

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""
        with self._files() as (files, root):
            files.pipe_file(f"{root}/{name}", data)

    def send(self, path: Path, name: str) -> None:
        """Copy a file of this machine's disk. Raises FileNotFoundError if there is none."""
        with self._files() as (files, root):
            files.put_file(str(path), f"{root}/{name}")

    def folders_with(self, name: str) -> list[str]:
        """Return the folders that have a file of this name."""
        with self._files() as (files, root):
            files.invalidate_cache()
            return [path.split("/")[-2] for path in files.glob(f"{root}/*/{name}")]

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with self._files() as (files, root):
            files.invalidate_cache()
            if files.exists(f"{root}/{name}"):
                files.rm(f"{root}/{name}", recursive=True)
