"""How much memory the calls of a job with `func_ram="dynamic"` are given room for: pure, time is passed in.

Nothing is known at first, and calls count for nothing. When a node runs short, the job is given half as many calls
there; after some seconds without another shortage, one more call a node, as far as the calls of late leave room for it;
until it has as many as its CPUs allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from burla.protocol import Evicted, NodeOffer

GROW_EVERY_S = 5.0
LATE_S = 30.0  # calls of late: of this window and the one before
MARGIN = 1.1  # the next call may be a little larger than the largest of late
MUCH = 0.5  # of a node; a call that had so much, nearly alone, does not fit there
LEFT = 0.25  # of a limit; what earlier calls left in its process may be why it was reached
MOST_EVICTIONS = 8  # of one call


class Verdict(Enum):
    """What becomes of a call that was ended for want of memory."""

    AGAIN = "there may be room for it here another time"
    LARGER = "only a larger node has room for it"
    NEVER = "it is not tried again"


def judge(one: Evicted, before: int) -> Verdict:
    """Decide what becomes of a call that has been ended `before` times already with nothing beside it to blame."""
    if before >= MOST_EVICTIONS:
        return Verdict.NEVER
    if one.left_bytes > LEFT * one.limit_bytes:
        return Verdict.AGAIN  # in a clean process
    if one.fixed:
        return Verdict.NEVER
    return Verdict.LARGER if one.alone and one.peak_bytes >= MUCH * one.limit_bytes else Verdict.AGAIN


class Room:
    """See the module. `per_call_bytes` None: calls count for nothing."""

    def __init__(self, func_cpu: int) -> None:
        self.per_call_bytes: int | None = None
        self.peak_bytes = 0  # the largest call that was seen
        self.ever_short = False
        self._func_cpu = func_cpu
        self._changed_s = 0.0
        self._late = (0, 0)  # the largest calls of the window before, and of this one
        self._window_s = 0.0  # its beginning

    def short(self, node_bytes: int, beside: int, now_s: float) -> None:
        """A node with so much memory ran short with a call of the job and `beside` others."""
        self.ever_short = True
        calls = max(1, (beside + 1) // 2)
        self.per_call_bytes = max(self.per_call_bytes or 0, node_bytes // calls)
        self._changed_s = now_s

    def seen(self, peak_bytes: int, now_s: float) -> None:
        """A call has had so much."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        if now_s - self._window_s > LATE_S:
            self._late, self._window_s = (self._late[1], 0), now_s
        self._late = self._late[0], max(self._late[1], peak_bytes)

    def calls(self, nodes: Sequence[NodeOffer]) -> int | None:
        """Return how many calls there is room for; None: as many as the CPUs allow."""
        if self.per_call_bytes is None:
            return None
        return sum(max(1, node.ram_bytes // self.per_call_bytes) for node in nodes)

    def tick(self, nodes: Iterable[NodeOffer], now_s: float, held_up: bool) -> bool:
        """Give room for one more call a node if it is time; whether anything changed.

        `held_up`: a call that was ended has not begun again, so that nothing is known of the room that there is now.
        """
        if held_up:
            self._changed_s = now_s
        largest = max(nodes, key=lambda node: node.ram_bytes, default=None)
        if self.per_call_bytes is None or largest is None or now_s - self._changed_s < GROW_EVERY_S:
            return False
        self._changed_s = now_s
        calls = largest.ram_bytes // self.per_call_bytes + 1
        if calls > largest.cpus // self._func_cpu:
            self.per_call_bytes = None
            return True
        grown = max(largest.ram_bytes // calls, int(max(self._late) * MARGIN))
        changed, self.per_call_bytes = grown < self.per_call_bytes, min(grown, self.per_call_bytes)
        return changed
