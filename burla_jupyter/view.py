"""The live view of a job in a notebook: what its calls print, and from the first second on a panel."""

from __future__ import annotations

import importlib.util
import secrets
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.getipython import get_ipython

from burla.display.progress import Progress
from burla_jupyter import inband, summary
from burla_jupyter.cell_output import STDERR, STDOUT, CellOutput
from burla_jupyter.controls import Controls, ShownJob
from burla_jupyter.flood import FloodLimit
from burla_jupyter.log import LineBuffer

if TYPE_CHECKING:
    from burla_jupyter.panel import Panel

HIDDEN_S = 1.0  # a quick call shows nothing
REDRAW_S = 0.1
LINES_ABOVE = 40  # of the panel: of more it would be out of sight
DISPLAYS = 50  # of one job; of more only the number is shown
LAST_LINES = 20  # that stay in the notebook when all of them are in the cell's output anyway
LAST_LINES_OF_FLOOD = 500
LAST_CHARACTERS = 100_000


class Written(Protocol):
    """What a call wrote: whole lines, or the unfinished last one of a call that ended. `stream`: 1 or 2."""

    @property
    def index(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def text(self) -> str: ...


class NotebookView:
    """Shows one job in the output of the cell that started it.

    VS Code and Colab draw ipywidgets, anywidget and static HTML too, but this was not tried there. VS Code is not
    expected to pass presses of buttons on while the cell runs; the panel says so then.
    """

    ticks = True

    def __init__(self) -> None:
        shell = get_ipython()
        assert shell is not None
        self._output = CellOutput(shell)
        self._controls = Controls()
        self._has_widgets = importlib.util.find_spec("ipywidgets") is not None
        self._panel: Panel | None = None
        self._display_id = secrets.token_hex(8)
        self._progress: Progress | None = None
        self._drawn_s = 0.0
        self._lines = LineBuffer()
        self._resend = threading.Event()  # a front end has begun to show the log: it needs the lines so far
        self._flood = FloodLimit()
        self._lines_above = 0
        self._below: list[tuple[int, str]] = []  # streams and texts that wait for the panel, for a second at most
        self._displays = 0
        self._said = ""

    def begin(self, job: ShownJob, detached: bool) -> None:
        """The head has the job."""
        self._controls.begin(job, detached, blocked=threading.current_thread() is threading.main_thread())

    def write(self, texts: Sequence[Written]) -> None:
        """Put text of calls into the log, and into the cell's output up to a limit; display what they displayed."""
        run: list[str] = []  # goes to the same stream
        stream = STDOUT
        for one in texts:
            parts = inband.split(one.text) if inband.BEGIN in one.text else (one.text,)
            for part in parts:
                if run and (one.stream != stream or not isinstance(part, str)):
                    self._print(stream, "".join(run))
                    run.clear()
                stream = one.stream
                if isinstance(part, str):
                    self._lines.add(one.index, stream, part)
                    run.append(part)
                else:
                    self._display(one.index, *part)
        if run:
            self._print(stream, "".join(run))

    def update(self, progress: Progress, now_s: float) -> None:
        """Show the job as it is at `now_s`, once it has lasted a second; draws at most 10 times a second."""
        self._progress = progress
        if now_s - self._drawn_s < REDRAW_S:
            return
        if self._panel is None:
            if not self._has_widgets or (progress.elapsed_s(now_s) < HIDDEN_S and not self._flood.reached):
                return
            self._show(progress, now_s)
        else:
            self._draw(self._panel, progress, now_s)

    def say(self, text: str, always: bool = False) -> None:
        """Show a line of ours on the panel, or in the cell's output if it must be said in any case."""
        if always:
            self._output.write(STDERR, text + "\n")
        else:
            self._said = text

    def hide(self) -> None:
        """Write what still waits: the panel is in nobody's way."""
        self._write_below()

    def close(self, error: BaseException | None, kept: bool) -> None:
        """Leave in the notebook what needs no kernel."""
        self._write_below()
        progress, now_s = self._progress, time.monotonic()
        if self._displays > DISPLAYS:
            self.say(f"burla: {self._displays - DISPLAYS:,} more displays of calls are not shown", always=True)
        if progress is None:
            return
        long = not self._has_widgets and progress.elapsed_s(now_s) >= HIDDEN_S
        if self._panel is not None or self._flood.reached or long:
            count = LAST_LINES_OF_FLOOD if self._flood.reached else LAST_LINES
            last = self._lines.last(count, LAST_CHARACTERS)
            standing = summary.standing(progress, error)
            end = summary.End(standing, kept, last, self._lines.total, self._flood.held_back)
            data = {
                "text/plain": summary.text(progress, end, now_s),
                "text/html": summary.html(progress, end, now_s),
            }
            self._output.display(data, {}, self._display_id, update=self._panel is not None)
        if self._panel is not None:
            self._panel.close()

    def _print(self, stream: int, text: str) -> None:
        limited = self._has_widgets and self._output.passes_on
        if not limited or not (self._output.has_cell_id or self._controls.heard):
            self._output.write(stream, text)
            return
        noticed = self._flood.reached
        passed = self._flood.admit(text)
        if passed:
            self._write(stream, passed)
        if self._flood.reached and not noticed:
            self._write(STDERR, "burla: further lines are in the log of the job only\n")
            if self._panel is not None:
                self._panel.open_log()

    def _write(self, stream: int, text: str) -> None:
        self._lines_above += text.count("\n")
        if self._panel is None and self._lines_above > LINES_ABOVE:
            self._below.append((stream, text))
        else:
            self._output.write(stream, text)

    def _write_below(self) -> None:
        for stream, text in self._below:
            self._output.write(stream, text)
        self._below.clear()

    def _display(self, index: int, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self._displays += 1
        if self._displays > DISPLAYS:
            return
        self._write_below()
        if self._progress is None or self._progress.total != 1:
            label = f"input {index}:"
            self._output.display({"text/plain": label, "text/html": f"<div>{label}</div>"}, {})
        self._output.display(data, metadata)

    def _show(self, progress: Progress, now_s: float) -> None:
        from burla_jupyter.panel import Panel  # late: a quick call need not wait for widgets

        panel = Panel(self._controls, self._hello)
        if self._flood.reached:
            panel.open_log()
        self._draw(panel, progress, now_s)  # before anybody sees it, so that it does not grow when they do
        self._output.display(panel.bundle(f"burla: {progress.line(now_s)}"), {}, self._display_id)
        self._controls.shown(now_s)
        self._panel = panel
        self._write_below()

    def _draw(self, panel: Panel, progress: Progress, now_s: float) -> None:
        self._drawn_s = now_s
        panel.draw(progress, now_s, self._lines.total, self._said or progress.remark or "")
        self._send_lines(panel, now_s)

    def _hello(self) -> None:
        self._resend.set()
        self._controls.hear()

    def _send_lines(self, panel: Panel, now_s: float) -> None:
        if not self._controls.heard and not self._controls.unheard(now_s):
            return  # what is sent before the front end is ready would be lost
        if self._resend.is_set():
            self._resend.clear()
            self._lines.rewind()
        first, lines = self._lines.take()
        if lines:
            panel.log.send(first, lines)
