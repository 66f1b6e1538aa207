"""A job's events, numbered from 0. One is shown once the store has it; the newest are kept in memory, too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from burla import outputs
from burla.head.limits import OutputLimits
from burla.protocol import KIND_OF, MESSAGE_BYTES, Event, Failure, Kind, Output, Outputs, Results

if TYPE_CHECKING:
    from burla.head.store import Store

KEPT_BYTES = 8_000_000  # of shown events in memory


class Journal:
    """See the module. `durable`: a commit counts when it would survive the machine, not only this process."""

    def __init__(self, store: Store, number: int, length: int = 0, output_bytes: int = 0):
        self.durable = False
        self.length = self.shown = length
        self._store = store
        self._number = number
        self._first = length  # the number of the oldest event in memory
        self._kept: deque[tuple[Event, int]] = deque()
        self._kept_bytes = 0
        self._limits = OutputLimits(output_bytes)
        self._marking = False
        self._news = asyncio.Event()

    def append(self, event: Event) -> None:
        """Record an event; of output, what the limits allow, and with an outcome how much they have cost."""
        match event:
            case Output():
                for one in self._limits.admit(event):
                    self._append(one)
                return
            case Outputs():
                for one in self._limits.admit_all(event):
                    self._append(one)
                return
            case Results(start, stop):
                dropped = self._limits.finish(start, stop)
            case Failure(index):
                dropped = self._limits.finish(index, index + 1)
            case _:
                dropped = ()
        for one in (*dropped, event):
            self._append(one)

    def _append(self, event: Event) -> None:
        self._store.add_event(self._number, self.length, event, self.durable)
        self.length += 1
        size = event_bytes(event)
        self._kept.append((event, size))
        self._kept_bytes += size
        if not self._marking:
            self._marking = True
            asyncio.get_running_loop().call_soon(self._mark)

    def _mark(self) -> None:
        self._marking = False
        length = self.length
        self._store.after_commit(lambda: self._show(length))

    def _show(self, length: int) -> None:
        self.shown = length
        while self._kept_bytes > KEPT_BYTES and self._first < self.shown:
            self._kept_bytes -= self._kept.popleft()[1]
            self._first += 1
        self._news.set()

    def wake(self) -> None:
        """Let those who wait look at the job again."""
        self._news.set()

    def let_go(self) -> None:
        """Keep nothing in memory of what is in the store."""
        while self._first < self.shown:
            self._kept_bytes -= self._kept.popleft()[1]
            self._first += 1

    async def read(self, after: int, wait_s: float, kinds: Kind, index: int | None) -> tuple[list[Event], int]:
        """Return about a message of events from number `after` on, and the number of the next.

        If there is none, wait for it, at most `wait_s`.
        """
        if self.shown <= after:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), wait_s)
            except TimeoutError:
                pass  # how the job stands is news enough
        if self.shown <= after:
            return [], after
        if after < self._first:
            return await self._store.events(self._number, after, kinds, index)
        events: list[Event] = []
        size = 0
        number = after
        while number < self.shown and size < MESSAGE_BYTES:
            event, event_size = self._kept[number - self._first]
            number += 1
            if KIND_OF[type(event)] & kinds and (index is None or concerns(event, index)):
                mine = event if index is None else outputs.about(event, index)
                if mine is not None:
                    events.append(mine)
                    size += event_size
        return events, number


def concerns(event: Event, index: int) -> bool:
    """Whether an event is about input `index`."""
    match event:
        case Results(start, stop) | Outputs(start, stop):
            return start <= index < stop
        case Failure(one) | Output(one):
            return one == index
        case _:
            return False


def event_bytes(event: Event) -> int:
    """Return about how much memory an event takes."""
    match event:
        case Results(payload=bytes() as data) | Failure(payload=data) | Output(data=data) | Outputs(packed=data):
            return len(data) + 200
        case _:
            return 200
