"""Runs a coroutine to its end from wherever a user may call: also from inside a running event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.2


def run_apart(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what the coroutine returns. An interrupt cancels it, and is raised once it has cleaned up."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="burla-cloud", daemon=True)
    thread.start()
    try:
        _join(thread)
    except BaseException:  # Ctrl-C
        loop.call_soon_threadsafe(task.cancel)
        _join(thread)
        raise
    return task.result()


def _join(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(_LOOK_S)  # with a timeout: else no signal is handled on some systems
