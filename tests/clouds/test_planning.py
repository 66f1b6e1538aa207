"""Which machines a job gets, as a pure decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burla.clusters import catalog, planning
from burla.clusters.planning import Order, lacking, plan, slots_at, slots_on
from burla.options import GB, GPUS
from burla.protocol import Gpu, Need, NodeOffer

AWS = catalog.machines("aws")
USUAL = catalog.find("aws", "m7i.xlarge")
NODE = NodeOffer("id", "name", 4, 16 * GB)


def _orders(need: Need, slots: int = 0, cpus_left: int = 2560) -> dict[str, int]:
    """Return what is booted beside so many slots."""
    capacity = planning.capacity(AWS, need, USUAL)
    return {one.machine.name: one.count for one in plan(lacking(need, slots), capacity, cpus_left)}


@pytest.mark.parametrize(
    ("need", "orders"),
    [
        (Need(unfinished=1), {"c7i.large": 1}),
        (Need(unfinished=3), {"m7i.large": 1, "c7i.large": 1}),
        (Need(unfinished=100), {"m7i.8xlarge": 3, "m7i.xlarge": 1}),
        (Need(unfinished=100, max_parallelism=6), {"m7i.xlarge": 1, "m7i.large": 1}),
        (Need(unfinished=2, func_cpu=3), {"m7i.2xlarge": 1}),
        (Need(unfinished=2, func_cpu=40), {"m7i.12xlarge": 2}),
        (Need(unfinished=8, func_ram_bytes=GB), {"c7i.2xlarge": 1}),
        (Need(unfinished=2, func_ram_bytes=14 * GB), {"r7i.xlarge": 1}),
        (Need(unfinished=1, func_ram_bytes=100 * GB), {"r7i.4xlarge": 1}),
        (Need(unfinished=2, peak_bytes=6 * GB), {"r7i.large": 1}),
        (Need(unfinished=3, func_gpu="T4"), {"g4dn.xlarge": 3}),
        (Need(unfinished=3, func_gpu="T4", func_cpu=8), {"g4dn.2xlarge": 3}),
        (Need(unfinished=9, func_gpu="A100_40G"), {"p4d.24xlarge": 2}),
        (Need(unfinished=0), {}),
        (Need(unfinished=1, func_cpu=1000), {}),
    ],
)
def test_calls_get_the_machines_that_cost_least_for_what_is_used(need: Need, orders: dict[str, int]):
    assert _orders(need) == orders


def test_what_the_cluster_has_and_what_boots_is_not_booted_again():
    need = Need(unfinished=10)
    assert _orders(need, slots=10) == {} and _orders(need, slots=6) == {"m7i.xlarge": 1}


def test_calls_that_are_short_need_fewer_machines_or_none():
    """With 10 slots, in the time that a machine takes to boot, 1,510 calls of a second are done."""
    short = Need(unfinished=1500, call_s=1.0)
    assert lacking(short, 10) == 0
    assert lacking(replace(short, unfinished=1511), 10) == 0  # one call is not worth a machine
    assert lacking(replace(short, unfinished=3310), 10) == 1800 / planning.WORTH_S - 10
    assert lacking(replace(short, unfinished=10_000), 10) < lacking(replace(short, unfinished=20_000), 10) < 10_000
    assert lacking(replace(short, call_s=None), 10) == 1490
    assert lacking(Need(unfinished=10, call_s=1000.0), 4) == 6  # long ones: each of those that wait has its own
    assert lacking(Need(unfinished=10, call_s=1000.0, max_parallelism=5), 4) == 1


def test_as_long_as_nobody_knows_how_long_calls_take_a_first_step_is_made():
    """A million calls of a millisecond need no machine; if none is done after a while, they are long."""
    need = Need(unfinished=1_000_000)
    assert lacking(need, 0, running_s=0) == planning.FIRST_SLOTS
    assert lacking(need, 200, running_s=planning.LONG_S - 1) == planning.FIRST_SLOTS - 200
    assert lacking(need, planning.FIRST_SLOTS, running_s=0) == 0
    assert lacking(need, 200, running_s=planning.LONG_S) == lacking(need, 200) == 999_800
    assert lacking(replace(need, call_s=0.001), 200, running_s=1) == 0
    assert lacking(replace(need, max_parallelism=50), 0, running_s=0) == 50
    assert lacking(replace(need, call_s=100.0), 200, running_s=1) > 10_000


def test_the_limit_of_cpus_is_kept_with_smaller_machines():
    assert _orders(Need(unfinished=100), cpus_left=37) == {"m7i.8xlarge": 1, "m7i.xlarge": 1}
    assert _orders(Need(unfinished=100), cpus_left=0) == {}


def test_what_takes_the_place_of_a_refused_machine_is_not_much_dearer():
    """A call of two CPUs does not get a machine of 192; eight that fill one do."""
    need, refused = Need(unfinished=1, func_cpu=2), set[str]()
    while orders := plan(1, planning.capacity(AWS, need, USUAL), 2560, refused):
        [order] = orders
        assert order.count == 1 and order.machine.usd_per_hour <= 4 * 0.1008
        refused.add(order.machine.name)
    assert {"m7i.large", "r7i.large", "m7i.xlarge"} < refused and len(refused) < 10
    h100 = Need(unfinished=8, func_gpu="H100_80G")
    capacity = planning.capacity(AWS, h100, USUAL)
    assert plan(7, capacity, 2560) == [Order(catalog.find("aws", "p5.4xlarge"), 7)]
    assert plan(8, capacity, 2560, {"p5.4xlarge"}) == [Order(catalog.find("aws", "p5.48xlarge"), 1)]
    assert plan(1, capacity, 2560, {"p5.4xlarge"}) == []


def test_a_node_has_room_for_a_call_of_its_image_its_gpu_and_its_memory():
    gpus = tuple(Gpu(f"GPU-{number}", name, 16 * GB) for number, name in enumerate(["T4", "T4", "L4"]))
    node = replace(NODE, gpus=gpus, image="python:3.11-slim")
    assert slots_at(node, Need(func_cpu=2)) == 2
    assert slots_at(node, Need(func_ram_bytes=9 * GB)) == 1
    assert [slots_at(node, Need(func_gpu=name)) for name in ("T4", "L4", "any", "H100_80G")] == [2, 1, 3, 0]
    assert [slots_at(node, Need(image=name)) for name in ("python:3.11-slim", "other:1")] == [4, 0]


NEEDS = st.builds(
    Need,
    func_cpu=st.integers(1, 100),
    func_ram_bytes=st.none() | st.integers(1, 900).map(lambda gb: gb * GB),
    func_gpu=st.none() | st.sampled_from(sorted(set(GPUS.values()))),
    max_parallelism=st.none() | st.integers(1, 3000),
    unfinished=st.integers(0, 10_000),
    call_s=st.none() | st.floats(0.001, 100_000),
    peak_bytes=st.integers(0, 50 * GB),
)


@given(NEEDS, st.integers(0, 3000), st.integers(0, 5000))
def test_no_plan_wastes_a_machine_or_passes_a_limit(need: Need, slots: int, cpus_left: int):
    """Every machine runs calls, without any of them some would wait, and a higher limit never gets fewer slots."""
    capacity = planning.capacity(AWS, need, USUAL)
    want = lacking(need, slots)
    limit = min(need.unfinished, need.max_parallelism or need.unfinished)
    assert want == 0 or want + slots <= limit
    orders = plan(want, capacity, cpus_left)
    assert sum(order.cpus for order in orders) <= cpus_left
    assert all(order.count > 0 and order.machine in capacity for order in orders)
    rooms = [
        slots_on(one.machine, need, planning.room_per_call(need, USUAL)) for one in orders for _ in range(one.count)
    ]
    assert all(room > 0 for room in rooms)
    if rooms:
        assert sum(rooms) - min(rooms) < want
    whole = plan(want, capacity, 10**9)
    assert sum(one.count * capacity[one.machine] for one in whole) >= want or not capacity
    assert _price(whole) <= _cheapest_of_one_kind(want, need) * 1.000001


def _price(orders: list[Order]) -> float:
    return sum(order.usd_per_hour for order in orders)


def _cheapest_of_one_kind(want: int, need: Need) -> float:
    prices = (-(-want // room) * one.usd_per_hour for one, room in planning.capacity(AWS, need, USUAL).items())
    return min(prices, default=0.0)
