"""A job's journal: what is shown, what is in memory, and what is read from the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from burla import outputs
from burla.head import journal, limits
from burla.head.journal import Journal
from burla.head.store import Store
from burla.protocol import MESSAGE_BYTES, Ended, Event, Failure, JobState, Kind, Notice, Output, Results
from tests.head.samples import content, in_a_loop, opened, spec

LONG_S = 10.0


def out(index: int, size_bytes: int = 100) -> Output:
    return Output(index, 1, content(size_bytes, index))


async def begun(store: Store) -> Journal:
    return Journal(store, store.add_job(spec(), "session", 1.5, True))


def with_journal(test: Callable[[Journal, Store], Awaitable[None]]) -> Callable[[Path], None]:
    @in_a_loop
    async def run(tmp_path: Path) -> None:
        async with opened(tmp_path / "store") as store:
            await test(await begun(store), store)

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    return run


async def read_all(job: Journal, kinds: Kind = Kind.ALL, index: int | None = None) -> list[Event]:
    events: list[Event] = []
    after = 0
    while after < job.shown:
        some, after = await job.read(after, 0.0, kinds, index)
        events += some
    return events


@with_journal
async def test_an_event_is_shown_only_when_the_store_has_it(job: Journal, store: Store):
    job.append(out(0))
    assert (job.length, job.shown) == (1, 0)
    assert await job.read(0, 0.0, Kind.ALL, None) == ([], 0)
    await store.committed()
    await asyncio.sleep(0)
    events, number = await job.read(0, LONG_S, Kind.ALL, None)
    assert (events, number, job.shown) == ([out(0)], 1, 1)


@with_journal
async def test_events_beyond_the_budget_are_read_from_the_store_and_no_border_shows(job: Journal, store: Store):
    events: list[Event] = [out(at, 50_000) for at in range(250)]
    held = 0
    for event in events:
        job.append(event)
        if job.length % 10 == 0:
            await store.committed()
            held = max(held, sum(len(one.data) for one, _ in job._kept if isinstance(one, Output)))
    await store.committed()
    await job.read(249, LONG_S, Kind.ALL, None)
    assert held < journal.KEPT_BYTES + 600_000
    assert 0 < job._first < 250
    for after in (0, job._first - 1, job._first, job._first + 1, 249):
        some, number = await job.read(after, 0.0, Kind.ALL, None)
        assert some == events[after:number]
        assert sum(len(one.data) for one in some if isinstance(one, Output)) <= MESSAGE_BYTES + 50_000
    assert await read_all(job) == events


@with_journal
async def test_what_is_not_shown_yet_is_kept_whatever_its_size(job: Journal, store: Store):
    events: list[Event] = [Results(at, at + 1, False, content(1_000_000, at)) for at in range(13)]
    job.append(events[0])
    await asyncio.sleep(0)
    for event in events[1:]:
        job.append(event)
    job._show(1)  # it is in the store, the others are on their way
    assert (job._first, job.shown) == (1, 1)
    await store.committed()
    assert (await job.read(12, LONG_S, Kind.ALL, None))[0] == events[12:]
    assert await read_all(job) == events


@with_journal
async def test_reading_waits_for_the_first_event_and_not_longer_than_it_is_told(job: Journal, store: Store):
    reading = [asyncio.ensure_future(job.read(0, LONG_S, Kind.ALL, None)) for _ in range(3)]
    await asyncio.sleep(0)
    late = asyncio.ensure_future(job.read(0, 0.01, Kind.FAILURE, None))
    assert await late == ([], 0)
    job.append(out(0))
    async with asyncio.timeout(LONG_S / 2):
        assert await asyncio.gather(*reading) == [([out(0)], 1)] * 3


@with_journal
async def test_who_waits_can_be_woken_without_news(job: Journal, store: Store):
    reading = asyncio.ensure_future(job.read(0, LONG_S, Kind.ALL, None))
    await asyncio.sleep(0)
    job.wake()
    async with asyncio.timeout(LONG_S / 2):
        assert await reading == ([], 0)


@pytest.mark.parametrize("kept_bytes", [0, journal.KEPT_BYTES], ids=["store", "memory"])
def test_memory_and_store_filter_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int):
    events: list[Event] = [
        Output(0, 1, b"o0"), Results(0, 3, False, b"r0"), Failure(3, b"f3"), Notice("n"),
        Output(2, 2, b"o2"), Results(4, 6, True, b"r4"), Output(4, 1, b"o4"), Ended(JobState.DONE),
    ]  # fmt: skip
    monkeypatch.setattr(journal, "KEPT_BYTES", kept_bytes)

    @in_a_loop
    async def test() -> None:
        async with opened(tmp_path / "store") as store:
            job = await begun(store)
            for event in events:
                job.append(event)
            await store.committed()
            await job.read(7, LONG_S, Kind.ALL, None)
            assert job._first == (8 if kept_bytes == 0 else 0)
            assert await read_all(job) == events
            assert await read_all(job, Kind.RESULTS) == [events[1], events[5]]
            assert await read_all(job, Kind.FAILURE | Kind.ENDED) == [events[2], events[7]]
            assert await read_all(job, Kind.ALL, 2) == [events[1], events[4]]
            assert await read_all(job, Kind.OUTPUT, 4) == [events[6]]
            assert await read_all(job, Kind.ALL, 6) == []
            assert await job.read(0, LONG_S, Kind.ENDED, 0) == ([], 8), "none of these, and that is news"

    test()


@pytest.mark.parametrize("kept_bytes", [0, journal.KEPT_BYTES], ids=["store", "memory"])
def test_of_outputs_of_several_calls_those_of_one_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
):
    monkeypatch.setattr(journal, "KEPT_BYTES", kept_bytes)

    @in_a_loop
    async def test() -> None:
        async with opened(tmp_path / "store") as store:
            job = await begun(store)
            several = outputs.pack([out(0), out(2), Output(0, 2, b"more")])
            for event in (several, out(0)):
                job.append(event)
            await store.committed()
            await job.read(1, LONG_S, Kind.ALL, None)
            assert await read_all(job) == [several, out(0)]
            assert await read_all(job, Kind.OUTPUT, 0) == [outputs.pack([out(0), Output(0, 2, b"more")]), out(0)]
            assert await read_all(job, Kind.OUTPUT, 2) == [out(2)]
            assert await read_all(job, Kind.OUTPUT, 1) == []

    test()


@with_journal
async def test_dropped_output_is_counted_before_the_outcome_of_its_call(job: Journal, store: Store):
    job._limits = limits.OutputLimits(call_bytes=10, job_bytes=1000)
    for event in (out(0, 8), out(1, 5), out(0, 8), out(0, 8), Failure(0, b"f"), Results(1, 2, False, b"r")):
        job.append(event)
    await store.committed()
    await job.read(4, LONG_S, Kind.ALL, None)
    events = await read_all(job)
    assert events[:3] == [out(0, 8), out(1, 5), Output(0, 1, content(8)[:2])]
    assert isinstance(events[3], Output) and b"14 more bytes that input 0 printed were dropped" in events[3].data
    assert events[4:] == [Failure(0, b"f"), Results(1, 2, False, b"r")]


@in_a_loop
async def test_a_journal_goes_on_where_it_ended_with_what_its_job_may_still_print(tmp_path: Path):
    async with opened(tmp_path / "store") as store:
        job = await begun(store)
        job.append(out(0))
        job.append(Results(0, 1, False, b"r"))
    async with opened(tmp_path / "store") as store:
        (replay,) = store.unfinished()
        again = Journal(store, replay.job.number, replay.job.events, limits.JOB_BYTES - 30)
        assert (again.length, again.shown) == (2, 2)
        assert await read_all(again) == [out(0), Results(0, 1, False, b"r")]
        again.append(out(1))
        await store.committed()
        assert await again.read(2, LONG_S, Kind.ALL, None) == ([Output(1, 1, out(1).data[:30])], 3)
        assert (await again.read(0, 0.0, Kind.ALL, None))[1] == 3
