"""The failures of a job, grouped by what they are and where they happened."""

from __future__ import annotations

import linecache
import pickle
import re
from dataclasses import dataclass
from pathlib import PurePath

from burla.protocol import Ended, Event, Failure
from burla.serialize_errors import Record

SAMPLE_INPUTS = 10
FRAME = re.compile(r'  File "(.+)", line (\d+), in ')


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures of one type on one line. `message`, `traceback`: of the first; `inputs`: the first 10 indices.

    `line` is like "file.py:12", empty for what happened on no line, such as a crash. What ended the job itself, such as
    NoCompatibleNodes, is of no input: `count` is 0 then.
    """

    type_name: str
    line: str
    message: str
    count: int
    inputs: tuple[int, ...]
    traceback: str


class FailureGroups:
    """Failures as they come; no user's class is needed to read them."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}

    def add(self, event: Event) -> None:
        """Take in an event; those that are no failures change nothing."""
        if isinstance(event, Failure):
            type_name, line, message, traceback = _described(event.payload)
            self._groups.setdefault((type_name, line), _Group(message, traceback)).add(event.index)
        elif isinstance(event, Ended) and event.error is not None:
            error = pickle.loads(event.error)
            self._groups.setdefault((type(error).__name__, ""), _Group(str(error), ""))

    def groups(self) -> list[ErrorGroup]:
        """Return the groups, the largest first."""
        found = [
            ErrorGroup(type_name, line, one.message, one.count, tuple(one.inputs), one.traceback)
            for (type_name, line), one in self._groups.items()
        ]
        return sorted(found, key=lambda one: -one.count)


class _Group:
    def __init__(self, message: str, traceback: str):
        self.message, self.traceback = message, traceback
        self.count = 0
        self.inputs: list[int] = []

    def add(self, index: int) -> None:
        self.count += 1
        if len(self.inputs) < SAMPLE_INPUTS:
            self.inputs.append(index)


def _described(payload: bytes) -> tuple[str, str, str, str]:
    records: list[Record]
    _, records = pickle.loads(payload)
    record, line = records[0], ""
    if record.frames:
        frame = record.frames[-1]
        line = f"{PurePath(frame.file).name}:{frame.line}"
    return record.type_name, line, record.message, with_lines(record.text)


def with_lines(text: str) -> str:
    """Return a traceback with the lines that only this process has, such as those of a notebook's cells."""
    lines = text.splitlines(keepends=True)
    shown: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        shown.append(line)
        if (frame := FRAME.match(line)) and not following.startswith("    "):
            source = linecache.getline(frame[1], int(frame[2])).strip()
            shown += [f"    {source}\n"] if source else []
    return "".join(shown)
