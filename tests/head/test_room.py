"""Room for calls whose memory is not known before: halved when a node runs short, then one more call at a time."""

from __future__ import annotations

from burla.head.room import GROW_EVERY_S, Room
from burla.protocol import NodeOffer

GB = 1_000_000_000
NODE = NodeOffer("n", "n", cpus=8, ram_bytes=16 * GB)


def calls(room: Room) -> int:
    """How many calls have room on the node."""
    return 8 if room.per_call_bytes is None else min(8, NODE.ram_bytes // room.per_call_bytes)


def test_calls_count_for_nothing_until_a_node_runs_short():
    room = Room(func_cpu=1)
    room.seen(5 * GB)
    assert room.per_call_bytes is None and not room.tick([NODE], 100.0)


def test_a_shortage_halves_the_calls_and_time_brings_them_back_one_by_one():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=7, now_s=100.0)
    assert calls(room) == 4
    counts = []
    for second in range(1, 40):
        room.tick([NODE], 100.0 + second)
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


def test_no_more_calls_come_back_than_the_largest_so_far_leaves_room_for():
    room = Room(func_cpu=1)
    room.seen(4 * GB)
    room.short(NODE.ram_bytes, beside=3, now_s=0.0)
    assert calls(room) == 2
    for second in range(100):
        room.tick([NODE], float(second))
    assert calls(room) == 3, "4 GB and a little more, in 16"


def test_as_many_come_back_as_the_cpus_allow():
    room = Room(func_cpu=4)
    room.short(NODE.ram_bytes, beside=1, now_s=0.0)
    assert not room.tick([NODE], 1.0)
    room.tick([NODE], 6.0)
    assert calls(room) == 2
    room.tick([NODE], 12.0)
    assert room.per_call_bytes is None


def test_without_a_node_nothing_changes():
    room = Room(func_cpu=1)
    room.short(NODE.ram_bytes, beside=7, now_s=0.0)
    assert not room.tick([], 100.0)
