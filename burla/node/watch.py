"""Watches the memory of a node's calls, and has those ended that there is no room for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from burla.node.memory import Gauge, Memory, tree_bytes
from burla.node.slot import Slot
from burla.node.squeeze import RunningCall, Squeeze

CLOSE_S, FAR_S, IDLE_S = 0.05, 0.25, 0.5  # between readings


class HasSlots(Protocol):
    """Whose calls are watched."""

    @property
    def slots(self) -> Iterable[Slot]: ...


class MemoryWatch:
    """See the module."""

    def __init__(self, gauge: Gauge, node: HasSlots):
        self._gauge = gauge
        self._node = node
        self._squeeze = Squeeze()
        self._last = gauge.read()
        self._kills = self._last.kills  # of the kernel, as far as they are accounted for

    @property
    def limit_bytes(self) -> int:
        """How much memory the node has."""
        return self._last.limit_bytes

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self.look(time.monotonic()))

    def look(self, now_s: float) -> float:
        """Take one reading and act on it; return in how many seconds to take the next."""
        running = [(slot, call) for slot in self._node.slots if (call := self._measured(slot)) is not None]
        if not running:
            return IDLE_S
        memory = self._last = self._gauge.read()
        calls = [call for _, call in running]
        for squeezed in self._squeeze.decide(memory, calls, now_s):
            slot = next(slot for slot, call in running if call is squeezed.call)
            slot.squeeze(squeezed)
        return CLOSE_S if self._squeeze.watch_closely(memory, calls) else FAR_S

    def kernel_killed(self) -> bool:
        """Whether the kernel has ended one more process for want of memory than was known."""
        memory: Memory = self._gauge.read()
        if memory.kills <= self._kills:
            return False
        self._kills += 1
        return True

    def _measured(self, slot: Slot) -> RunningCall | None:
        current, child = slot.current, slot.child
        if current is None or child is None or child.pid is None or slot.squeezed is not None:
            return None
        index, started_ns = current
        own_bytes = tree_bytes(child.pid)
        slot.peak_bytes = max(slot.peak_bytes, own_bytes)
        return RunningCall(slot.job, index, started_ns, own_bytes, slot.limit_bytes)
