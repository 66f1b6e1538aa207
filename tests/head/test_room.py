"""Room for calls whose memory is not known before: halved when a node runs short, then one more call at a time."""

from __future__ import annotations

import pytest

from burla.head.room import GROW_EVERY_S, LATE_S, MOST_EVICTIONS, Room, Verdict, judge
from burla.protocol import Evicted, NodeOffer

GB = 1_000_000_000
NODE = NodeOffer("n", "n", cpus=8, ram_bytes=16 * GB)


def calls(room: Room) -> int:
    """How many calls have room on the node."""
    return 8 if room.per_call_bytes is None else min(8, NODE.ram_bytes // room.per_call_bytes)


def test_calls_count_for_nothing_until_a_node_runs_short():
    room = Room(func_cpu=1)
    room.seen(5 * GB, 0.0)
    assert room.per_call_bytes is None and not room.tick([NODE], 100.0, held_up=False)


def test_a_shortage_halves_the_calls_and_time_brings_them_back_one_by_one():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=7, now_s=100.0)
    assert calls(room) == 4
    counts = []
    for second in range(1, 40):
        room.tick([NODE], 100.0 + second, held_up=False)
        counts.append(calls(room))
    assert counts == sorted(counts) and set(counts) == {4, 5, 6, 7, 8}
    assert counts.index(5) + 1 == GROW_EVERY_S
    assert room.per_call_bytes is None, "as before"


def test_one_more_shortage_takes_more_and_a_lesser_one_gives_nothing_back():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=7, now_s=0.0)
    room.short(NODE.ram_bytes, beside=3, now_s=1.0)
    assert calls(room) == 2
    room.short(NODE.ram_bytes, beside=7, now_s=2.0)
    assert calls(room) == 2
    room.short(NODE.ram_bytes, beside=1, now_s=3.0)
    room.short(NODE.ram_bytes, beside=0, now_s=4.0)
    assert calls(room) == 1


def test_no_more_calls_come_back_than_the_largest_of_late_leaves_room_for():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=3, now_s=0.0)
    assert calls(room) == 2
    for second in range(100):
        room.seen(4 * GB, float(second))
        room.tick([NODE], float(second), held_up=False)
    assert calls(room) == 3, "4 GB and a little more, in 16"


def test_one_large_call_long_ago_keeps_nobody_out():
    room = Room(func_cpu=1)
    room.seen(12 * GB, 0.0)
    room.short(NODE.ram_bytes, beside=1, now_s=0.0)
    for second in range(int(4 * LATE_S)):
        room.seen(GB // 2, float(second))
        room.tick([NODE], float(second), held_up=False)
        if second < LATE_S:
            assert calls(room) == 1
    assert calls(room) == 8 and room.peak_bytes == 12 * GB


def test_calls_on_nodes_of_several_sizes_are_counted_one_at_least_each():
    room = Room(func_cpu=1)
    small = NodeOffer("s", "s", cpus=2, ram_bytes=4 * GB)
    assert room.calls([NODE, small]) is None
    room.short(NODE.ram_bytes, beside=3, now_s=0.0)
    assert room.calls([NODE, small]) == 2 + 1


def test_as_many_come_back_as_the_cpus_allow():
    room = Room(func_cpu=4)
    room.short(NODE.ram_bytes, beside=1, now_s=0.0)
    assert not room.tick([NODE], 1.0, held_up=False)
    room.tick([NODE], 6.0, held_up=False)
    assert calls(room) == 2
    room.tick([NODE], 12.0, held_up=False)
    assert room.per_call_bytes is None


def test_nothing_is_given_while_a_call_waits_for_what_there_is():
    room = Room(1)
    room.short(NODE.ram_bytes, beside=3, now_s=0.0)
    before = room.per_call_bytes
    assert not room.tick([NODE], 100.0, held_up=True) and not room.tick([NODE], 104.0, held_up=False)
    assert room.per_call_bytes == before
    assert room.tick([NODE], 105.0, held_up=False)


def test_without_a_node_nothing_changes():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=7, now_s=0.0)
    assert not room.tick([], 100.0, held_up=False)


def evicted(
    peak: float, others: float = 0.0, left: float = 0.0, fixed: bool = False, limit_bytes: int = 16 * GB
) -> Evicted:
    """Return an eviction in parts of the limit."""
    return Evicted(
        3,
        int(peak * limit_bytes),
        limit_bytes,
        int(others > 0),
        int(others * limit_bytes),
        int(left * limit_bytes),
        fixed,
    )


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (evicted(0.4, others=0.5), Verdict.AGAIN),
        (evicted(0.8, others=0.2), Verdict.AGAIN),
        (evicted(0.9), Verdict.LARGER),
        (evicted(0.9, others=0.05), Verdict.LARGER),
        (evicted(0.3), Verdict.AGAIN),  # somebody else has the memory
        (evicted(0.9, left=0.6), Verdict.AGAIN),  # or what ran before it in its process
        (evicted(1.1, fixed=True), Verdict.NEVER),
        (evicted(1.1, others=2.0, fixed=True), Verdict.NEVER),
        (evicted(1.1, left=0.6, fixed=True), Verdict.AGAIN),
    ],
)
def test_a_call_is_given_up_only_where_it_was_its_own_memory_that_did_not_fit(one: Evicted, verdict: Verdict):
    assert judge(one, 0) is verdict


def test_no_call_is_begun_again_for_ever():
    assert judge(evicted(0.4, others=0.5), MOST_EVICTIONS - 1) is Verdict.AGAIN
    assert judge(evicted(0.4, others=0.5), MOST_EVICTIONS) is Verdict.NEVER
