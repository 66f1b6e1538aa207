"""Ways to get something from a cloud that may refuse it at first: in another zone, or a little later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

from burla.clusters.cloud import Refused

_AGAIN_S = 1.0
_IN_USE_S = 120.0
_T = TypeVar("_T")


async def whole(work: Coroutine[Any, Any, _T]) -> _T:
    """Await something to its end, also if that is cancelled: what has been asked for is known then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def in_first_zone(machine: str, zones: Iterable[str], attempt: Callable[[str], Awaitable[_T]]) -> _T:
    """Return what the first zone gives that has such a machine. Raises Refused, with what each has said."""
    refusals: dict[str, Refused] = {}
    for zone in zones:
        try:
            return await attempt(zone)
        except Refused as error:
            if not error.capacity:
                raise
            refusals[zone] = error
    told = "; ".join(f"{zone}: {error}" for zone, error in refusals.items()) or "there is none"
    code = next((error.code for error in refusals.values()), "")
    raise Refused(f"{machine} is to be had in no zone: {told}", code, capacity=True)


async def once_free(remove: Callable[[], Awaitable[object]], in_use: Collection[str]) -> None:
    """Remove something that a machine which has just ended may hold for a while; `in_use`: codes that say so."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _IN_USE_S
    while True:
        try:
            await remove()
            return
        except Refused as error:
            if error.code not in in_use or loop.time() > until:
                raise
        await asyncio.sleep(_AGAIN_S)
