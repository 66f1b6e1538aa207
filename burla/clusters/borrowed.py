"""Any Dask scheduler that already runs: our plugin makes it a head, and installs the node side on its workers."""

from __future__ import annotations

import asyncio
from typing import Any


def prepare(address: str, security: Any) -> None:
    """Make the scheduler at `address` a head, unless it is one. Raises OSError if nobody answers there."""
    asyncio.run(_register(address, security))


async def _register(address: str, security: Any) -> None:
    from distributed.core import rpc
    from distributed.protocol.pickle import dumps

    from burla.head.plugin import PLUGIN_NAME, HeadPlugin

    arguments = security.get_connection_args("client") if security is not None else {}
    async with rpc(address, timeout=10, connection_args=arguments) as scheduler:
        await scheduler.register_scheduler_plugin(plugin=dumps(HeadPlugin()), name=PLUGIN_NAME, idempotent=True)
