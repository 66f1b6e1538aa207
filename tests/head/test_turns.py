"""What jobs have had of the CPUs, and what it leads to over some turns."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla.head.demands import Demand
from burla.head.turns import BEFORE, CALLS, KEPT, LONGEST_S, SHORTEST_S, Share, Turns
from burla.protocol import NodeOffer
from tests.head.simulation import Simulation

TURN_S = SHORTEST_S


def slots(count: int, func_cpu: int = 1, finished: int = 10**6) -> Share:
    return Share(count, func_cpu, finished)


def test_what_was_had_is_in_cpus_for_a_turn_and_counts_less_later():
    turns = Turns(100.0)
    assert not turns.note({"a": slots(1, func_cpu=2), "b": slots(0)}, 100.0)
    assert not turns.note({"a": slots(3, func_cpu=2), "b": slots(0)}, 100.0 + TURN_S / 2)
    assert turns.had == {"a": 0, "b": 0}, "it changes from turn to turn only"
    assert turns.note({"a": slots(0), "b": slots(1)}, 100.0 + TURN_S)
    assert turns.had == {"a": (2 + 6) / 2, "b": 0}
    assert turns.note({"a": slots(0), "b": slots(0)}, 100.0 + 2 * TURN_S)
    assert turns.had == pytest.approx({"a": 4 * KEPT, "b": 1})


def test_a_newcomer_goes_before_who_has_had_most_by_a_hair():
    turns = Turns(0.0)
    turns.note({"a": slots(4), "b": slots(2)}, 0.0)
    turns.note({"a": slots(4), "b": slots(2)}, TURN_S)
    turns.note({"a": slots(4), "b": slots(2), "new": slots(0)}, TURN_S + 1)
    assert turns.had == {"a": 4, "b": 2, "new": 4 * BEFORE} and 3.99 < turns.had["new"] < 4


def test_a_job_that_is_over_is_forgotten():
    turns = Turns(0.0)
    turns.note({"a": slots(4), "b": slots(2)}, 0.0)
    turns.note({"b": slots(2)}, TURN_S / 2)
    turns.note({"b": slots(2)}, TURN_S)
    assert turns.had == {"b": 2}


def test_a_turn_is_long_beside_the_longest_calls_but_not_for_ever():
    turns = Turns(0.0)
    shares = {"short": slots(4), "long": slots(2, finished=10)}
    turns.note(shares, 0.0)
    turns.note(shares, 20.0)  # so far 4 s a call
    shares = {"short": slots(4), "long": slots(0, finished=10)}
    assert not turns.note(shares, 20.0 + CALLS * 4.0 - 0.1)
    assert turns.note(shares, 2 * (20.0 + CALLS * 4.0))
    endless = Turns(0.0)
    endless.note({"a": slots(1, finished=0), "b": slots(1)}, 0.0)
    assert not endless.note({"a": slots(1, finished=0), "b": slots(1)}, LONGEST_S - 1)
    assert endless.note({"a": slots(1, finished=0), "b": slots(1)}, LONGEST_S)


# over some turns ------------------------------------------------------------------------------------------------------


def job(name: str, order: int, cpu: int, unfinished: int = 10**7) -> Demand:
    return Demand(name, order, 0, cpu, None, None, None, unfinished, None)


def simulate(cpus: Sequence[int], widths: Sequence[int], call_s: Mapping[str, float], for_s: float) -> Simulation:
    """Jobs j0, j1, …, as wide as that, with calls of random length, that never end."""
    chance = random.Random(1)
    nodes = [NodeOffer(f"n{at}", f"n{at}", count, 10**9) for at, count in enumerate(cpus)]
    cluster = Simulation(nodes, lambda name: call_s[name] * chance.uniform(0.2, 1.8))
    for order, width in enumerate(widths):
        cluster.submit(job(f"j{order}", order, width))
    cluster.run(for_s)
    return cluster


def shares(cluster: Simulation) -> list[float]:
    total_s = sum(cluster.cpu_s.values())
    return [cluster.cpu_s[name] / total_s for name in sorted(cluster.cpu_s)]


@pytest.mark.parametrize(
    ("cpus", "widths"),
    [([8], [1, 2, 4]), ([8], [4, 2, 1]), ([2], [1, 2]), ([2], [1, 1, 2]), ([8], [1, 7]), ([8], [1, 8]), ([3], [1, 1])],
    ids=str,
)
@pytest.mark.parametrize("call_s", [0.5, 4.0])
def test_jobs_of_any_width_fill_a_node_and_have_equal_shares_of_it(cpus: list[int], widths: list[int], call_s: float):
    turn_s = max(SHORTEST_S, CALLS * call_s)
    cluster = simulate(cpus, widths, {f"j{at}": call_s for at in range(len(widths))}, 40 * turn_s)
    assert sum(cluster.cpu_s.values()) > 0.95 * sum(cpus) * cluster.now_s
    assert all(abs(share * len(widths) - 1) < 0.15 for share in shares(cluster)), shares(cluster)
    assert max(cluster.waits_s.values()) < 3 * turn_s


def test_jobs_that_share_evenly_keep_their_processes():
    cluster = simulate([8], [1, 1, 2], {"j0": 0.5, "j1": 0.5, "j2": 0.5}, 100 * TURN_S)
    assert sum(cluster.opened.values()) < 100, "of some 16,000 calls"


def test_a_newcomer_that_needs_all_of_a_node_waits_for_calls_and_not_for_a_turn():
    cluster = simulate([4], [1], {"j0": 0.5, "wide": 0.5}, 20 * TURN_S + 0.5)
    cluster.submit(job("wide", 1, 4, unfinished=3))
    cluster.run(cluster.now_s + 4)
    assert "wide" in cluster.ended_s and cluster.waits_s["wide"] < 1
    cluster.run(cluster.now_s + 1)
    assert cluster.used_cpus == 4


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=5, max_size=5),
)
def test_whatever_runs_beside_it_every_job_has_its_turn_in_time_and_little_room_is_idle(cpus, widths, lengths):
    widths = [width for width in widths if width <= max(cpus)] + [1]  # one that fits into every gap
    calls_s = {f"j{at}": lengths[at] for at in range(len(widths))}
    turn_s = max(SHORTEST_S, CALLS * max(lengths))
    cluster = simulate(cpus, widths, calls_s, 30 * turn_s)
    assert len(cluster.cpu_s) == len(widths)
    assert max(cluster.waits_s.values()) < (len(widths) + 2) * turn_s
    assert sum(cluster.cpu_s.values()) > 0.8 * sum(cpus) * cluster.now_s


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32), st.floats(0.3, 3.0))
def test_a_stream_of_small_jobs_that_never_ends_does_not_starve_a_wide_one(cpus, seed, call_s):
    chance = random.Random(seed)
    cluster = Simulation([NodeOffer("n", "n", cpus, 10**9)], lambda name: call_s * chance.uniform(0.2, 1.8))
    wide = chance.randint(0, 30)
    for number in range(400):
        if number == wide:
            cluster.submit(job("wide", number, cpus, unfinished=5))
        if len(cluster.jobs) < 12:
            cluster.submit(job(f"small{number}", number, 1, unfinished=chance.randint(1, 10)))
        cluster.run(cluster.now_s + chance.uniform(0, 2 * call_s / cpus * 5))
    cluster.run(cluster.now_s + 3 * SHORTEST_S)
    assert "wide" in cluster.ended_s
    waited_s = cluster.waits_s["wide"]
    assert waited_s < 4 * max(SHORTEST_S, CALLS * 2 * call_s)
