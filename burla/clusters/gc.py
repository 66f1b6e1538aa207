"""Finds what a burla of this user has made in a cloud and no living head claims, and removes it.

`create` makes a network, then a head: until that is there, the expiry of what there is says that somebody may be at
work on it. A living head claims all of its cluster.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from burla.clusters.cloud import (
    ALIVE,
    HEAD,
    MACHINE,
    NODE,
    TAG_CLUSTER,
    TAG_EXPIRY,
    TAG_OWNER,
    TAG_ROLE,
    Account,
    Refused,
    Resource,
)

_AT_ONCE = 8
_T = TypeVar("_T")
_R = TypeVar("_R")


def orphans(found: Sequence[Resource], owner: str, now_s: float) -> list[Resource]:
    """Return what nobody claims: it is this owner's, its cluster has no living head, and its latest expiry is over.

    A node that has shut itself down, and still has a disk, is of no use to its head either.
    """
    claimed_until_s: defaultdict[str, float] = defaultdict(float)
    for one in found:
        cluster = one.tags.get(TAG_CLUSTER, "")
        alive = one.kind == MACHINE and one.tags.get(TAG_ROLE) == HEAD and one.state in ALIVE
        until_s = float("inf") if alive else _expiry_s(one)
        claimed_until_s[cluster] = max(claimed_until_s[cluster], until_s or 0.0)
    return [
        one
        for one in found
        if one.tags.get(TAG_OWNER) == owner
        and one.tags.get(TAG_CLUSTER)
        and _expiry_s(one) is not None
        and (claimed_until_s[one.tags[TAG_CLUSTER]] < now_s or _stays_down(one, now_s))
    ]


def _stays_down(one: Resource, now_s: float) -> bool:
    node = one.kind == MACHINE and one.tags.get(TAG_ROLE) == NODE
    return node and one.state == "stopped" and (_expiry_s(one) or 0.0) < now_s


def _expiry_s(one: Resource) -> float | None:
    text = one.tags.get(TAG_EXPIRY, "")
    return float(text) if text.isdecimal() else None  # else it is nothing that we have made


async def search(account: Account, regions: Sequence[str], owner: str) -> tuple[list[Resource], dict[str, Refused]]:
    """Return what an owner has in regions of an account, and which of them refused to say."""

    async def look(region: str) -> list[Resource]:
        return await account.tagged(owner, region)

    found: list[Resource] = []
    refused: dict[str, Refused] = {}
    for region, answer in await _each(look, regions):
        if isinstance(answer, Refused):
            refused[region] = answer
        else:
            found += answer
    return found, refused


async def remove(account: Account, gone: Sequence[Resource]) -> list[tuple[Resource, Refused]]:
    """Remove resources, machines first because they hold the others; return what was refused, and why."""
    answers = await _each(account.remove, [one for one in gone if one.kind == MACHINE])
    answers += await _each(account.remove, [one for one in gone if one.kind != MACHINE])
    return [(one, answer) for one, answer in answers if isinstance(answer, Refused)]


async def _each(do: Callable[[_T], Awaitable[_R]], items: Iterable[_T]) -> list[tuple[_T, _R | Refused]]:
    """Do it with each item, some at once; a refusal is an answer."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(item: _T) -> tuple[_T, _R | Refused]:
        async with free:
            try:
                return item, await do(item)
            except Refused as error:
                return item, error

    return await asyncio.gather(*map(one, items))
