"""What a head does not do too often, because with many nodes it is work."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from burla.head import dispatch
from burla.head.head import Head
from burla.head.vault import Vault
from tests.head.samples import in_a_loop, opened


class _Clock:
    """A clock that stands still, but for plans: each takes `plan_s`."""

    def __init__(self, plan_s: float):
        self.now, self.plan_s, self.plans = 100.0, plan_s, 0

    def monotonic(self) -> float:
        return self.now

    def place(self, *_: object) -> dict[tuple[str, str], int]:
        self.plans += 1
        self.now += self.plan_s
        return {}


@pytest.mark.parametrize(("plan_s", "at_once"), [(0.0002, True), (0.002, False)])
@in_a_loop
async def test_a_plan_that_takes_long_is_not_made_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan_s: float, at_once: bool
):
    """One that takes no time is; the other as soon as it has waited for twenty times as long."""
    clock = _Clock(plan_s)
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=clock.monotonic))
    monkeypatch.setattr(dispatch, "place", SimpleNamespace(place=clock.place))
    async with opened(tmp_path) as store:
        head = Head(store, cast(Any, None), Vault(None))
        for _ in range(2):
            head.dispatch.replace()
            head.dispatch.replace()  # of one moment: one plan
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert clock.plans == (2 if at_once else 1)
        await asyncio.sleep(0.1)
        assert clock.plans == 2


@pytest.mark.parametrize(
    ("want", "waiting", "nodes", "gets"),
    [
        (1000, 10, 1, 1000),  # a node alone: all that it wants
        (100, 100_000, 10, 100),
        (100, 1000, 10, 50),
        (100, 30, 10, 2),  # the rest is for the others
        (1, 5, 10, 1),
        (1_000_000, 1000, 10, 20_000),  # of calls so short that all of them are hardly worth a message
    ],
)
def test_a_node_leaves_work_for_the_others_unless_that_is_hardly_any(want: int, waiting: int, nodes: int, gets: int):
    assert dispatch.share(want, waiting, nodes) == gets
