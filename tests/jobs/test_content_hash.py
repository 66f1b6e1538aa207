"""Which inputs count as the same for a resumed job: equal content, whatever process made them."""

from __future__ import annotations

import dataclasses
import datetime
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from burla import serialize_inputs
from burla.errors import StoreDamaged
from burla.protocol import Block, Payload
from burla.resume import Comparison, content_hash
from tests.conftest import Scripts


@dataclasses.dataclass
class Point:
    x: float
    tags: frozenset[str] = frozenset()


def cycle() -> list[Any]:
    one: list[Any] = [1, 2]
    one.append(one)
    return one


def shared(levels: int) -> list[Any]:
    """Return a value of few objects that is very long when each is written as often as it is referred to."""
    one: list[Any] = ["x"]
    for _ in range(levels):
        one = [one, one]
    return one


VALUES: dict[str, Callable[[], Any]] = {
    "text": lambda: "é" * 3,
    "nested": lambda: {"a": [1, (2.5, None)], "b": b"x"},
    "set": lambda: {f"word {i}" for i in range(50)},
    "set of sets": lambda: {frozenset({f"{i}", f"{i + 1}"}) for i in range(20)},
    "object": lambda: Point(1.5, frozenset({"one", "two", "three"})),
    "array": lambda: np.arange(12.0).reshape(3, 4),
    "table": lambda: pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "date": lambda: datetime.date(2024, 2, 29),
    "class": lambda: Point,
    "function": lambda: datetime.timedelta,
    "lambda": lambda: lambda x: x + 1,
    "contains itself": cycle,
    "deeply shared": lambda: shared(40),
}


@pytest.mark.parametrize("name", VALUES)
def test_equal_values_have_one_hash_also_after_a_journey(name: str):
    make = VALUES[name]
    first = content_hash(make())
    assert content_hash(make()) == first
    if name not in ("class", "function", "lambda"):
        assert content_hash(pickle.loads(pickle.dumps(make()))) == first


DIFFERENT = [
    1, 2, True, 1.0, "1", b"1", None, (1,), [1], {1}, frozenset({1}), {"a": 1}, {"a": 2}, {"b": 1},
    float("inf"), -0.0, 0.0, Point(1.0), Point(2.0), Point, datetime.date, datetime.datetime,
    np.arange(3), np.arange(4), np.arange(3.0), lambda x: x, lambda x: -x, lambda x, y=1: x, lambda x, y=2: x,
]  # fmt: skip


def test_different_values_have_different_hashes():
    assert len({content_hash(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_what_a_lambda_has_closed_over_counts():
    def adder(n: int) -> Callable[[int], int]:
        return lambda x: x + n

    assert content_hash(adder(1)) == content_hash(adder(1)) != content_hash(adder(2))


def test_which_equal_objects_are_one_does_not_count():
    one, other = ["x"], ["x"]
    assert content_hash([one, one]) == content_hash([one, other])


def test_a_hash_is_the_same_in_every_process(scripts: Scripts):
    program = """
        import dataclasses, sys
        from burla.resume import content_hash

        @dataclasses.dataclass
        class Word:
            text: str

        def shout(x):
            return str(x).upper() + "!"

        words = {f"word {i}" for i in range(100)}
        print(content_hash([words, Word("a"), shout, lambda x: x in {"a", "b", "c"}, {"k": words}]).hex())
    """
    import os

    seen = set()
    for seed in ("1", "2", "3"):
        done = scripts.run(program, env=os.environ | {"PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


# comparing ------------------------------------------------------------------------------------------------------------


def compare(old: list[Block], new: list[Block], broken: range = range(0)) -> tuple[tuple[int, int], ...]:
    """Return the ranges that are the same; `broken`: input indices whose blocks the store cannot read."""

    def pages(index: int) -> tuple[Block, ...]:
        if index in broken:
            raise StoreDamaged("gone", start=broken.start, stop=broken.stop)
        return tuple(block for block in old if block.first + block.count > index)[:2]

    def fetch(payload: Payload) -> bytes:
        assert isinstance(payload, bytes)
        return payload

    comparison = Comparison("old", sum(block.count for block in old), pages, fetch)
    assert list(comparison.watch(new)) == new
    return comparison.resume().ranges


def pack(values: Any) -> list[Block]:
    return list(serialize_inputs.pack_inputs(values))


def test_equal_inputs_are_found_whatever_blocks_they_are_in():
    values = [{"n": i, "tags": {str(i), "all"}} for i in range(3000)]
    in_one, in_values = pack(list(range(20_000))), pack(iter(range(20_000)))
    assert compare(in_one, in_values) == ((0, 20_000),)
    assert compare(pack(values), pack(iter(values))) == ((0, 3000),)
    assert compare(pack(values[:10]), pack(values)) == ((0, 10),)
    assert compare(pack(values), pack(values[:10])) == ((0, 10),)


def test_only_the_inputs_that_changed_are_different():
    old = [f"text {i}" for i in range(10_000)]
    new = [*old[:100], "other", *old[101:5000], *old[5001:]]
    assert compare(pack(old), pack(new)) == ((0, 100), (101, 5000))


def test_what_cannot_be_read_or_loaded_any_more_is_different():
    old = pack(["x" * 40_000 for _ in range(6)])  # a block each
    new = pack(["x" * 40_000 for _ in range(6)])
    assert [block.count for block in old] == [1] * 6
    assert compare(old, new, broken=range(2, 4)) == ((0, 2), (4, 6))
    nonsense = [dataclasses.replace(old[0], each=True, payload=pickle.dumps([b"no pickle"])), *old[1:]]
    assert compare(nonsense, new) == ((1, 6),)
