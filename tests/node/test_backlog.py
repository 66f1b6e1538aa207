"""What waits on a node: taken in order, given back from the end, dropped when it is somebody else's."""

from __future__ import annotations

from burla.node.backlog import Backlog, cut
from burla.protocol import Blob, Block, Slice
from burla.ranges import Ranges

BLOCK = Block(0, 100, False, b"inputs")


def some(start: int, stop: int, alone: bool = False) -> Slice:
    return Slice(BLOCK, start, stop, alone)


def calls(slices: list[Slice]) -> list[tuple[int, int]]:
    return [(one.start, one.stop) for one in slices]


def test_calls_are_taken_in_order_and_no_more_than_asked_for():
    backlog = Backlog()
    backlog.add((some(0, 10), some(20, 30)))
    assert calls(backlog.take(4)) == [(0, 4)]
    assert calls(backlog.take(10)) == [(4, 10), (20, 24)]
    assert len(backlog) == 6
    assert calls(backlog.take(100)) == [(24, 30)]
    assert backlog.take(1) == [] and len(backlog) == 0


def test_a_retry_goes_first_and_alone():
    backlog = Backlog()
    backlog.add((some(0, 10),))
    backlog.add((some(50, 51, alone=True),))
    assert backlog.take(5) == [some(50, 51, alone=True)]
    backlog.put_back([some(60, 61), some(70, 71, alone=True)])
    assert calls(backlog.take(5)) == [(60, 61)], "what comes before a retry does not run with it"
    assert calls(backlog.take(5)) == [(70, 71)]


def test_a_block_that_has_to_be_fetched_ends_what_is_taken():
    backlog = Backlog()
    large = Block(10, 10, False, Blob("b", 5_000_000, 0))
    backlog.add((some(0, 2), Slice(large, 10, 12), some(30, 32)))
    assert calls(backlog.take(100)) == [(0, 2), (10, 12)]
    assert backlog.inline_bytes == len(b"inputs")


def test_calls_are_given_back_from_the_end():
    backlog = Backlog()
    backlog.add((some(0, 10), some(20, 30)))
    assert backlog.take_last(12) == [(20, 30), (8, 10)]
    assert len(backlog) == 8 and calls(backlog.take(100)) == [(0, 8)]
    assert backlog.take_last(5) == []


def test_calls_that_are_somebody_elses_are_dropped():
    backlog = Backlog()
    backlog.add((some(0, 10), some(20, 30)))
    backlog.keep(Ranges((2, 4), (8, 22)))
    assert len(backlog) == 6
    assert calls(backlog.take(100)) == [(2, 4), (8, 10), (20, 22)]


def test_a_run_is_cut_by_position():
    assert calls(cut([some(5, 8), some(20, 22)], 2, 4)) == [(7, 8), (20, 21)]
    assert cut([some(5, 8)], 3, 9) == []
