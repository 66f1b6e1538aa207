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
    from distributed.comm.core import CommClosedError
    from distributed.core import send_recv

    comm = await connect(address, security, timeout_s)
    try:
        return await asyncio.wait_for(send_recv(comm, op=operation, close=True, **arguments), timeout_s)
    except CommClosedError as error:
        raise _nobody(address, str(error)) from error
    except TimeoutError as error:
        raise _nobody(address, f"no answer to {operation} in {timeout_s:g} s") from error
    finally:
        comm.abort()


async def connect(address: str, security: Any, timeout_s: float) -> Any:
    """Return a Dask comm to the scheduler. Raises OSError if nobody answers in time."""
    from distributed.comm.core import connect

    arguments = security.get_connection_args("client") if security is not None else {}
    try:
        return await connect(address, timeout=timeout_s, **arguments)
    except (OSError, ValueError) as error:  # a ValueError is Tornado's, where somebody hangs up before TLS begins
        raise _nobody(address, str(error) or type(error).__name__) from error


def _nobody(address: str, reason: str) -> ConnectionError:
    return ConnectionError(f"no Dask scheduler answers at {address}: {reason}")
