"""The calls that wait on a node: slices in the order in which they will run."""

from __future__ import annotations

import collections

from burla.protocol import Blob, Slice, inline_bytes
from burla.ranges import Ranges


class Backlog:
    """See the module. Its length is in calls."""

    def __init__(self) -> None:
        self._slices: collections.deque[Slice] = collections.deque()
        self._calls = 0

    def __len__(self) -> int:
        return self._calls

    @property
    def inline_bytes(self) -> int:
        """The size of the values that the slices carry."""
        return sum(inline_bytes(one.block.payload) for one in self._slices)

    def add(self, slices: tuple[Slice, ...]) -> None:
        """Queue slices, in the order given; retries go first."""
        for one in slices:
            (self._slices.appendleft if one.alone else self._slices.append)(one)
            self._calls += one.stop - one.start

    def put_back(self, slices: list[Slice]) -> None:
        """Queue slices before all others."""
        for one in reversed(slices):
            self._slices.appendleft(one)
            self._calls += one.stop - one.start

    def keep(self, ranges: Ranges) -> None:
        """Drop the calls that are not in `ranges`."""
        slices, self._slices, self._calls = self._slices, collections.deque(), 0
        for one in slices:
            for start, stop in ranges.overlap(one.start, one.stop):
                self._slices.append(Slice(one.block, start, stop, one.alone))
                self._calls += stop - start

    def take(self, quota: int) -> list[Slice]:
        """Take at most `quota` calls for one Run; a retry runs alone, and so does what has yet to be fetched."""
        taken: list[Slice] = []
        while quota > 0 and self._slices:
            first = self._slices.popleft()
            if first.alone and taken:
                self._slices.appendleft(first)
                break
            stop = min(first.stop, first.start + quota)
            if stop < first.stop:
                self._slices.appendleft(Slice(first.block, stop, first.stop))
            taken.append(Slice(first.block, first.start, stop, first.alone))
            self._calls -= stop - first.start
            quota -= stop - first.start
            if first.alone or isinstance(first.block.payload, Blob):
                break
        return taken

    def take_last(self, calls: int) -> list[tuple[int, int]]:
        """Take at most so many calls from the end; return their (start, stop)."""
        taken: list[tuple[int, int]] = []
        while calls > 0 and self._slices:
            last = self._slices.pop()
            start = max(last.start, last.stop - calls)
            if start > last.start:
                self._slices.append(Slice(last.block, last.start, start))
            taken.append((start, last.stop))
            self._calls -= last.stop - start
            calls -= last.stop - start
        return taken


def cut(calls: list[Slice], start: int, stop: int) -> list[Slice]:
    """Return the calls at positions `start` … `stop - 1` of a Run."""
    cut: list[Slice] = []
    at = 0
    for one in calls:
        count = one.stop - one.start
        first, last = max(start - at, 0), min(stop - at, count)
        if first < last:
            cut.append(Slice(one.block, one.start + first, one.start + last, one.alone))
        at += count
    return cut
