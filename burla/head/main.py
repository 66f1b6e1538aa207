"""The process of an own head: a Dask scheduler without its HTTP server, with our plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Scheduler, Security

from burla.head.plugin import HeadPlugin


class QuietScheduler(Scheduler):
    """A scheduler that opens no HTTP port."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Start nothing: the notebook and the command line are our user interfaces."""


async def run_head(
    host: str,
    port: int,
    security: Security,
    folder: Path,
    idle_after_s: float | None,
    ready: Callable[[str], None],
    fresh: bool,
    plugin: Callable[..., HeadPlugin] = HeadPlugin,
    socket: Path | None = None,
) -> None:
    """Serve at `host` until idle or told to stop; call `ready` with the address. Raises OSError: the port is taken.

    `socket`: a path at which processes of this machine may reach it too, without TLS: who may is for its folder to say.
    """
    stopped = asyncio.Event()
    installed = plugin(folder, idle_after_s, stopped.set, fresh, socket)
    scheduler = QuietScheduler(host=host, port=port, security=security, dashboard=False, plugins=[installed])
    async with scheduler:
        ready(scheduler.address)
        await stopped.wait()
