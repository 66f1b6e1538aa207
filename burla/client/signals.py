"""While a call waits, SIGTERM and SIGHUP end it as Ctrl-C does: its job is stopped before the process goes."""

from __future__ import annotations

import concurrent.futures
import importlib
import signal
import sys
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


class interruptible:  # a class, because contextlib sets attributes of exceptions that pass, and some refuse that
    """Raise KeyboardInterrupt here when one of the signals comes; afterwards the user's own handlers are back.

    A signal that is ignored (as by `nohup`) stays ignored. Does nothing outside the main thread.
    """

    def __enter__(self) -> None:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for name in _NAMES:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, _interrupt)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def import_whole(module: str) -> None:
    """Import a module in a thread, where no signal comes: a half-imported package would fail in the next job."""
    if module not in sys.modules:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(importlib.import_module, module).result()
