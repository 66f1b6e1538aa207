"""Runs a coroutine to its end from wherever a user may call: also from inside a running event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_apart(work: Coroutine[Any, Any, _T]) -> _T:
    """Return what the coroutine returns. An interrupt cancels it, and is raised once it has cleaned up."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    over = threading.Event()  # not thread.join(): interrupted, that takes a thread that runs for one that has ended

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
            over.set()

    threading.Thread(target=run, name="burla-cloud", daemon=True).start()
    try:
        over.wait()
    except BaseException:  # Ctrl-C
        loop.call_soon_threadsafe(task.cancel)
        over.wait()
        raise
    return task.result()
