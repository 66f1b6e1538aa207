"""What calls write to their standard streams, taken from the pipes line by line and given to the right call."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable

from burla.node import shared
from burla.protocol import Output

READ_BYTES = 1 << 20
PIPE_BYTES = 1 << 20
LINE_BYTES = 16_000_000  # an unfinished line is kept until it is this long


class OutputPipe:
    """One stream of one child: cuts what arrives at marks and line ends.

    `emit` gets whole lines of one call, or the unfinished last line of a call that ended.
    """

    def __init__(self, read_fd: int, stream: int, secret: bytes, memory: memoryview, emit: Callable[[Output], None]):
        os.set_blocking(read_fd, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except PermissionError:
                pass  # over the user's limit for pipes: the size it has does too
        self._fd = read_fd
        self._stream = stream
        self._secret = secret
        self._mark_bytes = len(secret) + 8
        self._memory = memory
        self._emit = emit
        self._raw = b""  # may end within a mark
        self._line = b""  # an unfinished line
        self._index = -1  # the call whose output came last
        self._reading = False
        self.ended = False

    def start(self) -> None:
        """Read whenever there is something."""
        if not self._reading and not self.ended:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._fd, self._read_some)

    def pause(self) -> None:
        """Read no more for now: the pipe fills, and the call waits in its next write."""
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def close(self) -> None:
        """Take what is left, and end."""
        self.drain()
        if not self.ended:  # the end of the pipe may have been read just now
            self._finish()

    def drain(self) -> None:
        """Take all that was written before this moment; no more than the pipe holds, so that this ends."""
        taken = 0
        while not self.ended and taken <= PIPE_BYTES:
            got = self._read_some()
            if got == 0:
                break
            taken += got

    def end_calls(self) -> None:
        """Take what is left, and give out an unfinished line: no call runs that could go on with it."""
        self.drain()
        self._take(self._raw, self._index)  # no mark: those are written whole
        self._raw = b""
        self._end_call()

    def _read_some(self) -> int:
        index = self._memory[shared.INDEX]
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._finish()
            return 0
        self._feed(data, index)
        return len(data)

    def _finish(self) -> None:
        self.pause()
        self.ended = True
        os.close(self._fd)
        self._take(self._raw, self._index)
        self._raw = b""
        self._end_call()

    def _feed(self, data: bytes, running: int) -> None:
        raw = self._raw + data if self._raw else data
        while (at := raw.find(self._secret)) >= 0:
            if len(raw) < at + self._mark_bytes:
                break
            (index,) = struct.unpack_from("<q", raw, at + len(self._secret))
            self._take(raw[:at], index)
            self._end_call()
            raw = raw[at + self._mark_bytes :]
        keep = at if at >= 0 else len(raw) - self._begun_mark(raw)
        # no mark yet: the call that wrote this still runs, or wrote past Python
        self._take(raw[:keep], running if running >= 0 else self._index)
        self._raw = raw[keep:]

    def _begun_mark(self, raw: bytes) -> int:
        """Return how many bytes at the end of `raw` could be the beginning of a mark."""
        for size in range(min(len(raw), len(self._secret) - 1), 0, -1):
            if raw.endswith(self._secret[:size]):
                return size
        return 0

    def _take(self, data: bytes, index: int) -> None:
        if not data:
            return
        if index != self._index:
            if self._index >= 0 and not self._line:
                self._end_call()
            self._index = index
        cut = data.rfind(b"\n") + 1
        if cut:
            self._emit(Output(max(index, 0), self._stream, self._line + data[:cut]))
            self._line = data[cut:]
        else:
            self._line += data
        if len(self._line) > LINE_BYTES:
            self._end_call()

    def _end_call(self) -> None:
        if self._line:
            self._emit(Output(max(self._index, 0), self._stream, self._line))
            self._line = b""
