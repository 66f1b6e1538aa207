"""What is wrong with a `%%burla` cell itself."""

from __future__ import annotations


class Refused(ValueError):
    """A cell that cannot be meant so; the message says where, and what to do."""


class CellSyntaxError(Exception):
    """A cell is not Python. IPython shows the lines that stand for it in `shown`, and nothing of what found it."""

    def __init__(self, error: SyntaxError, shown: list[str]):
        super().__init__(str(error))
        self._shown = shown

    def _render_traceback_(self) -> list[str]:
        return self._shown
