"""The log of a job: what its calls print, line by line, for a list in the browser that draws only what is in sight."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

KEPT_LINES = 100_000
KEPT_CHARACTERS = 10_000_000
MESSAGE_LINES = 20_000
LAST_LINES = 500  # more, ten times a second, would make the page lag
STATIC = {"_esm": "log.js", "_css": "log.css"}
LINE_CHARACTERS = 10_000  # of longer lines the log shows the beginning


class Line(NamedTuple):
    """A line that call `input_index` wrote to `stream` (1 or 2), without its end."""

    input_index: int
    stream: int
    text: str


class LineBuffer:
    """The newest lines, numbered from 0, and which of them have been taken."""

    def __init__(self, kept_lines: int = KEPT_LINES, kept_characters: int = KEPT_CHARACTERS):
        self.total = 0
        self._kept_lines = kept_lines
        self._kept_characters = kept_characters
        self._characters = 0
        self._lines: deque[Line] = deque()
        self._taken = 0

    def add(self, index: int, stream: int, text: str) -> None:
        """Take in what a call wrote; of a line that a progress bar has rewritten, only the last state."""
        for line in text.removesuffix("\n").split("\n"):
            if "\r" in line:
                line = line.rstrip("\r").rpartition("\r")[2]
            if len(line) > LINE_CHARACTERS:
                line = f"{line[:LINE_CHARACTERS]} … ({len(line) - LINE_CHARACTERS:,} more characters)"
            self._lines.append(Line(index, stream, line))
            self._characters += len(line)
            self.total += 1
        while len(self._lines) > 1 and self._too_many():
            self._characters -= len(self._lines.popleft().text)

    def take(self, count: int = MESSAGE_LINES) -> tuple[int, list[Line]]:
        """Return the next lines that were not taken yet and are kept still, and the number of the first."""
        first = max(self._taken, self.total - len(self._lines))
        self._taken = min(first + count, self.total)
        return first, self.last(self.total - first)[: self._taken - first]

    def rewind(self) -> None:
        """Have all lines that are kept taken once more."""
        self._taken = 0

    def last(self, count: int, characters: int | None = None) -> list[Line]:
        """Return the last lines, at most `count`, and no more than have so many characters together."""
        newest: list[Line] = []
        for line in itertools.islice(reversed(self._lines), count):
            if characters is not None:
                characters -= len(line.text)
                if characters < 0:
                    break
            newest.append(line)
        return newest[::-1]

    def _too_many(self) -> bool:
        return len(self._lines) > self._kept_lines or self._characters > self._kept_characters


class Log(Protocol):
    """Shows lines, in a widget."""

    widget: Any

    def send(self, first: int, lines: Sequence[Line]) -> None:
        """Show more lines, the first of which has number `first`."""
        ...


def make_log(heard: Callable[[], None], layout: Any) -> Log:
    """Return a log; `heard` is called, in any thread, whenever a front end begins to show it, if that can be known."""
    try:
        import anywidget  # late, as all that only a live view needs
    except ImportError:
        return _LastLines(layout)
    return _Scrolling(anywidget.AnyWidget, layout, heard)


class _Scrolling:
    """All lines, of which the browser draws those in sight."""

    def __init__(self, base: Any, layout: Any, heard: Callable[[], None]):
        static = files("burla_jupyter") / "static"
        attributes = {name: (static / file).read_text(encoding="utf-8") for name, file in STATIC.items()}
        self.widget = type("BurlaLog", (base,), attributes)(layout=layout)
        self._heard = heard
        self._front_ends: set[int] = set()
        self.widget.on_msg(self._receive)

    def send(self, first: int, lines: Sequence[Line]) -> None:
        index, stream, text = zip(*lines, strict=True)
        batch = {"first": first, "index": index, "stream": stream, "text": text}
        # as bytes, because a kernel looks at every string of a message once more; lone surrogates are no UTF-8
        data = json.dumps(batch, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self.widget.send({"kind": "lines"}, buffers=[data])

    def _receive(self, widget: Any, content: Any, buffers: Any) -> None:
        if isinstance(content, dict) and content.get("kind") == "hello":
            self.widget.send({"kind": "welcome"})
            if content["id"] not in self._front_ends:  # it says so until it is heard
                self._front_ends.add(content["id"])
                self._heard()


class _LastLines:
    """The last lines as HTML, where anywidget is missing."""

    def __init__(self, layout: Any) -> None:
        import ipywidgets

        self.widget = ipywidgets.HTML(layout=layout)
        self._lines: deque[Line] = deque(maxlen=LAST_LINES)

    def send(self, first: int, lines: Sequence[Line]) -> None:
        from burla_jupyter.markup import log_lines

        self._lines.extend(lines)
        self.widget.value = log_lines(self._lines)
