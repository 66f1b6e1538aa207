from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burla.ranges import Ranges

spans = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda span: (span[0], span[0] + span[1]))


def indices(ranges: Ranges) -> list[int]:
    return [index for start, stop in ranges for index in range(start, stop)]


def test_ranges_that_touch_or_overlap_become_one():
    ranges = Ranges((0, 2), (4, 6), (2, 4), (5, 9))
    assert list(ranges) == [(0, 9)]
    assert ranges.count == 9


def test_removing_from_the_middle_leaves_two():
    ranges = Ranges((0, 10))
    ranges.remove(3, 7)
    assert list(ranges) == [(0, 3), (7, 10)]
    assert ranges.count == 6
    assert ranges.first() == (0, 3)


def test_an_empty_range_adds_nothing():
    ranges = Ranges((5, 5))
    assert not ranges and list(ranges) == []


@pytest.mark.parametrize("gap", [(2, 5), (0, 11), (9, 11), (12, 13)])
def test_what_is_not_there_cannot_be_removed(gap: tuple[int, int]):
    ranges = Ranges((0, 3), (4, 10))
    assert not ranges.covers(*gap)
    with pytest.raises(KeyError):
        ranges.remove(*gap)
    assert indices(ranges) == [0, 1, 2, *range(4, 10)]


def test_ranges_may_change_while_somebody_iterates():
    ranges = Ranges((0, 2), (4, 6))
    for start, stop in ranges:
        ranges.remove(start, stop)
    assert not ranges


@given(st.lists(st.tuples(st.booleans(), spans), max_size=60))
def test_ranges_behave_as_a_set_of_indices(steps: list[tuple[bool, tuple[int, int]]]):
    ranges, model = Ranges(), set[int]()
    for adds, (start, stop) in steps:
        span = set(range(start, stop))
        if adds:
            ranges.add(start, stop)
            model |= span
        elif span and span <= model:
            assert ranges.covers(start, stop)
            ranges.remove(start, stop)
            model -= span
        elif span:
            assert not ranges.covers(start, stop)
            parts = ranges.overlap(start, stop)
            assert [index for low, high in parts for index in range(low, high)] == sorted(model & span)
            ranges.discard(start, stop)
            model -= span
        assert indices(ranges) == sorted(model)
        assert ranges.count == len(model) and bool(ranges) == bool(model)
        assert all(one[1] < other[0] for one, other in pairwise(ranges)), "sorted, disjoint, as few as can be"


def test_the_cost_is_by_range_not_by_index():
    ranges, began = Ranges(), time.process_time()
    ranges.add(0, 10**15)
    ranges.remove(10**14, 2 * 10**14)
    assert ranges.count == 9 * 10**14
    assert time.process_time() - began < 1  # 10^15 steps would take years
