"""A local cluster in a cgroup with a memory limit of its own, made for a test."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
START = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
from burla import remote_parallel_map
assert remote_parallel_map(abs, [-1]) == [1]
"""


class NoCgroup(Exception):
    """This process may make no memory cgroups."""


@dataclass(frozen=True)
class Group:
    """A memory cgroup."""

    folder: Path
    version: int

    @property
    def kills(self) -> int:
        """How many processes in it the kernel has ended for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        fields = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(fields["oom_kill"])

    @property
    def used_bytes(self) -> int:
        """What its processes use, without what the page cache could give back."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        fields = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        inactive = fields["inactive_file"] if self.version == 2 else fields["total_inactive_file"]
        return int((self.folder / name).read_text()) - int(inactive)


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[Group]:
    """Make a cgroup with a limit, and remove it. Raises NoCgroup."""
    group, limit = _make()
    try:
        (group.folder / limit).write_text(str(limit_bytes))
        yield group
    finally:
        _remove(group.folder)


def start_cluster(group: Group) -> None:
    """Start the local cluster of this environment in the group, by a process that ends."""
    subprocess.run([sys.executable, "-c", START, str(group.folder)], check=True, timeout=60)


def _make() -> tuple[Group, str]:
    name = f"burla-test-{secrets.token_hex(4)}"
    reasons = []
    for folder, version, limit in (
        (ROOT / "memory" / name, 1, "memory.limit_in_bytes"),
        (ROOT / name, 2, "memory.max"),
    ):
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        if (folder / limit).exists():
            return Group(folder, version), limit
        folder.rmdir()
        reasons.append(f"{folder} has no {limit}")
    raise NoCgroup("; ".join(reasons))


def _remove(folder: Path) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            for inner in folder.iterdir():
                if inner.is_dir():
                    inner.rmdir()
            return folder.rmdir()
        except OSError:  # the kernel still cleans up after a process
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
