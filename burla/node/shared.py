"""Four numbers that a child and its node share, in memory, without a message per call.

They let the node blame the right input when a child dies, give output to its call, and take back calls that a long one
holds up. `LIMIT` is written by the node alone, the others by the child alone. Taking back needs no lock: the child
writes POSITION before it reads LIMIT; the node writes LIMIT, waits longer than any store can stay invisible, then reads
POSITION: calls from max(limit, position + 1) on cannot start any more.
"""

from __future__ import annotations

import mmap
import os
import tempfile

INDEX = 0  # of the input whose call runs, or -1
POSITION = 1  # of that call in the current Run
LIMIT = 2  # calls from this position on must not start
STARTED_NS = 3  # time.monotonic_ns() of the start of the call
SIZE_BYTES = 4 * 8
NO_LIMIT = 2**62


def create() -> int:
    """Return the descriptor of new shared memory, for `attach` in this process and a child."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("burla-child")
    else:
        fd, path = tempfile.mkstemp()
        os.unlink(path)
    os.ftruncate(fd, SIZE_BYTES)
    return fd


def attach(fd: int) -> memoryview:
    """Return the numbers behind a descriptor as a writable view; closes the descriptor."""
    memory = mmap.mmap(fd, SIZE_BYTES)
    os.close(fd)
    return memoryview(memory).cast("q")
