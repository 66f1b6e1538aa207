"""The view of a job while it runs: widgets. Drawn by the thread that follows the job, at most 10 times a second."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

import ipywidgets as widgets

from burla.display.progress import Progress
from burla_jupyter import markup
from burla_jupyter.controls import Controls, Look
from burla_jupyter.log import make_log

STYLE = files("burla_jupyter") / "static" / "panel.css"


class Panel:
    """Phase, bar, numbers, buttons, and what is folded: the slowest calls, failures, the log."""

    def __init__(self, controls: Controls, heard: Callable[[], None]):
        self._controls = controls
        self.log = make_log(heard)
        self._style = _html("burla-style")
        self._style.value = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
        self._title = _html("burla-title")
        self._bar, self._numbers = _html("burla-bar-row"), _html("burla-numbers-row")
        self._note = _html("burla-note")
        self._slowest, self._failures = _html("burla-slowest"), _Failures()
        self._folds = {
            "Slowest calls": _Fold("Slowest calls", self._slowest),
            "Failures": _Fold("Failures", self._failures.widget),
            "Log": _Fold("Log", self.log.widget),
        }
        self._cancel, self._detach = _button("Cancel"), _button("Detach")
        self._cancel.on_click(lambda button: controls.press_cancel())
        self._detach.on_click(lambda button: controls.press_detach())
        head = widgets.HBox([self._title, self._cancel, self._detach])
        head.add_class("burla-head")
        folded = [part for fold in self._folds.values() for part in (fold.head, fold.body)]
        self.widget = widgets.VBox([self._style, head, self._bar, self._numbers, self._note, *folded])
        self.widget.add_class("burla-panel")
        for one in (self._cancel, self._detach, self.log.widget):
            answer_while_blocked(one)

    def bundle(self, text: str) -> dict[str, Any]:
        """Return the panel as a mimebundle; `text` is for those that draw no widgets."""
        bundle: Any = self.widget._repr_mimebundle_()
        return {**bundle, "text/plain": text}

    def draw(self, progress: Progress, now_s: float, lines: int, note: str) -> None:
        """Show the job as it is at `now_s`, of the monotonic clock."""
        where = f" on {progress.nodes:,} nodes" if progress.nodes > 1 and progress.running else ""
        name = escape(markup.visible(progress.function_name))
        _set(self._title, f'<b>{name}</b> <span role="status">{escape(progress.phase)}{where}</span>')
        _set(self._bar, markup.bar(progress))
        _set(self._numbers, markup.numbers(progress, now_s))
        _set(self._note, f'<span role="status">{escape(self._controls.note(now_s) or note)}</span>')
        _set(self._slowest, markup.slowest(progress.slowest))
        self._failures.show(progress.failures)
        self._folds["Slowest calls"].count(f"{len(progress.slowest):,}")
        self._folds["Failures"].count(f"{progress.failed:,}")
        self._folds["Log"].count(f"{lines:,} lines")
        _show(self._cancel, self._controls.cancel(now_s))
        _show(self._detach, self._controls.detach(now_s))

    def open_log(self) -> None:
        """Unfold the log."""
        self._folds["Log"].open()

    def close(self) -> None:
        """Give up all widgets; the front end shows none of them any more."""
        pending: list[Any] = [self.widget]
        while pending:
            one = pending.pop()
            pending.extend(getattr(one, "children", ()))
            for part in ("layout", "style"):
                owned = getattr(one, part, None)
                if isinstance(owned, widgets.Widget):
                    owned.close()
            one.close()


class _Fold:
    """A line that shows or hides what follows it: by the style sheet alone, so that it works while a cell blocks."""

    def __init__(self, name: str, body: widgets.Widget):
        self._name = name
        self._head, self._count = _html("burla-fold"), _html("burla-fold-count")
        self._draw(opened=False)
        self.head = widgets.HBox([self._head, self._count])
        self.head.add_class("burla-fold-head")
        self.body = widgets.VBox([body])
        self.body.add_class("burla-fold-body")

    def count(self, text: str) -> None:
        _set(self._count, f'<span style="font-variant-numeric:tabular-nums">{text}</span>')

    def open(self) -> None:
        self._draw(opened=True)

    def _draw(self, opened: bool) -> None:
        # only here is it drawn: drawn again, it would lose what the user has done with it
        self._head.value = f"<details{' open' if opened else ''}><summary>{self._name}</summary></details>"


class _Failures:
    """Groups of failures, of which each has its own widgets, so that one that is unfolded stays so."""

    def __init__(self) -> None:
        nothing = _html("burla-nothing")
        nothing.value = "No call has failed."
        self.widget = widgets.VBox([nothing])
        self._rows: dict[tuple[str, str], tuple[_Fold, widgets.HTML]] = {}

    def show(self, groups: list[Any]) -> None:
        for group in groups[: markup.GROUPS]:
            key = (group.type_name, group.line)
            if key not in self._rows:
                body = _html("burla-traceback")
                body.value = markup.group_text(group)
                self._rows[key] = (_Fold("", body), body)
                self.widget.children = [part for fold, _ in self._rows.values() for part in (fold.head, fold.body)]
            self._rows[key][0].count(markup.group_title(group))


def answer_while_blocked(widget: Any) -> None:
    """Have what the front end sends to a widget handled while its own cell still runs.

    ipykernel 7.4 sends the messages of a comm to the shell that used it last: to the main one, which is blocked. Other
    versions have no such method; before 7.0 they cannot handle them at all.
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default


def _html(name: str) -> widgets.HTML:
    made = widgets.HTML()
    made.add_class(name)
    return made


def _button(text: str) -> widgets.Button:
    return widgets.Button(description=text, disabled=True)


def _show(button: widgets.Button, look: Look) -> None:
    if (button.description, button.disabled) != (look.text, not look.live):
        button.description, button.disabled = look.text, not look.live


def _set(widget: widgets.HTML, value: str) -> None:
    if widget.value != value:
        widget.value = value
