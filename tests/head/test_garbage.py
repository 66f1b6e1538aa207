"""What stays is not gone through again by Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from burla.head.garbage import Garbage


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


class Node:
    """Something that refers to itself, as Dask's parts of a worker do to each other."""

    alive = 0

    def __init__(self) -> None:
        self.itself = self
        Node.alive += 1

    def __del__(self) -> None:
        Node.alive -= 1


def test_what_there_is_is_set_apart_once_while_nothing_runs_and_what_has_left_is_collected() -> None:
    """Not while a job runs, and not again for the same nodes."""
    garbage, before = Garbage(), gc.get_freeze_count()
    node = Node()
    garbage.tick(frozenset({"a"}), idle=False)
    assert gc.get_freeze_count() == before
    garbage.tick(frozenset({"a"}), idle=True)
    apart = gc.get_freeze_count()
    assert apart > before
    kept = [[] for _ in range(1000)]
    garbage.tick(frozenset({"a"}), idle=True)
    assert gc.get_freeze_count() <= apart and len(kept) == 1000
    del node
    gc.collect()
    assert Node.alive == 1  # nobody looks there
    garbage.tick(frozenset(), idle=True)
    assert Node.alive == 0
