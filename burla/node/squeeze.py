"""Which call has to end when memory runs short: pure, time is passed in.

A call with a limit of its own ends when it is over it. When the node itself runs short, the youngest of the calls
without a limit ends: it has done the least, and what began before it fitted beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burla.node.memory import Memory

HIGH = 0.90  # of the limit; from here on the node runs short
GUILTY = 0.25  # of the limit; calls that have less together are not why it does
WATCH_CLOSELY = 0.60
SETTLE_S = 1.0  # until the memory of a call that was ended is free, nothing else is


@dataclass(frozen=True, slots=True)
class RunningCall:
    """A call that runs. `limit_bytes`: of its own; None: it may have what there is. `started_ns`: monotonic."""

    job: str
    index: int
    started_ns: int
    own_bytes: int
    limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class Squeezed:
    """A call that has to end. `limit_bytes`: that it, or the node, has reached. `beside`: calls that ran beside it."""

    call: RunningCall
    limit_bytes: int
    beside: int


class Squeeze:
    """Decides from one reading to the next."""

    def __init__(self) -> None:
        self._settles_s = 0.0

    def decide(self, memory: Memory, calls: Sequence[RunningCall], now_s: float) -> list[Squeezed]:
        """Return the calls that have to end now."""
        over = [
            Squeezed(call, call.limit_bytes, len(calls) - 1)
            for call in calls
            if call.limit_bytes is not None and call.own_bytes > call.limit_bytes
        ]
        if over:
            return over
        free_to_grow = [call for call in calls if call.limit_bytes is None]
        short = memory.used_bytes > HIGH * memory.limit_bytes and now_s >= self._settles_s
        if not short or not free_to_grow or sum(call.own_bytes for call in calls) < GUILTY * memory.limit_bytes:
            return []
        self._settles_s = now_s + SETTLE_S
        youngest = max(free_to_grow, key=lambda call: call.started_ns)
        return [Squeezed(youngest, memory.limit_bytes, len(calls) - 1)]

    @staticmethod
    def watch_closely(memory: Memory, calls: Sequence[RunningCall]) -> bool:
        """Whether the next reading should come soon."""
        return memory.used_bytes > WATCH_CLOSELY * memory.limit_bytes or any(call.limit_bytes for call in calls)
