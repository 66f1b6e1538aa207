"""How much of what calls print goes to the ordinary output of a cell, where a live log has the rest."""

from __future__ import annotations

LINES = 2_000
LIMIT_BYTES = 400_000


class FloodLimit:
    """Lets whole lines pass until there are too many of them, or their text is too long."""

    def __init__(self, lines: int = LINES, limit_bytes: int = LIMIT_BYTES):
        self._lines = lines
        self._bytes = limit_bytes
        self.held_back = 0  # lines that did not pass

    @property
    def reached(self) -> bool:
        """Whether something was held back; from then on everything is."""
        return self.held_back > 0

    def admit(self, text: str) -> str:
        """Return the beginning of `text` that may pass, in whole lines."""
        lines = text.count("\n") + (not text.endswith("\n"))
        if not self.reached and lines <= self._lines and len(text) <= self._bytes:
            self._lines -= lines
            self._bytes -= len(text)
            return text
        passed = "" if self.reached else self._cut(text)
        self.held_back += lines - passed.count("\n")
        return passed

    def _cut(self, text: str) -> str:
        kept: list[str] = []
        for line in text.splitlines(keepends=True)[: self._lines]:
            self._bytes -= len(line)
            if self._bytes < 0:
                break
            kept.append(line)
        return "".join(kept)
