"""What a call is told on a node that has neither its caller's files, nor all of its packages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from burla.protocol import MISSING


class Absent(MetaPathFinder):
    """Asked last for a module: says why it could not be installed."""

    def __init__(self, reasons: Mapping[str, str]):
        self._reasons = reasons

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find nothing. Raises ModuleNotFoundError for what is known to be absent."""
        if fullname in self._reasons:
            raise ModuleNotFoundError(f"No module named {fullname!r}: {self._reasons[fullname]}", name=fullname)
        return None


def mark(error: BaseException) -> None:
    """Note on an exception which file or environment variable it says is missing: the caller may have it."""
    if isinstance(error, FileNotFoundError | NotADirectoryError) and isinstance(error.filename, str | bytes):
        vars(error)[MISSING] = ("path", os.fsdecode(error.filename))
    elif type(error) is KeyError and len(error.args) == 1 and isinstance(error.args[0], str) and _of_environ(error):
        vars(error)[MISSING] = ("variable", error.args[0])


def _of_environ(error: KeyError) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code is os._Environ.__getitem__.__code__
