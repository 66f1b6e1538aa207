"""The stdout of C code: a buffer of its own, which no exit handler empties when a child ends."""

from __future__ import annotations

import ctypes
import sys

_NAME = "__stdoutp" if sys.platform == "darwin" else "stdout"
_LINE_BUFFERED = 1  # _IOLBF of Linux and macOS

_libc = ctypes.CDLL(None)
_stdout = ctypes.c_void_p.in_dll(_libc, _NAME)


def write_lines_at_once() -> None:
    """From now on C code's lines go to descriptor 1 as they end; to be called before anything is written."""
    _libc.setvbuf(_stdout, None, _LINE_BUFFERED, 0)


def flush() -> None:
    """Write what C code has printed of an unfinished line."""
    _libc.fflush(_stdout)
