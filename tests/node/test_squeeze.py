"""Which call ends when memory runs short."""

from __future__ import annotations

from burla.node.memory import Memory
from burla.node.squeeze import KILLED_WITHIN_S, SETTLE_S, KernelKills, RunningCall, Squeeze
from burla.protocol import Evicted

GB = 1_000_000_000


def call(index: int, started_s: float, own_bytes: int, limit_bytes: int | None = None) -> RunningCall:
    return RunningCall("job", index, int(started_s * 1e9), own_bytes, own_bytes // 10, limit_bytes)


def memory(used_bytes: int) -> Memory:
    return Memory(used_bytes, 10 * GB, 0)


def ended(squeeze: Squeeze, used_bytes: int, calls: list[RunningCall], now_s: float = 0.0) -> list[int]:
    return [call.index for call, _ in squeeze.decide(memory(used_bytes), calls, now_s)]


def test_the_youngest_call_ends_when_the_node_runs_short_and_none_before():
    calls = [call(1, 5.0, 3 * GB), call(2, 7.0, 1 * GB), call(3, 6.0, 4 * GB)]
    assert ended(Squeeze(), 8 * GB, calls) == []
    ((victim, said),) = Squeeze().decide(memory(int(9.5 * GB)), calls, 0.0)
    assert victim is calls[1]
    assert said == Evicted(2, 1 * GB, 10 * GB, beside=2, others_bytes=7 * GB, left_bytes=GB // 10, fixed=False)


def test_the_next_call_ends_only_when_the_memory_of_the_last_had_time_to_come_free():
    squeeze, calls = Squeeze(), [call(1, 5.0, 3 * GB), call(2, 7.0, 5 * GB)]
    assert ended(squeeze, int(9.5 * GB), calls, 0.0) == [2]
    assert ended(squeeze, int(9.5 * GB), calls[:1], 0.5 * SETTLE_S) == []
    assert ended(squeeze, int(9.5 * GB), calls[:1], 1.5 * SETTLE_S) == [1]


def test_a_call_over_its_own_limit_ends_however_much_there_is():
    calls = [call(1, 5.0, 3 * GB, limit_bytes=2 * GB), call(2, 7.0, 3 * GB, limit_bytes=4 * GB), call(3, 8.0, 3 * GB)]
    ((victim, said),) = Squeeze().decide(memory(9 * GB), calls, 0.0)
    assert victim is calls[0]
    assert (said.index, said.limit_bytes, said.peak_bytes, said.fixed) == (1, 2 * GB, 3 * GB, True)


def test_a_call_within_its_own_limit_is_never_taken_for_the_nodes_sake():
    calls = [call(1, 5.0, 5 * GB), call(2, 7.0, 4 * GB, limit_bytes=4 * GB)]
    assert ended(Squeeze(), int(9.5 * GB), calls) == [1]
    assert ended(Squeeze(), int(9.5 * GB), calls[1:]) == []


def test_calls_that_have_next_to_nothing_do_not_pay_for_what_others_on_the_machine_use():
    calls = [call(1, 5.0, GB // 10), call(2, 7.0, GB // 10)]
    assert ended(Squeeze(), int(9.9 * GB), calls) == []


def test_readings_come_often_when_it_may_matter_soon():
    assert not Squeeze.watch_closely(memory(1 * GB), [call(1, 5.0, GB)])
    assert Squeeze.watch_closely(memory(8 * GB), [call(1, 5.0, GB)])
    assert Squeeze.watch_closely(memory(1 * GB), [call(1, 5.0, GB, limit_bytes=2 * GB)])


def test_each_kill_of_the_kernel_accounts_for_one_dead_call():
    kills = KernelKills(3)
    assert not kills.take()
    kills.look(5, 10.0)
    assert kills.take() and kills.take() and not kills.take()


def test_a_kill_that_hit_no_call_is_not_taken_for_the_end_of_a_later_one():
    kills = KernelKills(0)
    kills.look(1, 10.0)
    kills.look(1, 10.0 + KILLED_WITHIN_S)
    assert kills.take()
    kills.look(2, 20.0)
    kills.look(2, 20.1 + KILLED_WITHIN_S)
    assert not kills.take()
