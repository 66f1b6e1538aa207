"""What jobs use of nodes, what that costs, and where they are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from burla.channel import Channel
from burla.errors import LimitReached, NoCompatibleNodes
from burla.head.budgets import SAVE_S, Budgets, Spent, check_price, reached
from burla.head.head import Head
from burla.head.members import NodeState, Session
from burla.head.replay import replay
from burla.head.running import RunningJob
from burla.head.store import Store
from burla.head.vault import Vault
from burla.protocol import Block, JobState, NodeOffer, Notice
from tests.head.samples import in_a_loop, opened, spec


def test_each_node_counts_whole_and_one_without_a_price_costs_nothing_that_is_known():
    spent = Spent().more(1800, [2.0, 4.0, None])
    assert spent == Spent(1800, 3 * 1800, 3.0)
    assert spent.more(3600, []) == spent, "a job that waits uses nothing"
    assert spent.more(3600, [None]) == Spent(5400, 9000, 3.0)
    assert Spent().more(60, [None, None]) == Spent(60, 120, None)


def test_a_job_comes_to_a_limit_when_it_has_run_so_long_or_cost_so_much():
    timed, priced, free = (
        spec(max_run_s=60.0, max_cost_usd=None),
        spec(max_run_s=None, max_cost_usd=2.0),
        spec(max_run_s=None, max_cost_usd=None),
    )
    assert reached(timed, Spent(59.9, 10**6, 10**6)) is None
    assert reached(priced, Spent(10**6, 10**6, 1.99)) is None and reached(priced, Spent(10**6, 10**6, None)) is None
    assert reached(free, Spent(10**6, 10**6, 10**6)) is None
    for one, spent, limit in ((timed, Spent(60, 60), "max_minutes"), (priced, Spent(60, 60, 2.0), "max_cost_usd")):
        error = reached(one, spent)
        assert isinstance(error, LimitReached) and error.limit == limit and f"{limit}=" in str(error)


def test_a_limit_in_money_needs_a_node_that_says_what_it_costs():
    free, priced = NodeOffer("f", "f", 1, 1), NodeOffer("p", "p", 1, 1, usd_per_hour=0.5)
    for offers in ([priced], [free, priced]):
        check_price(spec(max_cost_usd=1.0), offers)
    check_price(spec(max_cost_usd=None), [free])
    with pytest.raises(NoCompatibleNodes, match="max_cost_usd=1: no node of this cluster says what it costs"):
        check_price(spec(max_cost_usd=1.0), [free])


# at the head, which has real jobs and a store, and nodes that only say what they offer


class _Peer:
    def post(self, message: object) -> None:
        pass


def _head(store: Store, **prices: float | None) -> Head:
    head = Head(store, cast(Any, None), Vault(None))
    head.dispatch.awaited.add("another")  # so that it places nothing itself
    for name, price in prices.items():
        offer = NodeOffer(name, name, 8, 10**12, usd_per_hour=price)
        head.dispatch.nodes[name] = NodeState(offer, cast(Channel, _Peer()), "", 0.0)
    return head


async def _running(head: Head, job_id: str, *nodes: str, **fields: Any) -> RunningJob:
    """A job that holds a slot on each of these nodes."""
    anything = dict.fromkeys(("parent", "func_gpu", "image", "max_run_s", "max_cost_usd"))
    usual: dict[str, Any] = {**anything, "depth": 0, "grow": False}
    job = head.new_job(spec(job_id, **usual | fields), Session("session", 0.0))
    head.add_inputs(job, (Block(0, 2, False, b"inputs"),), last=True)
    await head.store.committed()
    job.granted.update(dict.fromkeys(nodes, 1))
    return job


@in_a_loop
async def test_a_job_is_charged_for_all_nodes_that_it_and_the_jobs_of_its_calls_use(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        head = _head(store, a=1.0, b=2.0, c=None)
        above = await _running(head, "above", "a", "b")
        below = await _running(head, "below", "b", "c", parent="above", depth=1)
        other = await _running(head, "other", "a")
        waits = await _running(head, "waits")
        budgets = Budgets(head, 100.0)
        budgets.tick(100.0 + 3600)
        used = {job.spec.id: (job.spent.node_s / 3600, job.spent.usd) for job in (above, below, other, waits)}
        assert used == {"above": (3, 3.0), "below": (2, 2.0), "other": (1, 1.0), "waits": (0, None)}
        assert (above.snapshot().node_s, above.snapshot().usd) == (3 * 3600, 3.0)


@in_a_loop
async def test_a_job_at_its_limit_is_stopped_and_others_go_on(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        head = _head(store, a=3600.0, b=None)
        timed = await _running(head, "timed", "a", max_run_s=5.0)
        priced = await _running(head, "priced", "a", "b", max_cost_usd=7.0)
        free = await _running(head, "free", "a")
        budgets = Budgets(head, 0.0)
        for now, states in ((4.9, "www"), (6.9, "sww"), (7.1, "ssw"), (10**6, "ssw")):
            budgets.tick(now)
            found = "".join(job.state.value[0] for job in (timed, priced, free))
            assert found == states, now
        await store.committed()
        stored = {one.spec.id: one.status for one in await store.jobs()}
        assert stored["timed"].state is JobState.STOPPING and b"LimitReached" in (stored["timed"].error or b"")
        events, _ = await store.events(priced.number, 0)
        assert events == [Notice("node b does not say what it costs: it counts nothing for max_cost_usd")]


@in_a_loop
async def test_what_a_job_has_used_survives_the_head(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        head = _head(store, a=3600.0)
        await _running(head, "job", "a", max_run_s=3 * SAVE_S)
        budgets = Budgets(head, 0.0)
        for now in (SAVE_S, 2 * SAVE_S, 2 * SAVE_S + 1):
            budgets.tick(now)
        await store.committed()
    async with opened(tmp_path / "store") as store:
        head = _head(store, a=3600.0)
        await replay(head, nodes_survived=False)
        job = head.jobs["job"]
        assert job.spent == Spent(2 * SAVE_S, 2 * SAVE_S, 2 * SAVE_S)
        job.granted["a"] = 1
        budgets = Budgets(head, 0.0)
        budgets.tick(SAVE_S)
        assert job.state is JobState.STOPPING
