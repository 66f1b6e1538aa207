"""Sets of input indices as sorted, disjoint, half-open ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """A set of indices. Adding and removing cost the number of ranges, not of indices."""

    def __init__(self, *ranges: tuple[int, int]):
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.count = 0
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, start: int, stop: int) -> None:
        """Add `start` … `stop - 1`, which may overlap what is there."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)  # the first range that touches or follows
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        gone = sum(self._stops[i] - self._starts[i] for i in range(first, last))
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self.count += stop - start - gone

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of `start` … `stop - 1` is in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and stop <= self._stops[at]

    def overlap(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of `start` … `stop - 1` that are in the set."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        return [(max(start, self._starts[i]), min(stop, self._stops[i])) for i in range(first, last)]

    def remove(self, start: int, stop: int) -> None:
        """Remove a range that the set covers."""
        at = bisect_right(self._starts, start) - 1
        if at < 0 or stop > self._stops[at]:
            raise KeyError((start, stop))
        low, high = self._starts[at], self._stops[at]
        parts = [(a, b) for a, b in ((low, start), (stop, high)) if a < b]
        self._starts[at : at + 1] = [a for a, _ in parts]
        self._stops[at : at + 1] = [b for _, b in parts]
        self.count -= stop - start

    def discard(self, start: int, stop: int) -> None:
        """Remove what of `start` … `stop - 1` is in the set."""
        for low, high in self.overlap(start, stop):
            self.remove(low, high)

    def first(self) -> tuple[int, int]:
        """Return the range with the lowest indices."""
        return self._starts[0], self._stops[0]
