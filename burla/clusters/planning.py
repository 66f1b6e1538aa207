"""Decides which machines are booted for a job beside what its cluster has: pure.

To finish soonest without waste: a slot for every input that would still wait when a machine that is ordered now comes,
but none that would then have less than a minute to do. How long calls take counts as soon as it is known. Before, a
first step is made, and where none is done after a while, they are taken to be long. Calls are packed: of the machines
on which one fits, those that cost least for what is used.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from burla.clusters.catalog import Machine
from burla.protocol import ANY_GPU, Need, NodeOffer

BOOT_S = 150.0  # until a machine that is ordered runs calls
WORTH_S = 60.0  # work that a slot must find then
FIRST_SLOTS = 256  # at most, as long as nobody knows whether calls are short
LONG_S = 30.0  # where calls have run for so long and none is done, they are long
MOST_CPUS = 32  # of a machine, if the price is the same: larger ones are seldom to be had, and idle in larger pieces
DEAR = 4.0
MARGIN = 1.1  # the next call may be a little larger than the largest so far
RAM_PER_CPU = 3_900_000_000  # of a machine that the catalogue does not have


@dataclass(frozen=True, slots=True)
class Order:
    """Some machines of one kind."""

    machine: Machine
    count: int

    @property
    def cpus(self) -> int:
        return self.count * self.machine.cpus

    @property
    def usd_per_hour(self) -> float:
        return self.count * self.machine.usd_per_hour

    def __str__(self) -> str:
        gpus = f", {self.count * self.machine.gpus} {self.machine.gpu}" if self.machine.gpus else ""
        return f"{self.count} × {self.machine.name} ({self.cpus} CPUs{gpus}, ${self.usd_per_hour:,.2f} an hour)"


def room_per_call(need: Need, usual: Machine | None) -> int:
    """Return the memory in bytes that a call gets on a new machine; `usual`: what the cluster's own nodes are.

    A call that says nothing of memory gets as much as its CPUs have on such a node, and what one has been seen to need.
    """
    if need.func_ram_bytes is not None:
        return need.func_ram_bytes
    if need.func_gpu is not None:
        return int(MARGIN * need.peak_bytes)
    per_cpu = usual.usable_ram_bytes // usual.cpus if usual is not None else RAM_PER_CPU
    return max(need.func_cpu * per_cpu, int(MARGIN * need.peak_bytes))


def slots_at(node: NodeOffer, need: Need) -> int:
    """Return how many calls a node has room for."""
    if need.image is not None and need.image != node.image:
        return 0
    slots = node.cpus // need.func_cpu
    if need.func_ram_bytes:
        slots = min(slots, node.ram_bytes // need.func_ram_bytes)
    if need.func_gpu is not None:
        slots = min(slots, sum(need.func_gpu in (gpu.name, ANY_GPU) for gpu in node.gpus))
    return slots


def slots_on(machine: Machine, need: Need, call_bytes: int) -> int:
    """Return how many calls a machine will have room for."""
    if not machine.fits(need.func_cpu, call_bytes, need.func_gpu):
        return 0
    slots = machine.cpus // need.func_cpu
    if call_bytes:
        slots = min(slots, machine.usable_ram_bytes // call_bytes)
    return min(slots, machine.gpus) if need.func_gpu is not None else slots


def lacking(need: Need, slots: int, running_s: float = math.inf) -> int:
    """Return how many more calls at once the job is worth, which has so many slots, or soon will.

    `running_s`: for how long there has been room for calls.
    """
    limit = min(need.unfinished, need.max_parallelism or need.unfinished)
    if need.call_s is None:
        return max(0, min(limit, FIRST_SLOTS if running_s < LONG_S else limit) - slots)
    begun = slots * (math.floor(BOOT_S / need.call_s) + 1)  # by the time that a new machine is there
    waiting = max(0, need.unfinished - begun)
    worth = math.ceil(waiting * need.call_s / WORTH_S) - slots
    return max(0, min(waiting, worth, limit - slots))


def capacity(machines: Iterable[Machine], need: Need, usual: Machine | None) -> dict[Machine, int]:
    """Return the machines that come into question, and how many calls each has room for."""
    call_bytes = room_per_call(need, usual)
    fit = {one: slots_on(one, need, call_bytes) for one in machines if bool(one.gpus) == (need.func_gpu is not None)}
    return {one: slots for one, slots in fit.items() if slots}


def plan(slots: int, capacity: Mapping[Machine, int], cpus_left: int, refused: Collection[str] = ()) -> list[Order]:
    """Return orders for so many calls at once, or as many as the CPUs that are left allow.

    `refused`: names of machines that are not to be had; what takes their place costs at most `DEAR` times as much.
    """
    orders: Counter[Machine] = Counter()
    while slots > 0:
        used = {one: min(room, slots) for one, room in capacity.items()}
        prices = {one: round(one.usd_per_hour / used[one], 9) for one in used}  # of what is used
        limit = DEAR * min(prices.values(), default=0.0)
        left = [one for one in used if one.name not in refused and one.cpus <= cpus_left and prices[one] <= limit]
        if not left:
            break
        best = min(left, key=lambda one: (prices[one], max(one.cpus, MOST_CPUS), -used[one], one.name))
        count = min(slots // used[best], cpus_left // best.cpus)
        orders[best] += count
        slots -= count * used[best]
        cpus_left -= count * best.cpus
    return [Order(machine, count) for machine, count in orders.items()]
