"""While a call waits, SIGTERM and SIGHUP end it as Ctrl-C does: its job is stopped before the process goes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt here when one of the signals comes; afterwards the user's own handlers are back.

    A signal that is ignored (as by `nohup`) stays ignored. Does nothing outside the main thread.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def import_whole(module: str) -> None:
    """Import a module in a thread, where no signal comes: a half-imported package would fail in the next job."""
    if module not in sys.modules:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(importlib.import_module, module).result()
