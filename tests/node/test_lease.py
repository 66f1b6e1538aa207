"""A long call does not hold up the calls behind it: the node takes them back from its child, and none runs twice."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections import Counter

import pytest

from burla import remote_parallel_map, serialize
from burla.node import shared
from burla.node.children import Nursery
from burla.protocol import CallContext, Piece, Prepare, Report, Run, Variables
from tests.conftest import Ledger

COUNT = 20_000  # of calls of some 20 µs: a time box holds thousands of them


@pytest.mark.parametrize("long", [5, COUNT // 3, COUNT - 40], ids=["near the beginning", "midway", "near the end"])
def test_calls_behind_a_long_one_are_done_while_it_runs(ledger: Ledger, long: int):
    write, path = ledger.writer(), str(ledger.path)

    def count_the_others(index: int) -> int:
        import time

        if index != long:
            write(index)
            return -1
        until, others = time.monotonic() + 15, 0
        while others < COUNT - 1 and time.monotonic() < until:
            time.sleep(0.05)
            with open(path) as file:
                others = sum(1 for _ in file)
        return others

    results = remote_parallel_map(count_the_others, range(COUNT))
    assert results[long] == COUNT - 1, "so many of the others had run before the long one ended"
    assert Counter(ledger.entries()) == Counter(str(index) for index in range(COUNT) if index != long)


def test_long_calls_in_every_slot_in_turn_make_no_call_run_twice(ledger: Ledger):
    write = ledger.writer()

    def now_and_then_long(index: int) -> int:
        import random
        import time

        write(index)
        if random.Random(index).random() < 0.004:
            time.sleep(0.09 + 0.01 * (index % 7))  # around the moment in which calls are taken back
        return -index

    assert remote_parallel_map(now_and_then_long, range(10_000)) == [-index for index in range(10_000)]
    assert Counter(map(int, ledger.entries())) == Counter(range(10_000))


def test_a_child_starts_no_call_from_the_limit_on(ledger: Ledger):
    """The node sets it when calls are overdue: by then a child that stood still may not even have begun."""
    function = serialize.dump_function(ledger.writer())

    async def run_with_limit(limit: int) -> Report:
        nursery = Nursery(ready=1)
        await nursery.start()
        try:
            child = await nursery.clean_child()
            context = CallContext(os.getcwd(), dict(os.environ), ())
            child.send(Prepare("job", 0, context, Variables(), (), function))
            child.memory[shared.LIMIT] = limit
            child.send(Run((Piece(0, False, pickle.dumps(list(range(9))), 0, 9),)))
            return await child.receive()
        finally:
            nursery.close()

    report = asyncio.run(run_with_limit(4))
    assert report.calls == 4 and [(one.start, one.stop) for one in report.results] == [(0, 4)]
    assert ledger.entries() == ["0", "1", "2", "3"]
