"""The ordinary output of the cell that started something, whichever thread writes to it and whichever cell runs now."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from IPython.core.interactiveshell import InteractiveShell

_T = TypeVar("_T")
STDOUT, STDERR = 1, 2


class CellOutput:
    """Where the cell that runs now has its output; to be made in the thread that runs it."""

    def __init__(self, shell: InteractiveShell):
        self._shell = shell
        self._thread = threading.get_ident()
        self._then = (sys.stdout, sys.stderr, shell.display_pub)
        self._lock = threading.Lock()
        # In a kernel the request that outputs belong to is a context variable of every stream. A thread of the user's
        # has no value of its own there, and would follow the newest cell.
        self._parent: dict[str, Any] = shell.get_parent()  # type: ignore[attr-defined]  # a kernel's shell
        self._context = contextvars.copy_context()
        self._context.run(getattr(shell, "set_thread_parent", shell.set_parent), self._parent)  # type: ignore[attr-defined]

    @property
    def has_cell_id(self) -> bool:
        """Whether the request names a cell, as front ends do that draw notebooks; nbclient and nbconvert do not."""
        return bool((self._parent.get("metadata") or {}).get("cellId"))

    @property
    def passes_on(self) -> bool:
        """Whether what is written goes to the front end, and not to `%%capture` or the like."""
        return type(self._stream(STDOUT)).__module__.partition(".")[0] == "ipykernel"

    def write(self, stream_number: int, text: str) -> None:
        """Write text to the cell's stdout (1) or stderr (2)."""
        stream = self._stream(stream_number)
        if stream is None:
            return
        try:
            text.encode()
        except UnicodeEncodeError:  # bytes that are no UTF-8
            text = text.encode("utf-8", "backslashreplace").decode()
        self._run(stream.write, text)

    def display(
        self, data: dict[str, Any], metadata: dict[str, Any], display_id: str | None = None, update: bool = False
    ) -> None:
        """Display a mimebundle, or with `update` put it in place of the one that has this id."""
        self._run(
            self._publish,
            data=data,
            metadata=metadata,
            transient={"display_id": display_id} if display_id else {},
            update=update,
        )

    def _stream(self, number: int) -> TextIO | None:
        stdout, stderr, _ = self._now()
        return stdout if number == STDOUT else stderr

    def _now(self) -> tuple[TextIO | None, TextIO | None, Any]:
        if threading.get_ident() == self._thread:
            return sys.stdout, sys.stderr, self._shell.display_pub
        return self._then  # another cell may have put something in place of these, for itself

    def _run(self, call: Callable[..., _T], *args: Any, **named: Any) -> _T:
        with self._lock:  # one thread at a time can be in a context
            return self._context.run(call, *args, **named)

    def _publish(self, **content: Any) -> None:
        publisher = self._now()[2]
        header = getattr(publisher, "parent_header", None)
        own = self._parent.get("header")
        if header is None or header == own:
            publisher.publish(**content)
            return
        publisher.parent_header = own  # ipykernel 6 has one for all threads
        try:
            publisher.publish(**content)
        finally:
            publisher.parent_header = header
