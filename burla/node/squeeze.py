"""Which call has to end when memory runs short: pure, time is passed in.

A call with a limit of its own ends when it is over it. When the node itself runs short, the youngest of the calls
without a limit ends: it has done the least, and what began before it fitted beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burla.node.memory import Memory
from burla.protocol import Evicted

HIGH = 0.90  # of the limit; from here on the node runs short
GUILTY = 0.25  # of the limit; calls that have less together are not why it does
WATCH_CLOSELY = 0.60
SETTLE_S = 1.0  # until the memory of a call that was ended is free, nothing else is
KILLED_WITHIN_S = 5.0  # of the kernel's count of kills; who dies later died of something else


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that runs, and the memory of its process.

    `limit_bytes`: of its own; None: it may have what there is. `left_bytes` were there when it began. `started_ns`:
    monotonic.
    """

    job: str
    index: int
    started_ns: int
    own_bytes: int
    left_bytes: int
    limit_bytes: int | None


class Squeeze:
    """Decides from one reading to the next."""

    def __init__(self) -> None:
        self._settles_s = 0.0

    def decide(self, memory: Memory, calls: Sequence[RunningCall], now_s: float) -> list[tuple[RunningCall, Evicted]]:
        """Return the calls that have to end now, and what is to be said of each."""
        over = [call for call in calls if call.limit_bytes is not None and call.own_bytes > call.limit_bytes]
        if over:
            return [(call, eviction(call, calls, memory)) for call in over]
        free_to_grow = [call for call in calls if call.limit_bytes is None]
        short = memory.used_bytes > HIGH * memory.limit_bytes and now_s >= self._settles_s
        if not short or not free_to_grow or sum(call.own_bytes for call in calls) < GUILTY * memory.limit_bytes:
            return []
        self._settles_s = now_s + SETTLE_S
        youngest = max(free_to_grow, key=lambda call: call.started_ns)
        return [(youngest, eviction(youngest, calls, memory))]

    @staticmethod
    def watch_closely(memory: Memory, calls: Sequence[RunningCall]) -> bool:
        """Whether the next reading should come soon."""
        return memory.used_bytes > WATCH_CLOSELY * memory.limit_bytes or any(call.limit_bytes for call in calls)


def eviction(call: RunningCall, calls: Sequence[RunningCall], memory: Memory) -> Evicted:
    """Return what is to be said of a call that ends for want of memory, beside these others."""
    return Evicted(
        index=call.index,
        peak_bytes=call.own_bytes,
        limit_bytes=memory.limit_bytes if call.limit_bytes is None else call.limit_bytes,
        beside=sum(one is not call for one in calls),
        others_bytes=sum(one.own_bytes for one in calls if one is not call),
        left_bytes=call.left_bytes,
        fixed=call.limit_bytes is not None,
    )


class KernelKills:
    """Counts the kernel's kills for want of memory that no dead call accounts for yet."""

    def __init__(self, kills: int):
        self._seen = self._accounted = kills
        self._rose_s = 0.0

    def look(self, kills: int, now_s: float) -> None:
        """Take in the kernel's count."""
        if kills > self._seen:
            self._seen, self._rose_s = kills, now_s
        elif now_s - self._rose_s > KILLED_WITHIN_S:  # it took something that is no call
            self._accounted = kills

    def take(self) -> bool:
        """Account for one that has died; whether there is a kill left for it."""
        if self._accounted >= self._seen:
            return False
        self._accounted += 1
        return True
