"""What a lease has to tell the head, in order: what a call wrote stands before its result."""

from __future__ import annotations

from collections import deque

from burla import outputs
from burla.protocol import MESSAGE_BYTES, Crash, Evicted, Failure, Output, Outputs, Results

LIMIT_BYTES = 4_000_000  # beyond this, calls that write more have to wait

News = Results | Failure | Crash | Evicted | Output | Outputs


class Outbox:
    """A queue that knows its size."""

    def __init__(self) -> None:
        self._news: deque[News] = deque()
        self._size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._news)

    @property
    def full(self) -> bool:
        return self._size_bytes > LIMIT_BYTES

    def put(self, one: News) -> None:
        self._news.append(one)
        self._size_bytes += _size(one)

    def take(self) -> tuple[News, ...]:
        """Return the oldest news, about as much as one message holds; outputs that follow each other as one."""
        taken: list[News] = []
        written: list[Output] = []
        size = 0
        while self._news and size < MESSAGE_BYTES:
            one = self._news.popleft()
            size += _size(one)
            if isinstance(one, Output):
                written.append(one)
                continue
            if written:
                taken.append(outputs.pack(written))
                written = []
            taken.append(one)
        if written:
            taken.append(outputs.pack(written))
        self._size_bytes -= size
        return tuple(taken)


def _size(one: News) -> int:
    match one:
        case Results(payload=bytes() as data) | Failure(payload=data) | Output(data=data):
            return len(data) + 64
        case _:
            return 64
