"""The status line as a user sees it: programs run in a real pseudo terminal, of which pyte keeps the screen."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from burla import remote_parallel_map
from tests.conftest import Home, Scripts

COLUMNS, ROWS = 90, 12
STARTED = "started a local cluster: 2 CPUs, ends after 5 min idle"
JOB = """\
from burla import remote_parallel_map


def crunch(x):
    import time
    from pathlib import Path

    print(f"line {x}", flush=True)
    while not Path(f"go{x}").exists():
        time.sleep(0.02)
    return x


if __name__ == "__main__":
    print("result", remote_parallel_map(crunch, range(6)))
"""
SLOW_ENOUGH = """\
from burla import remote_parallel_map


def crunch(x):
    import time

    print(f"line {x}", flush=True)
    time.sleep(0.6)  # so long that a status would show
    return x


print("result", remote_parallel_map(crunch, [0], spinner=OPTION))
"""


class TerminalProgram:
    """A program whose three standard streams are a terminal, with what was written to it and how that looks."""

    def __init__(self, folder: Path, source: str, **environ: str):
        path = folder / "program.py"
        path.write_text(textwrap.dedent(source))
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        environ = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", **environ}
        self.process = subprocess.Popen(
            [sys.executable, str(path)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environ
        )
        os.close(theirs)
        self.raw = b""
        self._screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self._open = True

    def rows(self) -> list[str]:
        """Return what the screen shows now, down to the last row with text, and what scrolled away above it."""
        while self._open and select.select([self._ours], [], [], 0)[0]:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # how Linux tells that nobody has the other end any more
                data = b""
            self._open = bool(data)
            self.raw += data
            self._stream.feed(data)
        above = ["".join(row[x].data for x in range(COLUMNS)) for row in self._screen.history.top]
        rows = [row.rstrip() for row in [*above, *self._screen.display]]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def wait_for(self, condition: Callable[[list[str]], object], what: str) -> list[str]:
        """Return the rows as soon as they fulfil a condition."""
        until = time.monotonic() + 30
        while not condition(rows := self.rows()):
            assert self._open and time.monotonic() < until, f"{what} did not come; there is: {rows}"
            time.sleep(0.02)
        return rows

    def finish(self) -> list[str]:
        """Return what is on the screen after the program has ended well."""
        until = time.monotonic() + 60
        while self._open:  # read on, or it could not write
            self.rows()
            assert time.monotonic() < until, self.rows()
            time.sleep(0.02)
        assert self.process.wait(10) == 0, self.rows()
        return self.rows()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., TerminalProgram]]:
    programs: list[TerminalProgram] = []

    def start(source: str, **environ: str) -> TerminalProgram:
        programs.append(TerminalProgram(tmp_path, source, **environ))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


@pytest.fixture
def cluster_is_up() -> None:
    """So that no program here says that it started one."""
    remote_parallel_map(abs, [-1])


def last_row(pattern: str) -> Callable[[list[str]], object]:
    return lambda rows: rows and re.search(pattern, rows[-1])


def test_the_status_tells_how_the_job_stands_below_what_calls_print_and_leaves_nothing(
    start: Callable[..., TerminalProgram], own_home: Home, tmp_path: Path
):
    def release(*calls: int) -> None:
        for call in calls:
            (tmp_path / f"go{call}").touch()

    program = start(JOB)
    rows = program.wait_for(last_row(r"^ crunch .* 0/6  2 running  \d:\d\d$"), "the job's beginning")
    assert rows[:-1] == [STARTED, "line 0", "line 1"] or rows[:-1] == [STARTED, "line 1", "line 0"]
    release(0, 1)
    rows = program.wait_for(last_row(r"━.* 2/6  2 running  [\d.,]+/\w+  eta \d:\d\d$"), "rate and time left")
    assert rows[0] == STARTED and sorted(rows[1:-1]) == [f"line {x}" for x in range(4)]
    release(2)
    program.wait_for(last_row(r" 3/6  2 running "), "one more")
    release(3, 4, 5)
    rows = program.finish()
    assert rows[0] == STARTED and rows[-1] == "result [0, 1, 2, 3, 4, 5]"
    assert sorted(rows[1:-1]) == [f"line {x}" for x in range(6)]


def test_only_the_call_that_starts_the_cluster_says_so(start: Callable[..., TerminalProgram], own_home: Home):
    source = """\
        from burla import remote_parallel_map

        print(remote_parallel_map(abs, [-1]))
        print(remote_parallel_map(abs, [-2]))
        """
    assert start(source).finish() == [STARTED, "[1]", "[2]"]
    assert start(source).finish() == ["[1]", "[2]"]


@pytest.mark.usefixtures("cluster_is_up")
def test_the_status_goes_before_an_error_is_shown(start: Callable[..., TerminalProgram], tmp_path: Path):
    source = """\
        from burla import remote_parallel_map


        def crunch(x):
            import time
            from pathlib import Path

            while not Path("go").exists():
                time.sleep(0.02)
            raise ValueError(x)


        try:
            remote_parallel_map(crunch, [7])
        except ValueError as error:
            print(repr(error))
        """
    program = start(source)
    program.wait_for(last_row(" 0/1  1 running "), "the status")
    (tmp_path / "go").touch()
    assert program.finish() == ["ValueError(7)"]


@pytest.mark.usefixtures("cluster_is_up")
def test_results_of_a_generator_that_are_printed_do_not_mix_with_the_status(start: Callable[..., TerminalProgram]):
    source = """\
        from burla import remote_parallel_map


        def crunch(x):
            import time

            time.sleep(0.4)
            return x


        for result in remote_parallel_map(crunch, range(3), generator=True, max_parallelism=1):
            print("result", result)
        """
    program = start(source)
    rows = program.finish()
    assert rows == ["result 0", "result 1", "result 2"]
    assert b" running" in program.raw


def test_without_the_spinner_a_terminal_gets_the_output_and_no_control_characters(
    start: Callable[..., TerminalProgram], own_home: Home
):
    program = start(SLOW_ENOUGH.replace("OPTION", "False"))
    program.finish()
    assert program.raw == b"line 0\r\nresult [0]\r\n"


def test_without_a_terminal_there_is_the_output_and_no_control_characters(scripts: Scripts, own_home: Home):
    done = scripts.run(SLOW_ENOUGH.replace("OPTION", "True"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\nresult [0]\n", "")


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "latin-1"}, {"TERM": "dumb"}], ids=["latin-1", "dumb"])
@pytest.mark.usefixtures("cluster_is_up")
def test_a_terminal_that_could_not_show_it_gets_no_control_characters(
    environ: dict[str, str], start: Callable[..., TerminalProgram]
):
    program = start(SLOW_ENOUGH.replace("OPTION", "True"), **environ)
    program.finish()
    assert program.raw == b"line 0\r\nresult [0]\r\n"


@pytest.mark.usefixtures("cluster_is_up")
def test_the_status_shows_on_the_terminal_while_the_output_goes_to_a_file(
    start: Callable[..., TerminalProgram], tmp_path: Path
):
    source = "import sys; sys.stdout = open('out.txt', 'w')\n" + SLOW_ENOUGH.replace("OPTION", "True")
    program = start(source)
    assert program.finish() == []
    assert b"crunch" in program.raw
    assert (tmp_path / "out.txt").read_text() == "line 0\nresult [0]\n"
