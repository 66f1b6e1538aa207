"""How much memory there is and is used: of this process's cgroup if that has a limit, else of the machine.

What the page cache holds and could give back does not count as used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

LIMITS = {1: "memory.limit_in_bytes", 2: "memory.max"}
UNLIMITED_BYTES = 1 << 60  # what cgroup v1 says instead of nothing is about 2**63


@dataclass(frozen=True, slots=True)
class Memory:
    """One reading. `kills`: processes that the kernel has ended for want of memory, counted from some moment on."""

    used_bytes: int
    limit_bytes: int
    kills: int


class Gauge(Protocol):
    """Reads the memory that the calls of this node share."""

    def read(self) -> Memory: ...


class MachineGauge:
    """The whole machine."""

    def read(self) -> Memory:
        memory = psutil.virtual_memory()
        return Memory(memory.total - memory.available, memory.total, _vmstat_kills())


@dataclass(frozen=True, slots=True)
class CgroupGauge:
    """One cgroup, of version 2 or 1."""

    folder: Path
    version: int

    def read(self) -> Memory:
        if self.version == 2:
            used, cache, events = "memory.current", "inactive_file", "memory.events"
        else:
            used, cache, events = "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"
        stat = _table(self.folder / "memory.stat")
        return Memory(
            used_bytes=max(0, _number(self.folder / used) - stat.get(cache, 0)),
            limit_bytes=_limit(self.folder, self.version),
            kills=_table(self.folder / events).get("oom_kill", 0),
        )

    def own_bytes(self) -> int:
        """Return what its processes have, each page once, without files."""
        stat = _table(self.folder / "memory.stat")
        names = ("anon", "shmem") if self.version == 2 else ("total_rss", "total_shmem")
        return sum(stat.get(name, 0) for name in names)


def find_gauge(root: Path = Path("/sys/fs/cgroup"), cgroups: Path = Path("/proc/self/cgroup")) -> Gauge:
    """Return the gauge for this process: of the cgroup around it with the lowest limit, if that is below the machine's.

    `root`: where cgroups are mounted; `cgroups`: which ones this process is in.
    """
    limited = [
        (limit, gauge)
        for gauge in surrounding_gauges(root, cgroups)
        if (limit := _limit(gauge.folder, gauge.version)) < psutil.virtual_memory().total
    ]
    return min(limited, key=lambda pair: pair[0])[1] if limited else MachineGauge()


def tree_bytes(pid: int) -> int:
    """Return the memory that a process and all below it have for themselves, each page once; 0 if it is gone."""
    family, waiting = [], [pid]
    while waiting:
        family.append(waiting.pop())
        waiting += _children(family[-1])
    return _own_bytes(pid) if family == [pid] else sum(map(_proportional_bytes, family))


def surrounding_gauges(root: Path, cgroups: Path) -> Iterator[CgroupGauge]:
    """Yield the memory cgroups that this process is in, from its own one up."""
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mount, version = root / "memory", 1
        elif not controllers:
            mount, version = root if (root / "cgroup.controllers").exists() else root / "unified", 2
        else:
            continue
        folder = mount / path.lstrip("/")
        if not folder.exists():  # in a container the path is the host's, and the mount is what it names
            folder = mount
        while folder.is_relative_to(mount):
            gauge = CgroupGauge(folder, version)
            with contextlib.suppress(OSError, ValueError):  # the root has no limit, and no such files
                gauge.read()
                yield gauge
            folder = folder.parent


def _limit(folder: Path, version: int) -> int:
    text = (folder / LIMITS[version]).read_text().strip()
    return UNLIMITED_BYTES if text == "max" else min(int(text), UNLIMITED_BYTES)


def _number(path: Path) -> int:
    return int(path.read_text())


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {name: int(value) for name, value in pairs}


def _vmstat_kills() -> int:
    try:
        return _table(Path("/proc/vmstat")).get("oom_kill", 0)
    except OSError:
        return 0


def _own_bytes(pid: int) -> int:
    """Return its memory that is no file's; the few MB that it still shares with its zygote count too."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0 if os.path.exists("/proc") else _portable_bytes(pid)
    except ProcessLookupError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in fields)


def _proportional_bytes(pid: int) -> int:
    """Return the same, where what processes share counts in parts: it takes long, some ms for a GB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return _own_bytes(pid)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def _portable_bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found
