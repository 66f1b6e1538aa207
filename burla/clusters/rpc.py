"""One Dask operation on a scheduler, from wherever a user may call: also from inside a running event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any


def ask_scheduler(address: str, security: Any, operation: str, timeout_s: float, **arguments: Any) -> Any:
    """Return what the operation returns. Raises OSError if nobody answers in time, and what the operation raises."""
    with concurrent.futures.ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, ask(address, security, operation, timeout_s, **arguments)).result()


async def ask(address: str, security: Any, operation: str, timeout_s: float, **arguments: Any) -> Any:
    """Do the same in a running event loop."""
    from distributed.core import rpc

    connection_args = security.get_connection_args("client") if security is not None else {}
    try:
        async with rpc(address, timeout=timeout_s, connection_args=connection_args) as scheduler:
            return await asyncio.wait_for(getattr(scheduler, operation)(**arguments), 2 * timeout_s)
    except OSError as error:
        text = str(error) or f"no answer in {timeout_s:g} s"
        raise ConnectionError(f"no Dask scheduler answers at {address}: {text}") from error
