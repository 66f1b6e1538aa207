"""A job in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from burla.display.progress import Progress


class NotebookView:
    """Prints what calls print."""

    ticks = False

    def begin(self, job: Any) -> None:
        """The head has the job."""

    def write(self, texts: Sequence[Any]) -> None:
        """Show text of calls."""
        for one in texts:
            (sys.stdout if one.stream == 1 else sys.stderr).write(one.text)

    def update(self, progress: Progress, now_s: float) -> None:
        """Show the job as it is at `now_s`."""

    def say(self, text: str, always: bool = False) -> None:
        """Show a line of burla's own."""
        if always:
            sys.stderr.write(text + "\n")

    def hide(self) -> None:
        """Make room."""

    def close(self, error: BaseException | None) -> None:
        """Nothing more follows."""
