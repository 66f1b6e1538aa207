"""The view of a job while it runs: widgets. Drawn by the thread that follows the job, at most 10 times a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import ipywidgets as widgets
from ipywidgets.widgets.widget_string import HTMLStyle

from burla import ErrorGroup
from burla.display.progress import Progress
from burla_jupyter import markup
from burla_jupyter.controls import Controls, Look
from burla_jupyter.log import make_log

STYLE = files("burla_jupyter") / "static" / "panel.css"


class Panel:
    """Phase, bar, numbers, buttons, and what is folded: the slowest calls, failures, the log."""

    def __init__(self, controls: Controls, heard: Callable[[], None]):
        make = self._make = _Maker()
        self._controls = controls
        self.log = make_log(heard, layout=make.layout)
        style = make.html("burla-style", f"<style>{STYLE.read_text(encoding='utf-8')}</style>")
        self._title = make.html("burla-title")
        self._bar, self._numbers, self._note = (
            make.html("burla-bar-row"),
            make.html("burla-numbers-row"),
            make.html("burla-note"),
        )
        self._slowest, self._failures = make.html("burla-slowest"), _Failures(make)
        self._slowest_fold = _Fold(make, "Slowest calls", self._slowest)
        self._failures_fold = _Fold(make, "Failures", self._failures.widget)
        self._log_fold = _Fold(make, "Log", self.log.widget)
        self._cancel = make.button("Cancel", lambda: controls.press_cancel(time.monotonic()))
        self._detach = make.button("Detach", controls.press_detach)
        head = make.row("burla-head", self._title, self._cancel, self._detach)
        folds = (self._slowest_fold, self._failures_fold, self._log_fold)
        folded = [part for fold in folds for part in (fold.head, fold.body)]
        self.widget = make.column("burla-panel", style, head, self._bar, self._numbers, self._note, *folded)
        for one in (self._cancel, self._detach, self.log.widget):
            _answer_while_blocked(one)

    def bundle(self, text: str) -> dict[str, Any]:
        """Return the panel as a mimebundle; `text` is for those that draw no widgets."""
        bundle: Any = self.widget._repr_mimebundle_()
        return {**bundle, "text/plain": text}

    def draw(self, progress: Progress, now_s: float, lines: int, note: str) -> None:
        """Show the job as it is at `now_s`, of the monotonic clock."""
        where = f" on {progress.nodes:,} nodes" if progress.nodes > 1 and progress.running else ""
        where += f", {progress.memory}" if progress.memory and progress.running else ""
        where += f", {progress.cost}" if progress.cost else ""
        name = escape(markup.visible(progress.function_name))
        _set(self._title, f'<b>{name}</b> <span role="status">{escape(progress.phase)}{where}</span>')
        _set(self._bar, markup.bar(progress))
        _set(self._numbers, markup.numbers(progress, now_s))
        _set(self._note, f'<span role="status">{escape(markup.visible(self._controls.note(now_s) or note))}</span>')
        _set(self._slowest, markup.slowest(progress.slowest))
        self._failures.show(progress.failures)
        self._slowest_fold.tell(f"{len(progress.slowest):,}")
        self._failures_fold.tell(f"{progress.failed:,}")
        self._log_fold.tell(f"{lines:,} lines")
        _look(self._cancel, self._controls.cancel(now_s))
        _look(self._detach, self._controls.detach(now_s))

    def open_log(self) -> None:
        """Unfold the log."""
        self._log_fold.open()

    def close(self) -> None:
        """Give up all widgets; the front end shows none of them any more."""
        self.log.widget.close()
        self._make.close()


class _Maker:
    """Makes the widgets of one panel. They share their layouts and styles, which would be widgets of their own each."""

    def __init__(self) -> None:
        self.layout = widgets.Layout()
        self._text_style = HTMLStyle()
        self._made: list[widgets.Widget] = []

    def html(self, name: str, value: str = "") -> widgets.HTML:
        made = widgets.HTML(value, layout=self.layout, style=self._text_style)
        made.add_class(name)
        self._made.append(made)
        return made

    def row(self, name: str, *parts: widgets.Widget) -> widgets.HBox:
        return self._box(widgets.HBox, name, parts)

    def column(self, name: str, *parts: widgets.Widget) -> widgets.VBox:
        return self._box(widgets.VBox, name, parts)

    def button(self, text: str, press: Callable[[], None]) -> widgets.Button:
        made = widgets.Button(description=text, disabled=True, layout=self.layout)
        made.on_click(lambda button: press())
        self._made.extend([made, made.style])
        return made

    def close(self) -> None:
        for one in [*reversed(self._made), self._text_style, self.layout]:
            one.close()

    def _box(self, kind: Any, name: str, parts: Sequence[widgets.Widget]) -> Any:
        made = kind(parts, layout=self.layout)
        made.add_class(name)
        self._made.append(made)
        return made


class _Fold:
    """A line that shows or hides what follows it: by the style sheet alone, so that it works while a cell blocks."""

    def __init__(self, make: _Maker, name: str, body: widgets.Widget):
        self._name = name
        self._head, self._told = make.html("burla-fold"), make.html("burla-fold-told")
        self._draw("")
        self.head = make.row("burla-fold-head", self._head, self._told)
        self.body = make.column("burla-fold-body", body)

    def tell(self, html: str) -> None:
        """Show something after the name."""
        _set(self._told, html)

    def open(self) -> None:
        """Unfold."""
        self._draw(" open")

    def _draw(self, state: str) -> None:
        # not more often than it must: drawn again, it loses whether the user has unfolded it
        self._head.value = f'<details{state}><summary aria-label="{self._name}">{self._name}</summary></details>'


class _Failures:
    """Groups of failures; each keeps its widgets, so that one that is unfolded stays so."""

    def __init__(self, make: _Maker) -> None:
        self._make = make
        self.widget = make.column("burla-failures", make.html("burla-nothing", "No call has failed."))
        self._folds: dict[tuple[str, str], _Fold] = {}

    def show(self, groups: Sequence[ErrorGroup]) -> None:
        for group in groups[: markup.GROUPS]:
            key = (group.type_name, group.line)
            if key not in self._folds:
                body = self._make.html("burla-traceback", markup.group_text(group))
                self._folds[key] = _Fold(self._make, "Traceback", body)
                self.widget.children = [part for fold in self._folds.values() for part in (fold.head, fold.body)]
            self._folds[key].tell(markup.group_title(group))


def _answer_while_blocked(widget: Any) -> None:
    """Have what the front end sends to a widget handled while its own cell still runs.

    ipykernel 7.4 sends the messages of a comm to the shell that used it last: to the main one, which is blocked. Other
    versions have no such method; before 7.0 they cannot handle them at all.
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


def _set(widget: widgets.HTML, value: str) -> None:
    if widget.value != value:
        widget.value = value


def _look(button: widgets.Button, look: Look) -> None:
    if (button.description, button.disabled) != (look.text, not look.live):
        button.description, button.disabled = look.text, not look.live
