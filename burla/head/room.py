"""How much memory the calls of a job with `func_ram="dynamic"` are given room for: pure, time is passed in.

Nothing is known at first, and calls count for nothing. When a node runs short, the job is given half as many calls
there; after some seconds without another shortage, one more call a node; until it has as many as its CPUs allow.
"""

from __future__ import annotations

from collections.abc import Iterable

from burla.protocol import NodeOffer

GROW_EVERY_S = 5.0
MARGIN = 1.1  # the next call may be a little larger than the largest so far


class Room:
    """See the module. `per_call_bytes` None: calls count for nothing."""

    def __init__(self, func_cpu: int) -> None:
        self.per_call_bytes: int | None = None
        self.peak_bytes = 0  # the largest call that was seen
        self._func_cpu = func_cpu
        self._changed_s = 0.0

    def short(self, node_bytes: int, beside: int, now_s: float) -> None:
        """A node with so much memory ran short with a call of the job and `beside` others."""
        calls = max(1, (beside + 1) // 2)
        self.per_call_bytes = max(self.per_call_bytes or 0, node_bytes // calls)
        self._changed_s = now_s

    def seen(self, peak_bytes: int) -> None:
        """A call has had so much."""
        self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def tick(self, nodes: Iterable[NodeOffer], now_s: float) -> bool:
        """Give room for one more call a node if it is time; whether anything changed."""
        largest = max(nodes, key=lambda node: node.ram_bytes, default=None)
        if self.per_call_bytes is None or largest is None or now_s - self._changed_s < GROW_EVERY_S:
            return False
        self._changed_s = now_s
        calls = largest.ram_bytes // self.per_call_bytes + 1
        if calls > largest.cpus // self._func_cpu:
            self.per_call_bytes = None
            return True
        grown = max(largest.ram_bytes // calls, int(self.peak_bytes * MARGIN))
        changed, self.per_call_bytes = grown < self.per_call_bytes, min(grown, self.per_call_bytes)
        return changed
