from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla.head.demands import Demand, explain_misfit, fits, share_out_gpus
from burla.head.place import SLACK, place
from burla.protocol import ANY_GPU, Gpu, NodeOffer

Slots = dict[tuple[str, str], int]
Lent = Mapping[str, Mapping[int, int]]

GB = 10**9
NOTHING: Slots = {}


def job(
    name: str,
    order: int = 0,
    *,
    cpu: int = 1,
    unfinished: int = 10**6,
    at_most: int | None = None,
    depth: int = 0,
    ram: int | None = None,
    gpu: str | None = None,
    image: str | None = None,
    had: float = 0.0,
) -> Demand:
    return Demand(name, order, depth, cpu, ram, gpu, image, unfinished, at_most, had=had)


def node(
    name: str, cpus: int = 2, ram: int = 8 * GB, gpus: Mapping[str, int] | None = None, image: str | None = None
) -> NodeOffer:
    kinds = [kind for kind, count in (gpus or {}).items() for _ in range(count)]
    found = tuple(Gpu(f"GPU-{name}-{at}", kind, 40 * GB) for at, kind in enumerate(kinds))
    return NodeOffer(name, name, cpus, ram, found, image)


def settled(jobs: Sequence[Demand], nodes: Sequence[NodeOffer], held: Slots, lent: Lent | None = None) -> Slots:
    """What is held once every shrink and every growth was carried out."""
    for _ in range(30):
        granted = {at: count for at, count in place(jobs, nodes, held, lent or {}).items() if count}
        if granted == held:
            return held
        held = granted
    raise AssertionError("it never settles")


def total(slots: Slots, name: str) -> int:
    return sum(count for (owner, _), count in slots.items() if owner == name)


# examples -------------------------------------------------------------------------------------------------------------


def test_a_job_alone_gets_every_cpu():
    nodes = [node("n1", 2), node("n2", 3)]
    assert place([job("a")], nodes, NOTHING, {}) == {("a", "n1"): 2, ("a", "n2"): 3}


def test_a_small_job_takes_only_what_it_needs():
    granted = place([job("a", 0), job("small", 1, unfinished=1)], [node("n", 8)], NOTHING, {})
    assert granted == {("a", "n"): 7, ("small", "n"): 1}


def test_jobs_with_equal_demands_on_two_cpus_get_one_each():
    assert place([job("a", 0), job("b", 1)], [node("n", 2)], NOTHING, {}) == {("a", "n"): 1, ("b", "n"): 1}


def test_fairness_counts_cpus_not_slots():
    slots = place([job("wide", 0, cpu=4), job("narrow", 1)], [node("n", 16)], NOTHING, {})
    assert slots == {("wide", "n"): 2, ("narrow", "n"): 8}


def test_a_long_job_shrinks_when_another_arrives_and_grows_again_afterwards():
    nodes = [node("n", 4)]
    old, new = job("old", 0), job("new", 1)
    assert place([old, new], nodes, {("old", "n"): 4}, {}) == {("old", "n"): 2}
    assert place([old, new], nodes, {("old", "n"): 3}, {}) == {("old", "n"): 2, ("new", "n"): 1}
    assert place([old, new], nodes, {("old", "n"): 2, ("new", "n"): 1}, {}) == {("old", "n"): 2, ("new", "n"): 2}
    ended = job("new", 1, unfinished=0)
    assert place([old, ended], nodes, {("old", "n"): 2, ("new", "n"): 2}, {}) == {("old", "n"): 2, ("new", "n"): 0}
    assert place([old], nodes, {("old", "n"): 2}, {}) == {("old", "n"): 4}


def test_room_that_is_free_goes_before_room_that_an_ended_job_still_holds():
    jobs = [job("ended", 0, unfinished=0), job("new", 1, unfinished=2)]
    granted = place(jobs, [node("n1"), node("n2")], {("ended", "n1"): 2}, {})
    assert granted == {("ended", "n1"): 0, ("new", "n2"): 2}


def test_room_that_is_free_goes_before_room_that_a_job_is_about_to_release():
    jobs = [job("shrinks", 0, at_most=2), job("new", 1, unfinished=2)]
    held = {("shrinks", "n1"): 2, ("shrinks", "n2"): 2}
    granted = place(jobs, [node("n1"), node("n2"), node("n3")], held, {})
    assert granted == {("shrinks", "n1"): 2, ("shrinks", "n2"): 0, ("new", "n3"): 2}


def test_the_poorest_job_gets_the_room_that_is_free_first():
    jobs = [job("a", 0), job("b", 1), job("ended", 2, unfinished=0)]
    held = {("a", "n1"): 1, ("ended", "n2"): 3}
    granted = place(jobs, [node("n1", 1), node("n2", 4)], held, {})
    assert granted == {("a", "n1"): 1, ("b", "n2"): 1, ("ended", "n2"): 0}


def test_room_that_an_ended_job_still_holds_goes_before_room_of_a_running_job():
    jobs = [job("ended", 0, unfinished=0), job("old", 1), job("new", 2, unfinished=2)]
    held = {("old", "n1"): 2, ("old", "n2"): 2, ("ended", "n3"): 2}
    granted = place(jobs, [node("n1"), node("n2"), node("n3")], held, {})
    assert granted == {("old", "n1"): 2, ("old", "n2"): 2, ("ended", "n3"): 0}


def test_idle_slots_stay_warm_while_nobody_else_wants_them():
    held = {("a", "n1"): 2, ("a", "n2"): 2}
    nodes = [node("n1"), node("n2")]
    assert place([job("a", unfinished=1)], nodes, held, {}) == held


def test_idle_slots_go_when_another_job_wants_them():
    held = {("a", "n1"): 4, ("b", "n2"): 4}
    jobs = [job("a", 0, unfinished=1), job("b", 1)]
    assert place(jobs, [node("n1", 4), node("n2", 4)], held, {}) == {("a", "n1"): 1, ("b", "n2"): 4}


def test_max_parallelism_counts_slots_that_are_not_released_yet():
    narrow = job("a", at_most=2)
    nodes = [node("n1"), node("n2")]
    assert place([narrow], nodes, {("a", "n1"): 2, ("a", "n2"): 1}, {}) == {("a", "n1"): 2, ("a", "n2"): 0}
    wanted_elsewhere = [narrow, job("b", 1, image="i")]
    pinned = [node("n1", 2, image="i"), node("n2", 2)]
    assert place(wanted_elsewhere, pinned, {("a", "n1"): 2}, {}) == {("a", "n1"): 1}
    assert place(wanted_elsewhere, pinned, {("a", "n1"): 1}, {}) == {("a", "n1"): 1, ("a", "n2"): 1, ("b", "n1"): 1}


def test_a_wide_job_reserves_one_node_and_small_jobs_shrink_there():
    nodes = [node("n1", 4), node("n2", 4)]
    small, wide = job("small", 0), job("wide", 1, cpu=4)
    assert place([small, wide], nodes, {("small", "n1"): 4, ("small", "n2"): 4}, {}) == {
        ("small", "n1"): 0,
        ("small", "n2"): 4,
    }
    half_released = {("small", "n1"): 1, ("small", "n2"): 4}
    assert place([small, wide], nodes, half_released, {}) == {("small", "n1"): 0, ("small", "n2"): 4}
    assert place([small, wide], nodes, {("small", "n2"): 4}, {}) == {("wide", "n1"): 1, ("small", "n2"): 4}


def test_a_wide_job_waits_for_the_node_with_most_room():
    nodes = [node("n1", 4), node("n2", 4)]
    held = {("small", "n1"): 4, ("small", "n2"): 2}
    jobs = [job("small", 0, at_most=6), job("wide", 1, cpu=4)]
    assert place(jobs, nodes, held, {}) == {("small", "n1"): 4, ("small", "n2"): 0}


def test_nobody_gives_way_for_more_room_than_is_needed():
    jobs = [job("narrow", 0), job("wide", 1, cpu=3), job("new", 2, cpu=3, at_most=1)]
    held = {("narrow", "n"): 6, ("wide", "n"): 2}
    assert place(jobs, [node("n", 12)], held, {}) == {("narrow", "n"): 6, ("wide", "n"): 1}


def test_an_earlier_wide_job_is_not_starved_by_later_small_ones():
    nodes = [node("n", 2)]
    jobs = [job("wide", 0, cpu=2), job("b", 1), job("c", 2)]
    assert place(jobs, nodes, {("b", "n"): 1, ("c", "n"): 1}, {}) == {("b", "n"): 0, ("c", "n"): 0}
    assert place(jobs, nodes, {("b", "n"): 1}, {}) == {("b", "n"): 0}
    assert place(jobs, nodes, NOTHING, {}) == {("wide", "n"): 1}


def test_a_wide_job_that_has_had_less_takes_the_last_slots_of_others_and_keeps_them_free():
    jobs = [job("a", 0, had=5), job("b", 1, had=5), job("wide", 2, cpu=2, had=4.999)]
    assert place(jobs, [node("n", 2)], {("a", "n"): 1, ("b", "n"): 1}, {}) == {("a", "n"): 0, ("b", "n"): 0}
    assert place(jobs, [node("n", 2)], {("a", "n"): 1}, {}) == {("a", "n"): 0}, "and b does not take what came free"
    assert place(jobs, [node("n", 2)], NOTHING, {}) == {("wide", "n"): 1}


def test_a_wide_job_that_has_had_more_gives_way():
    jobs = [job("a", 0, had=4), job("b", 1, had=4), job("wide", 2, cpu=2, had=5)]
    assert place(jobs, [node("n", 2)], {("wide", "n"): 1}, {}) == {("wide", "n"): 0}


def test_what_was_had_counts_like_cpus():
    nodes, held = [node("n", 8)], {("narrow", "n"): 1, ("wide", "n"): 1}
    assert place([job("narrow", 0), job("wide", 1, cpu=7, had=6 * SLACK)], nodes, held, {}) == {
        ("narrow", "n"): 1,
        ("wide", "n"): 0,
    }
    equal = [job("narrow", 0, had=6 * SLACK), job("wide", 1, cpu=7, had=6 * SLACK)]
    assert place(equal, nodes, held, {}) == held


def test_for_a_little_that_was_had_more_no_warm_process_ends():
    nodes, held = [node("n", 3)], {("a", "n"): 2, ("b", "n"): 1}
    assert place([job("a", 0, had=SLACK), job("b", 1)], nodes, held, {}) == held
    assert place([job("a", 0, had=SLACK + 0.1), job("b", 1)], nodes, held, {}) == {("a", "n"): 1, ("b", "n"): 1}


def test_a_job_that_is_kept_to_its_own_nodes_does_not_unsettle_the_others():
    """It has had little and always will; between the others less than the slack still counts for nothing."""
    nodes, held = [node("n", 3), node("own", 1, image="i")], {("a", "n"): 2, ("b", "n"): 1, ("kept", "own"): 1}
    jobs = [job("a", 0, had=20 + SLACK), job("b", 1, had=20), job("kept", 2, image="i")]
    assert place(jobs, nodes, held, {}) == held


def test_a_job_that_came_first_keeps_its_last_slot():
    jobs = [job("old", 0, cpu=2), job("new", 1)]
    assert place(jobs, [node("n", 2)], {("old", "n"): 1}, {}) == {("old", "n"): 1}


def test_lent_cpus_go_only_to_deeper_jobs():
    parent, other, nested = job("parent", 0), job("other", 1), job("nested", 2, depth=1)
    held, lent = {("parent", "n"): 2}, {"n": {0: 1}}
    assert place([parent], [node("n", 2)], held, lent) == {("parent", "n"): 2}
    assert place([parent, nested], [node("n", 2)], held, lent) == {("parent", "n"): 2, ("nested", "n"): 1}
    assert place([parent, other], [node("n", 2)], held, lent) == {("parent", "n"): 1}


def test_of_jobs_with_equally_few_cpus_the_deeper_one_goes_first():
    jobs = [job("first", 0), job("nested", 1, depth=1)]
    assert place(jobs, [node("n", 1)], NOTHING, {}) == {("nested", "n"): 1}


def test_cpus_lent_at_depth_1_do_not_go_to_another_job_of_depth_1():
    jobs = [job("top", 0, at_most=1), job("middle", 1, depth=1), job("rival", 2, depth=1), job("leaf", 3, depth=2)]
    held = {("top", "n"): 1, ("middle", "n"): 1}
    granted = place(jobs, [node("n", 1)], held, {"n": {0: 1, 1: 1}})
    assert granted == {("top", "n"): 1, ("middle", "n"): 1, ("leaf", "n"): 1}


def test_slots_of_calls_that_wait_for_nested_jobs_are_not_taken():
    parent, nested = job("parent", 0), job("nested", 1, depth=1)
    held = {("parent", "n"): 4, ("nested", "n"): 4}
    assert place([parent, nested, job("other", 2)], [node("n", 4)], held, {"n": {0: 4}}) == held


def test_ram_is_not_lent():
    parent, nested = job("parent", 0, ram=4 * GB), job("nested", 1, depth=1, ram=4 * GB)
    held = {("parent", "n"): 2}
    assert place([parent, nested], [node("n", 2, ram=8 * GB)], held, {"n": {0: 1}}) == {("parent", "n"): 1}
    assert place([parent, nested], [node("n", 2, ram=12 * GB)], held, {"n": {0: 1}}) == {**held, ("nested", "n"): 1}


def test_calls_that_resumed_stop_growth_and_take_nothing_away():
    jobs = [job("parent", 0), job("nested", 1, depth=1)]
    held = {("parent", "n"): 2, ("nested", "n"): 2}
    assert place(jobs, [node("n", 2)], held, {"n": {0: 1}}) == held


def test_ram_bounds_the_slots_only_of_jobs_that_reserve_it():
    nodes = [node("n", 8, ram=7 * GB)]
    assert place([job("a", ram=2 * GB)], nodes, NOTHING, {}) == {("a", "n"): 3}
    assert place([job("a")], nodes, NOTHING, {}) == {("a", "n"): 8}


def test_where_ram_is_short_only_a_job_that_reserves_it_gives_way():
    jobs = [job("plain", 0, unfinished=1), job("old", 1, ram=2 * GB), job("new", 2, ram=2 * GB)]
    held = {("plain", "n"): 4, ("old", "n"): 2}
    assert place(jobs, [node("n", 8, ram=4 * GB)], held, {}) == {("plain", "n"): 4, ("old", "n"): 1}


def test_beside_a_call_that_runs_alone_there_is_no_other_but_what_it_waits_for():
    whole, plain = dataclasses.replace(job("whole", 0), alone=True), job("plain", 1)
    assert place([whole, plain], [node("n", 8)], {("whole", "n"): 1}, {}) == {("whole", "n"): 1}
    assert place([whole, plain], [node("n", 8)], {("plain", "n"): 1}, {})[("plain", "n")] == 0
    nested = job("nested", 2, depth=1)
    held = {("whole", "n"): 1}
    assert place([whole, nested], [node("n", 8)], held, {"n": {0: 1}}) == {**held, ("nested", "n"): 8}


def test_slots_of_calls_that_turn_out_to_need_more_go_as_far_as_there_is_no_room():
    one = dataclasses.replace(job("a", ram=4 * GB), dynamic=True)
    assert settled([one], [node("x", 4)], {("a", "x"): 4}) == {("a", "x"): 2}
    assert settled([dataclasses.replace(one, alone=True)], [node("x", 4)], {("a", "x"): 4}) == {("a", "x"): 1}
    assert settled([job("a", ram=4 * GB)], [node("x", 4)], {("a", "x"): 4}) == {("a", "x"): 4}, (
        "what was reserved stays"
    )


def test_a_call_that_has_to_be_alone_gives_its_slot_back_until_the_others_are_gone():
    jobs = [dataclasses.replace(job("a", ram=8 * GB), dynamic=True, alone=True), job("b", 1, unfinished=2)]
    held = {("a", "x"): 1, ("b", "x"): 2}
    plan = place(jobs, [node("x", 4)], held, {})
    assert plan["a", "x"] == 0 and plan["b", "x"] < 2, "the poorer one waits for room that is kept for it"
    assert settled(jobs, [node("x", 4)], held) == {("a", "x"): 1}


def test_slots_on_a_node_that_cannot_run_the_job_any_more_are_used_where_it_can():
    one = dataclasses.replace(job("a", unfinished=2), barred=frozenset("x"))
    assert settled([one], [node("x"), node("y")], {("a", "x"): 2}) == {("a", "y"): 2}


def test_gpus_bound_the_slots_and_any_matches_every_kind():
    nodes = [node("n1", 8, gpus={"A100_40G": 2}), node("n2", 8, gpus={"H100_80G": 1}), node("n3", 8)]
    assert place([job("a", gpu="H100_80G")], nodes, NOTHING, {}) == {("a", "n2"): 1}
    assert place([job("a", gpu=ANY_GPU)], nodes, NOTHING, {}) == {("a", "n1"): 2, ("a", "n2"): 1}


def test_a_call_that_took_any_gpu_may_sit_on_each_kind():
    nodes = [node("n", 8, gpus={"A100_40G": 1, "H100_80G": 1})]
    jobs = [job("any", 0, gpu=ANY_GPU, at_most=1), job("h100", 1, gpu="H100_80G")]
    assert place(jobs, nodes, {("any", "n"): 1}, {}) == {("any", "n"): 1}


def test_gpus_that_several_nodes_of_a_machine_see_are_shared_out_and_none_twice():
    machine, apart = node("a", gpus={"T4": 4}), node("apart", gpus={"T4": 2})
    turned = [dataclasses.replace(machine, id=str(at), gpus=machine.gpus[at:] + machine.gpus[:at]) for at in range(3)]

    def numbers(used: Mapping[str, int]) -> list[str]:
        offers = share_out_gpus([*turned, apart], used)
        assert offers[-1] == apart
        return ["".join(gpu.uuid[-1] for gpu in offer.gpus) for offer in offers[:-1]]

    assert numbers({}) == ["03", "1", "2"]
    assert numbers({"2": 3}) == ["1", "", "230"]
    assert numbers({"1": 4}) == ["", "1230", ""]


def test_a_job_without_gpu_leaves_the_nodes_with_gpus_to_others():
    nodes = [node("n1", 2, gpus={"A100_40G": 1}), node("n2", 2)]
    assert place([job("a", unfinished=2)], nodes, NOTHING, {}) == {("a", "n2"): 2}


def test_a_job_with_an_image_runs_only_where_it_is():
    nodes = [node("n1"), node("n2", image="i"), node("n3", image="other")]
    assert place([job("a", image="i")], nodes, NOTHING, {}) == {("a", "n2"): 2}


def test_growth_goes_where_the_job_is_already():
    nodes = [node("n1", 4), node("n2", 4)]
    assert place([job("a", unfinished=2)], nodes, {("a", "n2"): 1}, {}) == {("a", "n2"): 2}


def test_slots_at_a_lost_node_count_nowhere():
    granted = place([job("a", at_most=2)], [node("n1")], {("a", "gone"): 2}, {})
    assert granted == {("a", "n1"): 2}


def test_an_unknown_job_in_held_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="who"):
        place([], [node("n")], {("who", "n"): 1}, {})


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        (job("a", cpu=4), True),
        (job("a", cpu=5), False),
        (job("a", ram=8 * GB), True),
        (job("a", ram=8 * GB + 1), False),
        (job("a", gpu="A100_40G"), True),
        (job("a", gpu=ANY_GPU), True),
        (job("a", gpu="A100_80G"), False),
        (job("a", image="i"), True),
        (job("a", image="j"), False),
    ],
)
def test_fits_looks_at_cpus_ram_gpu_and_image(asked: Demand, fitting: bool):
    assert fits(asked, node("n", 4, 8 * GB, {"A100_40G": 1}, "i")) is fitting


def test_no_gpu_is_not_any_gpu():
    assert not fits(job("a", gpu=ANY_GPU), node("n", gpus={"A100_40G": 0}))


def test_a_misfit_is_explained_in_words():
    assert explain_misfit(job("a", cpu=64), [node("n", 2, 25 * GB)]) == (
        "func_cpu=64",
        "1 node: 2 CPUs, 25 GB RAM, no GPU, no image",
    )
    asked = job("a", ram=64 * GB, gpu="H100_80G", image="i")
    nodes = [node("n1", 1, GB), node("n2", 8, 26 * GB - 1, {"A100_40G": 2}, "j"), node("n3", 1, GB)]
    assert explain_misfit(asked, nodes) == (
        "func_cpu=1, func_ram=64 GB, func_gpu='H100_80G', image='i'",
        "2 nodes: 1 CPU, 1 GB RAM, no GPU, no image; 1 node: 8 CPUs, 25.9 GB RAM, 2 A100_40G, image j",
    )


def test_a_misfit_among_many_kinds_of_nodes_stays_short():
    _, available = explain_misfit(job("a", cpu=64), [node(str(cpus), cpus) for cpus in range(1, 10)])
    assert available.count(";") == 5
    assert available.endswith("; 4 other nodes")


# properties -----------------------------------------------------------------------------------------------------------

KINDS = ("A100_40G", "H100_80G")
node_lists = st.lists(
    st.builds(
        lambda cpus, ram, gpus, image: (cpus, ram, gpus, image),
        st.integers(1, 6),
        st.integers(1, 8),
        st.dictionaries(st.sampled_from(KINDS), st.integers(0, 2)),
        st.sampled_from([None, None, "i"]),
    ),
    min_size=1,
    max_size=4,
).map(lambda offers: [node(f"n{at}", *offer) for at, offer in enumerate(offers)])
demands = st.builds(
    dict,
    cpu=st.integers(1, 4),
    unfinished=st.integers(0, 12),
    at_most=st.none() | st.integers(1, 6),
    depth=st.integers(0, 2),
    ram=st.none() | st.integers(1, 4),
    gpu=st.sampled_from([None, None, None, ANY_GPU, *KINDS]),
    image=st.sampled_from([None, None, None, "i"]),
)
job_lists = st.lists(demands, min_size=1, max_size=6).map(
    lambda found: [job(f"j{order}", order, **demand) for order, demand in enumerate(found)]
)


def used(slots: Slots, jobs: Sequence[Demand], offer: NodeOffer, depth: int) -> int:
    return sum(slots.get((job.job, offer.id), 0) * job.func_cpu for job in jobs if job.depth <= depth)


def room_left(slots: Slots, jobs: Sequence[Demand], offer: NodeOffer, lent: Lent) -> dict[str, int]:
    """Room by resource at a node, reckoned apart from place.py; what is negative is over capacity."""
    at = {job: slots.get((job.job, offer.id), 0) for job in jobs}
    room = {
        f"cpus at depth {limit}": offer.cpus
        + sum(cpus for depth, cpus in lent.get(offer.id, {}).items() if depth < limit)
        - used(slots, jobs, offer, limit)
        for limit in range(4)
    }
    room["ram"] = offer.ram_bytes - sum((job.func_ram_bytes or 0) * count for job, count in at.items())
    room["gpus"] = len(offer.gpus) - sum(count for job, count in at.items() if job.func_gpu)
    for kind in KINDS:
        room[kind] = offer.gpu_counts.get(kind, 0) - sum(count for job, count in at.items() if job.func_gpu == kind)
    return room


def over(slots: Slots, jobs: Sequence[Demand], nodes: Sequence[NodeOffer], lent: Lent) -> bool:
    return any(room < 0 for offer in nodes for room in room_left(slots, jobs, offer, lent).values())


def with_one_more(slots: Slots, who: Demand, offer: NodeOffer) -> Slots:
    return {**slots, (who.job, offer.id): slots.get((who.job, offer.id), 0) + 1}


def widest(held: Slots, granted: Slots) -> Slots:
    return {at: max(held.get(at, 0), granted.get(at, 0)) for at in held.keys() | granted.keys()}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Demand], list[NodeOffer], Slots, dict[str, dict[int, int]]]:
    """A state that can be: slots held within capacity, some of them waiting for nested jobs, other jobs than then."""
    nodes, jobs = draw(node_lists), draw(job_lists)
    shuffle = draw(st.randoms(use_true_random=False))
    jobs = [dataclasses.replace(each, had=draw(st.sampled_from([0.0, 0.0, 1.0, 7.5, 20.0]))) for each in jobs]
    held: Slots = {}
    lent: dict[str, dict[int, int]] = {}
    for _ in range(draw(st.integers(0, 25))):
        who, offer = shuffle.choice(jobs), shuffle.choice(nodes)
        grown = with_one_more(held, who, offer)
        fitting = who.image in (None, offer.image) and (not who.func_gpu or fits(who, offer))
        if fitting and not over(grown, jobs, nodes, lent):
            held = grown
            if shuffle.random() < 0.3:
                here = lent.setdefault(offer.id, {})
                here[who.depth] = here.get(who.depth, 0) + who.func_cpu
    return jobs, nodes, held, lent


@settings(max_examples=250, deadline=None)
@given(cases(), st.booleans())
def test_what_is_granted_is_safe_at_once(case, resumed):
    jobs, nodes, held, lent = case
    if resumed:
        lent = {}
    granted = place(jobs, nodes, held, lent)
    after = widest(held, granted)
    for offer in nodes:
        before = room_left(held, jobs, offer, lent)
        for resource, room in room_left(after, jobs, offer, lent).items():
            assert room >= 0 or room == before[resource]
    assert all(granted[at] >= 0 for at in granted)
    assert all(count or at in held for at, count in granted.items())
    assert held.keys() <= granted.keys()
    for each in jobs:
        grows = any(granted[at] > held.get(at, 0) for at in granted if at[0] == each.job)
        if grows:
            assert total(after, each.job) <= each.limit
        assert total(granted, each.job) <= max(each.limit, min(total(held, each.job), each.max_parallelism or 99))
        if not each.unfinished:
            assert total(granted, each.job) == 0
        assert all(fits(each, offer) for offer in nodes if granted.get((each.job, offer.id), 0) > 0)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_a_plan_that_was_carried_out_is_its_own_next_plan(case):
    jobs, nodes, held, lent = case
    assert place(jobs, nodes, held, lent) == place(list(reversed(jobs)), nodes, dict(reversed(held.items())), lent)
    granted = place(jobs, nodes, held, lent)
    if all(granted[at] >= count for at, count in held.items()):
        assert place(jobs, nodes, granted, lent) == granted
    settled(jobs, nodes, held, lent)


@settings(max_examples=250, deadline=None)
@given(cases())
def test_no_room_is_left_that_a_job_wants_unless_it_is_reserved(case):
    jobs, nodes, held, lent = case
    granted = place(jobs, nodes, held, lent)
    if any(granted[at] < count for at, count in held.items()):  # shrinking: somebody may wait for the room
        granted = settled(jobs, nodes, held, lent)
    for each in jobs:
        for offer in nodes:
            if total(granted, each.job) < each.limit and fits(each, offer):
                room = room_left(with_one_more(granted, each, offer), jobs, offer, lent)
                # a call on any GPU counts against each kind, so a node of two kinds may keep one free
                mixed = each.func_gpu and len(offer.gpu_counts) > 1
                assert mixed or min(room.values()) < 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(1, 8)), min_size=1, max_size=6),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_jobs_of_single_cpus_share_max_min_from_any_start(sizes, cpus, shuffle):
    nodes = [node(f"n{at}", count) for at, count in enumerate(cpus)]
    jobs = [job(f"j{at}", at, unfinished=count, at_most=most) for at, (count, most) in enumerate(sizes)]
    held: Slots = {}
    for offer in nodes:
        for _ in range(shuffle.randint(0, offer.cpus)):
            held = with_one_more(held, shuffle.choice(jobs), offer)
    slots = settled(jobs, nodes, held)
    for poor in jobs:
        if total(slots, poor.job) < poor.limit:
            assert all(total(slots, rich.job) <= total(slots, poor.job) + 1 for rich in jobs)


@settings(max_examples=40, deadline=None)
@given(node_lists, st.lists(demands, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_every_job_ends_while_later_small_jobs_keep_arriving(nodes, wanted, shuffle):
    jobs = {f"j{order}": job(f"j{order}", order, **demand) for order, demand in enumerate(wanted)}
    jobs = {name: each for name, each in jobs.items() if any(fits(each, offer) for offer in nodes)}
    waited_for = set(jobs)
    unfinished = {name: each.unfinished for name, each in jobs.items()}
    held: Slots = {}
    for round_number in range(1500):
        if not any(unfinished[name] for name in waited_for):
            return
        jobs[f"s{round_number}"] = job(f"s{round_number}", 100 + round_number, unfinished=shuffle.randint(1, 8))
        unfinished[f"s{round_number}"] = jobs[f"s{round_number}"].unfinished
        jobs = {name: each for name, each in jobs.items() if unfinished[name] or total(held, name)}
        if len(jobs) > 12:  # so many small jobs wait that one more makes no difference
            del jobs[f"s{round_number}"]
        held, unfinished = one_round(jobs, nodes, held, unfinished, shuffle)
    raise AssertionError(f"starved: {[name for name in waited_for if unfinished[name]]}")


def one_round(
    jobs: Mapping[str, Demand],
    nodes: Sequence[NodeOffer],
    held: Slots,
    unfinished: dict[str, int],
    shuffle: random.Random,
) -> tuple[Slots, dict[str, int]]:
    """Carry out what `place` says, then end some calls at random; a slot is released only when its call ends."""
    left = dict(unfinished)
    asked = [dataclasses.replace(each, unfinished=left[each.job]) for each in jobs.values()]
    granted = place(asked, nodes, held, {})
    now = {}
    for at, count in widest(held, granted).items():
        ends = sum(shuffle.random() < 0.4 for _ in range(count))
        left[at[0]] -= min(left[at[0]], ends)
        now[at] = count - min(ends, count - granted.get(at, 0))
    return {at: count for at, count in now.items() if count}, left
