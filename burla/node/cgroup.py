"""Limits of memory by the kernel, where this process may make cgroups; elsewhere they are kept by watching alone.

A cgroup for each call process with a `func_ram`, in one of the node, in the one that the node runs in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from burla.node.memory import LIMITS, CgroupGauge, surrounding_gauges

log = logging.getLogger(__name__)

PREFIX = "burla-"
WITH_SWAP = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}


class CallGroup:
    """The cgroup of one process and all that it starts."""

    def __init__(self, folder: Path, version: int, limit_bytes: int):
        self._gauge = CgroupGauge(folder, version)
        folder.mkdir()
        (folder / LIMITS[version]).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # a kernel without swap, or that does not count it
            (folder / WITH_SWAP[version]).write_text("0" if version == 2 else str(limit_bytes))

    def enclose(self, pid: int) -> None:
        """Put a process into the group. Raises OSError."""
        (self._gauge.folder / "cgroup.procs").write_text(str(pid))

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        return self._gauge.read().kills

    @property
    def used_bytes(self) -> int:
        """What its processes have, each page once, without files."""
        return self._gauge.own_bytes()

    def close(self) -> None:
        """Remove the group, whose processes have ended."""
        with contextlib.suppress(OSError):  # the kernel has not finished with them: the next node removes it
            self._gauge.folder.rmdir()


class Cgroups:
    """Makes the groups of one node."""

    def __init__(self, folder: Path, version: int):
        self._folder = folder
        self._version = version

    @classmethod
    def find(cls, root: Path = Path("/sys/fs/cgroup"), cgroups: Path = Path("/proc/self/cgroup")) -> Cgroups | None:
        """Return what makes groups, or None where this process may not, or memory is not limited by them.

        `root` and `cgroups` as in `find_gauge`.
        """
        own = next(surrounding_gauges(root, cgroups), None)
        if own is None:
            return None
        _remove_left(own.folder)
        made = cls(own.folder / f"{PREFIX}{secrets.token_hex(4)}", own.version)
        try:
            made.group(1 << 30).close()
        except OSError as error:
            log.info("func_ram is kept by watching: %s", error)
            made.close()
            return None
        return made

    def group(self, limit_bytes: int) -> CallGroup:
        """Return a new group. Raises OSError."""
        self._folder.mkdir(exist_ok=True)
        return CallGroup(self._folder / secrets.token_hex(4), self._version, limit_bytes)

    def close(self) -> None:
        """Remove all groups, whose processes have ended."""
        _remove(self._folder)


def _remove_left(folder: Path) -> None:
    """Remove what nodes have left that were killed; groups in use stay."""
    for left in folder.glob(f"{PREFIX}*"):
        _remove(left)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for inner in os.scandir(folder):
            if inner.is_dir():
                with contextlib.suppress(OSError):
                    os.rmdir(inner.path)
        folder.rmdir()
