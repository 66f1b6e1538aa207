"""Watches the memory of a node's calls, and has those ended that there is no room for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from burla.node.memory import Gauge, tree_bytes
from burla.node.slot import Slot
from burla.node.squeeze import KernelKills, RunningCall, Squeeze, eviction
from burla.protocol import Evicted

CLOSE_S, FAR_S, IDLE_S = 0.05, 0.25, 0.5  # between readings
SHARE = 10  # it takes no more than a tenth of the time, however many processes calls have


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
        self._memory = gauge.read()
        self._calls: dict[Slot, RunningCall] = {}  # as last read
        self._kills = KernelKills(self._memory.kills)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            began = time.monotonic()
            pace = self.look(began)
            await asyncio.sleep(max(pace, SHARE * (time.monotonic() - began)))

    def look(self, now_s: float) -> float:
        """Take one reading and act on it; return in how many seconds to take the next."""
        self._calls = {slot: call for slot in self._node.slots if (call := self._measured(slot)) is not None}
        if not self._calls:
            return IDLE_S
        memory = self._memory = self._gauge.read()
        self._kills.look(memory.kills, now_s)
        slots = {id(call): slot for slot, call in self._calls.items()}
        calls = list(self._calls.values())
        for call, evicted in self._squeeze.decide(memory, calls, now_s):
            slots[id(call)].evict(evicted)
        return CLOSE_S if self._squeeze.watch_closely(memory, calls) else FAR_S

    def killed_by_kernel(self, slot: Slot, index: int, peak_bytes: int) -> Evicted | None:
        """Return what is to be said of a call whose process got a SIGKILL that was not ours; None: it was not memory.

        `peak_bytes`: the most that its process has had.
        """
        memory = self._gauge.read()
        self._kills.look(memory.kills, time.monotonic())
        call = self._calls.get(slot)
        if call is None or call.index != index:  # it grew so fast that it was not seen
            call = RunningCall(slot.job, index, 0, 0, 0 if slot.fresh else peak_bytes, slot.limit_bytes)
        call = replace(call, own_bytes=max(call.own_bytes, peak_bytes))
        limit_bytes = slot.limit_bytes or math.inf
        if slot.over_limit(call.own_bytes) or (call.own_bytes > limit_bytes and self._kills.take()):
            call = replace(call, own_bytes=max(call.own_bytes, slot.limit_bytes or 0))
            return eviction(call, [call], memory)
        if not self._kills.take():
            return None
        call = replace(call, limit_bytes=None)
        return eviction(call, [call, *(one for other, one in self._calls.items() if other is not slot)], memory)

    def _measured(self, slot: Slot) -> RunningCall | None:
        current, child = slot.current, slot.child
        if current is None or child is None or child.pid is None or slot.evicted is not None:
            return None
        index, started_ns = current
        own_bytes = tree_bytes(child.pid) if child.group is None else child.group.used_bytes
        slot.peak_bytes = max(slot.peak_bytes, own_bytes)
        before = self._calls.get(slot)
        if before is not None and (before.index, before.started_ns) == (index, started_ns):
            left_bytes = before.left_bytes
        else:
            left_bytes = 0 if slot.fresh else own_bytes
        return RunningCall(slot.job, index, started_ns, own_bytes, left_bytes, slot.limit_bytes)
