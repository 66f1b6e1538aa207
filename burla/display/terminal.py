"""A status line at the foot of the terminal, and what calls print above it.

The cursor waits at column 0 of the status line, on a blank: so everything from there on can be erased, even if the
terminal was made narrower in between and has wrapped the line.
"""

from __future__ import annotations

import codecs
import enum
import io
import itertools
import operator
import os
import re
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from burla.display.progress import Progress
from burla.display.view import ShownJob, Text
from burla.protocol import STDOUT

if TYPE_CHECKING:
    from rich.console import Console

HIDDEN_S = 0.3  # a quick call shows nothing
REDRAW_S = 0.1
FALLBACK_COLUMNS = 80
TRAILING_COLOURS = re.compile(r"(\x1b\[[\d;]*m)+$")


def supported(stream: TextIO | None = None) -> bool:
    """Return whether a status line can be drawn on `stream` (None: on stderr)."""
    stream = sys.stderr if stream is None else stream
    if sys.platform == "win32" or _target(stream) is not _Target.TERMINAL:
        return False
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    try:
        return codecs.lookup(getattr(stream, "encoding", None) or "ascii").name == "utf-8"
    except LookupError:
        return False


class PlainView:
    """Passes text on, and nothing else: no status, no control characters."""

    ticks = False

    def begin(self, job: ShownJob, detached: bool) -> None:
        """Do nothing: there is no status."""

    def write(self, texts: Sequence[Text]) -> None:
        """Write text of calls to the streams that they wrote to. Raises BrokenPipeError."""
        for stream_number, text in _joined(texts):
            self.put(stream_number, text)

    def put(self, stream_number: int, text: str) -> None:
        """Write text of calls to stdout (1) or stderr (2). Raises BrokenPipeError."""
        _put(_standard_stream(stream_number), text)

    def update(self, progress: Progress, now_s: float) -> None:
        """Do nothing: there is no status."""

    def say(self, text: str, always: bool = False) -> None:
        """Write a line of ours to stderr if it must be said in any case."""
        if always:
            _put(sys.stderr, text + "\n")

    def hide(self) -> None:
        """Do nothing: there is no status."""

    def close(self, error: BaseException | None = None, kept: bool = True) -> None:
        """Do nothing: there is no status."""


class TerminalView:
    """Keeps the status of one job below the text of its calls; of several jobs on a terminal the first one shows."""

    ticks = True

    def __init__(self, stream: TextIO):
        self._screen = _screens.setdefault(stream, _Screen(stream))
        self._drawn_s: float | None = None
        self._settling = False
        self._closed = False

    def begin(self, job: ShownJob, detached: bool) -> None:
        """Do nothing: the status comes with the first update."""

    def write(self, texts: Sequence[Text]) -> None:
        """Write text of calls to the streams that they wrote to, above the status. Raises BrokenPipeError."""
        for stream_number, text in _joined(texts):
            self.put(stream_number, text)

    def put(self, stream_number: int, text: str) -> None:
        """Write text of calls to stdout (1) or stderr (2), above the status. Raises BrokenPipeError."""
        screen = self._screen
        stream = _standard_stream(stream_number)
        target = _target(stream)
        with screen.lock:
            if target is _Target.FILE:
                _put(stream, text)
                return
            screen.erase()
            _put(stream, text)
            screen.passed(target, text)
            if target is _Target.PIPE:  # `| tee log`: the terminal has the text a little later, so the status must wait
                self._settling = True
            else:
                screen.draw()

    def update(self, progress: Progress, now_s: float) -> None:
        """Show the job as it is now; to be called at least every second, draws at most 10 times a second."""
        screen = self._screen
        with screen.lock:
            if self._closed or screen.owner not in (None, self) or progress.elapsed_s(now_s) < HIDDEN_S:
                return
            if self._settling:
                self._settling, self._drawn_s = False, now_s
            if self._drawn_s is not None and now_s - self._drawn_s < REDRAW_S:
                return
            self._drawn_s = now_s
            screen.show(self, lambda columns: _render(screen.console(), progress, now_s, columns))

    def say(self, text: str, always: bool = False) -> None:
        """Write a line of ours to the terminal, above the status."""
        screen = self._screen
        with screen.lock:
            screen.erase()
            screen.put(screen.fresh_line() + text + "\n")
            screen.draw()

    def hide(self) -> None:
        """Take the status away until the next update, because somebody else may print meanwhile."""
        screen = self._screen
        with screen.lock:
            screen.erase()
            if screen.owner is self:
                screen.release()
            screen.cursor = _Cursor.UNKNOWN

    def close(self, error: BaseException | None = None, kept: bool = True) -> None:
        """Take the status away for good."""
        self._closed = True
        self.hide()


class _Cursor(enum.Enum):
    LINE_START = enum.auto()
    INSIDE_LINE = enum.auto()  # after text without a newline: no status, it would overwrite the text
    UNKNOWN = enum.auto()  # somebody else may have printed


class _Target(enum.Enum):
    TERMINAL = enum.auto()
    FILE = enum.auto()  # nothing of it shows on the terminal
    PIPE = enum.auto()
    OBJECT = enum.auto()  # put in place of a stream: may pass text on to the terminal, or not


class _Screen:
    """One terminal: its cursor, and the status line on it, whichever thread's job that shows."""

    def __init__(self, stream: TextIO):
        self.lock = threading.RLock()
        self.owner: TerminalView | None = None
        self.cursor = _Cursor.UNKNOWN
        self._stream = weakref.ref(stream)
        self._console: Console | None = None
        self._render: Callable[[int], str] | None = None
        self._line = ""
        self._line_columns = 0  # for which `_line` was rendered; 0: not yet
        self._shown = False

    def show(self, owner: TerminalView, render: Callable[[int], str]) -> None:
        self.owner = owner
        self._render = render
        self._line_columns = 0
        self.draw()

    def release(self) -> None:
        self.owner = None
        self._render = None

    def draw(self) -> None:
        if self._render is None or self.cursor is _Cursor.INSIDE_LINE:
            return
        columns = _columns(self._stream())
        if columns != self._line_columns:
            self._line, self._line_columns = self._render(columns), columns
        self._shown = True  # before it is: an interrupt in between leaves too much to erase, not too little
        self.put(f"{self.fresh_line()}\r{self._line}\x1b[J\r")

    def erase(self) -> None:
        if self._shown:
            self.put("\r\x1b[J")
            self._shown = False

    def fresh_line(self) -> str:
        """Return what brings the cursor to the start of an empty line, wherever it is."""
        cursor, self.cursor = self.cursor, _Cursor.LINE_START
        if cursor is _Cursor.INSIDE_LINE:
            return "\n"
        # A full line of blanks ends in the next line, except when it began at column 0.
        return " " * _columns(self._stream()) + "\r" if cursor is _Cursor.UNKNOWN else ""

    def passed(self, target: _Target, text: str) -> None:
        if target is not _Target.TERMINAL:
            self.cursor = _Cursor.UNKNOWN
        elif visible := TRAILING_COLOURS.sub("", text):
            self.cursor = _Cursor.LINE_START if visible.endswith("\n") else _Cursor.INSIDE_LINE

    def put(self, text: str) -> None:
        try:
            _put(self._stream(), text)
        except OSError:  # the terminal is gone; that is no reason to stop a job, whose output may go to a file
            self.release()

    def console(self) -> Console:
        if self._console is None:
            from rich.console import Console  # late: a quick call need not wait for the import

            self._console = Console(file=io.StringIO(), force_terminal=True, highlight=False)
        return self._console


_screens: weakref.WeakKeyDictionary[TextIO, _Screen] = weakref.WeakKeyDictionary()


def _render(console: Console, progress: Progress, now_s: float, columns: int) -> str:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    room = max(1, columns - 1)  # the last column stays free: text there makes some terminals wrap
    name = Text("".join(c if c.isprintable() else "�" for c in progress.function_name), style="bold")
    name.truncate(max(8, columns // 4), overflow="ellipsis")
    fields = progress.fields(now_s)
    bar = Text()
    if progress.fraction is not None:
        drawn = ProgressBar(total=1.0, completed=progress.fraction, width=min(40, columns // 4))
        for segment in console.render(drawn, console.options.update_width(columns)):
            bar.append(segment.text, segment.style)

    first, *rest = map(Text, fields)
    lines = [
        Text(" ") + Text("  ").join(part for part in (name, shown_bar, first, *rest[dropped:]) if part)
        for shown_bar in (bar, Text())
        for dropped in range(len(rest))
    ]
    text = next((line for line in lines if line.cell_len <= room), lines[-1])
    text.truncate(room, overflow="ellipsis")
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def _joined(texts: Sequence[Text]) -> Iterator[tuple[int, str]]:
    for stream_number, some in itertools.groupby(texts, operator.attrgetter("stream")):
        yield stream_number, "".join([one.text for one in some])


def _standard_stream(number: int) -> TextIO | None:
    return sys.stdout if number == STDOUT else sys.stderr


def _target(stream: TextIO | None) -> _Target:
    if stream is None or getattr(stream, "closed", False):
        return _Target.FILE
    try:
        descriptor = stream.fileno()
        if os.isatty(descriptor):
            return _Target.TERMINAL
        return _Target.PIPE if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else _Target.FILE
    except (AttributeError, OSError, ValueError):
        return _Target.OBJECT


def _columns(stream: TextIO | None) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream else 0
    except (OSError, ValueError):
        columns = 0
    return columns or FALLBACK_COLUMNS


def _put(stream: TextIO | None, text: str) -> None:
    """Write exactly `text`, with the bytes behind surrogate escapes; without a stream, or to a closed one, nothing."""
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _put_bytes(stream, text)
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    if hasattr(stream, "flush"):  # not every object in place of sys.stdout has it, and print() does not ask for it
        stream.flush()


def _put_bytes(stream: TextIO, text: str) -> str:
    """Write text with surrogate escapes as the bytes that it stands for; return what there is no place for."""
    if not isinstance(stream, io.TextIOWrapper):  # such as a notebook's
        return text.encode("utf-8", "backslashreplace").decode()
    try:
        data = text.encode(stream.encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text
    stream.flush()
    stream.buffer.write(data)
    return ""
