"""What an eye sees: the views write to a real pseudo terminal, and pyte keeps its screen."""

from __future__ import annotations

import io
import itertools
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from burla import views
from burla.display.progress import Progress
from burla.display.terminal import PlainView, TerminalView, supported
from burla.protocol import JobState, Snapshot

STATUS = "━"
MakeTerminal = Callable[..., "Terminal"]


class Terminal:
    """A pseudo terminal of which `stderr` is our end, with its screen."""

    def __init__(self, columns: int, rows: int):
        self.descriptor, slave = pty.openpty()
        self.stderr = open(slave, "w", encoding="utf-8", buffering=1)
        self.stdout = open(os.dup(slave), "w", encoding="utf-8", buffering=1)
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._feed = pyte.ByteStream(self.screen)
        self._marks = itertools.count()
        self.raw = b""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self.descriptor, (rows, columns))
        self.screen.resize(rows, columns)

    def look(self) -> list[str]:
        """Return the rows down to the last one with text, those that scrolled away first."""
        mark = f"\x1b]2;{next(self._marks)}\x07".encode()  # a window title: nothing to see, and the end of what came
        os.write(self.stdout.fileno(), mark)
        data = b""
        while not data.endswith(mark):
            data += os.read(self.descriptor, 65536)
        self.raw += data.removesuffix(mark)
        self._feed.feed(data)
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        rows = [row.rstrip() for row in [*above, *self.screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def column(self) -> int:
        self.look()
        return self.screen.cursor.x

    def close(self) -> None:
        self.stderr.close()
        self.stdout.close()
        os.close(self.descriptor)


@pytest.fixture
def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeTerminal]:
    """Tests make their terminal themselves: before they start, pytest puts its own streams in place."""
    made: list[Terminal] = []

    def make(columns: int = 80, rows: int = 10) -> Terminal:
        terminal = Terminal(columns, rows)
        made.append(terminal)
        monkeypatch.setattr(sys, "stdout", terminal.stdout)
        monkeypatch.setattr(sys, "stderr", terminal.stderr)
        return terminal

    monkeypatch.setenv("TERM", "xterm-256color")
    yield make
    monkeypatch.undo()
    for terminal in made:
        terminal.close()


def job(done: int = 1234, name: str = "crunch") -> Progress:
    progress = Progress(name, 5000, started_s=0.0)
    progress.apply(Snapshot(JobState.RUNNING, 5000, 0, 0, 0, 1), 0.0)
    progress.apply(Snapshot(JobState.RUNNING, 5000, done, 0, 2, 1), 4.0)
    return progress


def test_the_status_is_one_line(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    assert terminal.look() == [" crunch  ━━━━╸━━━━━━━━━━━━━━━  1,234/5,000  2 running  308/s  eta 0:12"]
    assert terminal.column == 0


def test_prints_scroll_above_the_status(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    for number in range(30):
        view.put(1 + number % 2, f"line {number}\n")
    *lines, status = terminal.look()
    assert lines == [f"line {number}" for number in range(30)]
    assert STATUS in status
    view.close()
    assert terminal.look() == lines


def test_lines_wider_than_the_terminal_stay_whole(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.put(1, "x" * 80 + "\n" + "y" * 200 + "\n")
    view.update(job(), 4.2)
    view.close()
    assert terminal.look() == ["x" * 80, "y" * 80, "y" * 80, "y" * 40]


def test_nothing_stays_after_close_and_closing_again_does_nothing(make_terminal: MakeTerminal):
    terminal = make_terminal()
    print("before")
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.close()
    assert terminal.column == 0
    assert terminal.look() == ["before"]
    seen = terminal.raw
    view.close()
    view.update(job(), 9.0)
    assert terminal.look() == ["before"]
    assert terminal.raw == seen
    print("after")
    assert terminal.look() == ["before", "after"]


def test_the_cursor_is_never_hidden(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.put(1, "text\n")
    terminal.look()
    assert not terminal.screen.cursor.hidden
    view.close()
    terminal.look()
    assert b"\x1b[?25" not in terminal.raw


def test_a_line_without_its_end_is_not_overwritten(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.put(1, "first\nhalf")
    view.update(job(), 5.0)
    assert terminal.look() == ["first", "half"]
    view.put(1, " and half\n")
    lines = terminal.look()
    assert lines[:2] == ["first", "half and half"]
    assert STATUS in lines[2] and len(lines) == 3
    view.put(2, "open")
    view.close()
    assert terminal.look() == ["first", "half and half", "open"]
    assert terminal.column == 4


def test_colours_after_the_newline_do_not_keep_the_status_away(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.put(1, "\x1b[31mred\n\x1b[0m")
    view.update(job(), 4.0)
    lines = terminal.look()
    assert lines[0] == "red" and STATUS in lines[1]


def test_a_line_that_the_caller_had_begun_stays(make_terminal: MakeTerminal):
    terminal = make_terminal()
    print("computing: ", end="", flush=True)
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    lines = terminal.look()
    assert lines[0] == "computing:" and STATUS in lines[1]
    view.close()
    assert terminal.look() == ["computing:"]


def test_a_begun_line_that_fills_the_row_stays(make_terminal: MakeTerminal):
    terminal = make_terminal()
    print("x" * 80, end="", flush=True)
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.close()
    assert terminal.look() == ["x" * 80]


def test_prints_of_the_caller_between_two_results(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    for number in range(5):
        view.update(job(), 4.0 + number)
        view.hide()
        print("result", number)
    print("...", end="", flush=True)
    view.update(job(), 20.0)
    view.close()
    assert terminal.look() == [*(f"result {number}" for number in range(5)), "..."]


def test_a_quick_call_shows_nothing(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    progress = Progress("crunch", 10, started_s=50.0)
    view.update(progress, 50.0)
    view.update(progress, 50.29)
    view.close()
    terminal.look()
    assert terminal.raw == b""
    view = TerminalView(terminal.stderr)
    view.update(progress, 50.31)
    assert terminal.look() == [" crunch  connecting  0:00"]


def test_at_most_ten_redraws_a_second(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    for hundredth in range(200):
        view.update(job(done=hundredth), 4.0 + hundredth / 100)
        terminal.look()
    assert 15 <= terminal.raw.count(b"crunch") <= 20


def test_our_own_lines_stand_alone_above_the_status(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.say("started a local cluster: 2 CPUs, ends after 5 min idle")
    view.update(job(), 4.0)
    view.put(1, "half")
    view.say("the local cluster cannot grow", always=True)
    lines = terminal.look()
    assert lines[:3] == [
        "started a local cluster: 2 CPUs, ends after 5 min idle",
        "half",
        "the local cluster cannot grow",
    ]
    assert STATUS in lines[3] and len(lines) == 4


@pytest.mark.parametrize("columns", [1, 5, 12, 20, 33, 47, 60, 79, 80, 81, 120, 300])
@pytest.mark.parametrize("name", ["f", "a_function_with_" + "a_very_" * 30 + "long_name", "計算" * 40, "a\x1b[31m\nb"])
def test_the_status_fits_into_any_terminal(make_terminal: MakeTerminal, columns: int, name: str):
    terminal = make_terminal(columns, 6)
    view = TerminalView(terminal.stderr)
    view.update(job(name=name), 4.0)
    assert len(terminal.look()) <= 1
    assert terminal.screen.cursor.y == 0
    view.put(1, "\n")
    view.close()
    assert terminal.look() == []


def test_a_long_name_is_cut(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(name="parse_the_whole_standard_library"), 4.0)
    (status,) = terminal.look()
    assert status.startswith(" parse_the_whole_sta…  ━━━")
    assert status.endswith("1,234/5,000  308/s  eta 0:12")


def test_the_status_follows_a_resize(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    terminal.look()
    terminal.resize(50, 10)
    view.put(1, "text\n")
    lines = terminal.look()
    assert lines[0] == "text" and lines[1].startswith(" crunch  ━") and len(lines) == 2
    assert lines[1].endswith("1,234/5,000  eta 0:12")
    terminal.resize(100, 10)
    view.update(job(), 4.2)
    assert terminal.look()[1].endswith("1,234/5,000  2 running  308/s  eta 0:12")


def test_a_status_that_a_narrower_terminal_has_wrapped_goes_whole(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    status = terminal.look()[0]
    terminal.resize(40, 10)
    os.write(terminal.stdout.fileno(), f"\x1b[2K{status}\x1b[A\r".encode())  # what a terminal that reflows makes of it
    assert len(terminal.look()) == 2
    view.close()
    assert terminal.look() == []


def test_text_into_a_file_leaves_the_status_alone(
    make_terminal: MakeTerminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    terminal.look()
    seen = terminal.raw
    with (tmp_path / "out.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        view.put(1, "one\ntw")
        view.put(1, "o\nthree")
        assert (tmp_path / "out.txt").read_text() == "one\ntwo\nthree"  # flushed each time
    terminal.look()
    assert terminal.raw == seen
    view.update(job(), 5.0)
    assert STATUS in terminal.look()[0]


def test_text_into_a_pipe_that_may_lead_back_here_is_let_pass_first(
    make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch
):
    """As in `python job.py | tee log`."""
    terminal = make_terminal()
    view = TerminalView(terminal.stderr)
    reader, writer = os.pipe()
    with open(reader, "rb") as tee, open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        view.update(job(), 4.0)
        view.put(1, "one\ntwo")
        view.update(job(), 5.0)
        assert terminal.look() == []
        os.write(terminal.stdout.fileno(), os.read(tee.fileno(), 100))
        view.update(job(), 5.2)
        lines = terminal.look()
        assert lines[:2] == ["one", "two"] and STATUS in lines[2] and len(lines) == 3


def test_text_goes_to_what_stdout_is_now(make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch):
    terminal = make_terminal()
    for view in (TerminalView(terminal.stderr), PlainView()):
        view.update(job(), 4.0)
        stdout, stderr = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        view.put(1, "ünï\r\n\ttext\x1b[1m")
        view.put(2, "error")
        view.close()
        assert (stdout.getvalue(), stderr.getvalue()) == ("ünï\r\n\ttext\x1b[1m", "error")
    assert terminal.look() == []


def test_an_object_that_hands_text_on_to_the_terminal(make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch):
    terminal = make_terminal()

    class Tee:
        def write(self, text: str) -> int:
            return os.write(terminal.stdout.fileno(), text.encode())

    monkeypatch.setattr(sys, "stdout", Tee())
    view = TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    view.put(1, "first\nhalf")
    lines = terminal.look()
    assert lines[:2] == ["first", "half"] and STATUS in lines[2]
    view.close()
    assert terminal.look() == ["first", "half"]


@pytest.mark.parametrize("plain", [True, False])
def test_text_that_the_encoding_cannot_hold_is_escaped(
    make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch, plain: bool
):
    terminal = make_terminal()
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", latin)
    view = PlainView() if plain else TerminalView(terminal.stderr)
    view.put(1, "é ☃\n")
    view.put(2, "a\ud800b\n")
    assert latin.buffer.getvalue() == b"\xe9 \\u2603\n"  # type: ignore[attr-defined]
    assert terminal.look() == ["a\\ud800b"]


@pytest.mark.parametrize("plain", [True, False])
def test_without_stdout_text_goes_nowhere(make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch, plain: bool):
    terminal = make_terminal()
    closed = io.StringIO()
    closed.close()
    view = PlainView() if plain else TerminalView(terminal.stderr)
    for stdout in (None, closed):
        monkeypatch.setattr(sys, "stdout", stdout)
        view.put(1, "text\n")
    view.put(2, "here\n")
    assert terminal.look() == ["here"]


@pytest.mark.parametrize("plain", [True, False])
def test_a_broken_pipe_is_told(make_terminal: MakeTerminal, monkeypatch: pytest.MonkeyPatch, plain: bool):
    terminal = make_terminal()

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    view = PlainView() if plain else TerminalView(terminal.stderr)
    view.update(job(), 4.0)
    with pytest.raises(BrokenPipeError):
        view.put(1, "text\n")
    view.close()
    assert terminal.look() == []


def test_a_terminal_that_is_gone_does_not_stop_a_job_that_writes_to_a_file(monkeypatch: pytest.MonkeyPatch):
    master, slave = pty.openpty()
    stderr = io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", write_through=True)  # type: ignore[arg-type]
    stdout = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    view = TerminalView(stderr)
    view.update(job(), 4.0)
    os.close(master)
    view.update(job(), 5.0)
    view.put(1, "text\n")
    view.close()
    stderr.close()
    assert stdout.getvalue() == "text\n"


def test_two_jobs_share_a_terminal(make_terminal: MakeTerminal):
    terminal = make_terminal()
    first, second = TerminalView(terminal.stderr), TerminalView(terminal.stderr)
    first.update(job(name="first"), 4.0)
    second.update(job(name="second"), 4.0)
    second.put(1, "of the second\n")
    first.put(1, "of the first\n")
    lines = terminal.look()
    assert lines[:2] == ["of the second", "of the first"]
    assert "first" in lines[2] and len(lines) == 3
    first.close()
    second.update(job(name="second"), 5.0)
    assert "second" in terminal.look()[2]
    second.close()
    assert terminal.look() == ["of the second", "of the first"]


def test_the_plain_view_writes_text_and_nothing_else(make_terminal: MakeTerminal):
    terminal = make_terminal()
    view = PlainView()
    view.say("started a local cluster")
    view.update(job(), 4.0)
    view.put(1, "out")
    view.hide()
    view.put(2, "err\n")
    view.say("must be said", always=True)
    view.close()
    terminal.look()
    assert terminal.raw == b"outerr\r\nmust be said\r\n"


def test_where_a_status_line_is_possible(make_terminal: MakeTerminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = make_terminal()
    assert supported() and supported(terminal.stderr)
    assert isinstance(views.make_view(spinner=True), TerminalView)
    assert isinstance(views.make_view(spinner=False), PlainView)
    with open(os.dup(terminal.stderr.fileno()), "w", encoding="latin-1") as latin:
        assert not supported(latin)
    with (tmp_path / "err").open("w", encoding="utf-8") as file:
        assert not supported(file)
    closed = open(os.dup(terminal.stderr.fileno()), "w", encoding="utf-8")
    closed.close()
    assert not supported(closed)
    monkeypatch.setenv("TERM", "dumb")
    assert not supported()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", None)
    assert not supported()
    assert isinstance(views.make_view(spinner=True), PlainView)


def test_rich_is_imported_only_when_something_is_drawn():
    code = (
        "import sys; from burla import views; view = views.make_view(True); view.put(1, ''); "
        "sys.exit('rich' in sys.modules)"
    )
    controller, stderr = pty.openpty()
    try:
        assert subprocess.run([sys.executable, "-c", code], stderr=stderr, timeout=60).returncode == 0
    finally:
        os.close(controller)
        os.close(stderr)
