"""A store of several jobs, and what of it can still be read after something was done to it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from burla import blobs
from burla.errors import StoreDamaged
from burla.head.records import FILE_BYTES, Status, StoredJob
from burla.head.store import Replay, Store
from burla.protocol import (
    Blob,
    Block,
    Ended,
    Event,
    Failure,
    GetPiece,
    JobSpec,
    JobState,
    Lost,
    Notice,
    Output,
    PutPiece,
    Results,
)
from tests.head.samples import all_blocks, all_events, blob_of, open_store, opened, put_blob, spec

STATES = tuple(JobState)


@dataclass(frozen=True)
class Sample:
    """A job as it was written."""

    number: int
    spec: JobSpec
    session: str
    created_at_s: float
    status: Status
    blob: tuple[Blob, bytes]
    blocks: tuple[Block, ...]
    events: list[Event]
    crashes: dict[int, int]
    trades: dict[str, int]


def mark(job_id: str) -> bytes:
    """Return what stands in all bytes of a job, and of no other."""
    return f"<{job_id}>".encode()


def samples_of(states: tuple[JobState, ...] = STATES) -> list[Sample]:
    """Return a job of every state; number 3 is of one that was deleted."""
    numbers = [1, 2, *range(4, len(states) + 2)]
    return [
        _sample(number, f"sample-{number}-{state.value}", state) for number, state in zip(numbers, states, strict=True)
    ]


def _sample(number: int, name: str, state: JobState) -> Sample:
    def data(size_bytes: int, at: int) -> bytes:
        return (f"{at:9}".encode() + mark(name) * (size_bytes // len(mark(name)) + 1))[:size_bytes]

    large = data(FILE_BYTES + 10, 1)
    blob = blob_of(f"b10b{number}", large)
    payloads = [data(400, 2), data(FILE_BYTES, 3), blob, data(7000, 4)]
    created_at_s = number + 0.25
    return Sample(
        number=number,
        spec=spec(name, function_name=f"f{mark(name).decode()}", function=data(300, 0), parent=None),
        session=f"session {name}",
        created_at_s=created_at_s,
        status=Status(
            detached=state is not JobState.RECEIVING,
            complete=state is not JobState.RECEIVING,
            state=state,
            error=data(40, 30) if state in (JobState.STOPPING, JobState.CANCELLED) else None,
            total=20,
            done=17,
            failed=1,
            ended_at_s=created_at_s + 60 if state.ended else None,
        ),
        blob=(blob, large),
        blocks=tuple(Block(5 * at, 5, bool(at % 2), payload) for at, payload in enumerate(payloads)),
        events=[
            Results(0, 4, False, data(300, 5)), Output(4, 1, data(900, 6)), Output(4, 2, data(10, 7)),
            Failure(4, data(5000, 8)), Results(5, 6, True, data(FILE_BYTES + 1, 9)), Notice(data(60, 10).decode()),
            Results(6, 10, False, blob), *(Results(10 + at, 11 + at, False, data(200, 11 + at)) for at in range(8)),
            *([Ended(state, data(80, 20))] if state.ended else []),
        ],
        crashes={18: 1, 19: 2},
        trades={"node": 12, "other node": 700},
    )  # fmt: skip


async def write_samples(folder: Path) -> list[Sample]:
    """Make a store of all samples, with room where another job was."""
    store, samples = await open_samples(folder)
    store.close()
    return samples


async def open_samples(folder: Path) -> tuple[Store, list[Sample]]:
    """Make a store of all samples, and leave it open."""
    store = open_store(folder)
    samples = samples_of()
    for sample in (*samples[:2], _sample(3, "deleted", JobState.DONE), *samples[2:]):
        await _write_sample(store, sample)
    store.delete_job(3)
    store.set_node("node", True)
    await store.committed()
    return store, samples


async def _write_sample(store: Store, sample: Sample) -> None:
    number = store.add_job(sample.spec, sample.session, sample.created_at_s, True)
    assert number == sample.number
    await put_blob(store, number, sample.blob[0].id, sample.blob[1])
    store.add_blocks(number, sample.blocks, True)
    for at, event in enumerate(sample.events):
        store.add_event(number, at, event, True)
    for index, attempts in sample.crashes.items():
        store.set_crashes(number, index, attempts, True)
    for node, trade in sample.trades.items():
        store.set_trade(number, node, trade, True)
    store.update_job(number, True, **{one.name: getattr(sample.status, one.name) for one in fields(sample.status)})
    await store.committed()


# what can be read


@dataclass
class Survey:
    """`harmed`: jobs of which something is said to be damaged; `remarks`: of the store."""

    harmed: set[str] = field(default_factory=set)
    remarks: tuple[str, ...] = ()

    @property
    def detected(self) -> bool:
        return bool(self.harmed or self.remarks)


async def survey(folder: Path, samples: list[Sample]) -> Survey:
    """Read all of a store: each value is what was written, or is said to be damaged."""
    async with opened(folder) as store:
        found = Survey(remarks=store.remarks)
        replays = {replay.job.spec.id: replay for replay in store.unfinished()}
        listed = {stored.spec.id: stored for stored in await store.jobs()}
        assert listed.keys() <= {sample.spec.id for sample in samples}
        for sample in samples:
            name = sample.spec.id
            try:
                stored = await store.find(name)
            except StoreDamaged:
                found.harmed.add(name)
                continue
            assert (name in listed) == (stored is not None)
            if stored is None:
                said = any(name in remark or "all of it" in remark for remark in store.remarks)
                said = said or any(f"number {sample.number}" in remark for remark in store.remarks)
                assert said, f"{name} is gone, and nobody says so: {store.remarks}"
                found.harmed.add(name)
            elif await _harmed(store, stored, sample, replays.get(name)):
                found.harmed.add(name)
        return found


async def _harmed(store: Store, stored: StoredJob, sample: Sample, replay: Replay | None) -> bool:
    assert (stored.number, stored.session, stored.created_at_s) == (sample.number, sample.session, sample.created_at_s)
    assert stored.spec == replace(sample.spec, function=b"")
    assert stored.status == sample.status
    assert 200_000 < stored.size_bytes < 300_000
    harmed = False
    try:
        assert (await store.with_function(stored)).spec == sample.spec
    except StoreDamaged:
        harmed = True
    try:
        assert await all_blocks(store, sample.number, 20) == list(sample.blocks)
    except StoreDamaged:
        harmed = True

    async def ask(message: GetPiece | PutPiece) -> bytes:
        assert isinstance(message, GetPiece)
        return await store.piece(sample.number, message.blob, message.offset_bytes)

    try:
        assert await blobs.fetch(ask, sample.spec.id, sample.blob[0]) == sample.blob[1]
    except StoreDamaged:
        harmed = True
    harmed |= _events_harmed(await all_events(store, sample.number), sample)
    assert (replay is None) == sample.status.state.ended
    return harmed | (replay is not None and _replay_harmed(replay, sample, bool(store.remarks)))


def _events_harmed(events: list[Event], sample: Sample) -> bool:
    said = [event for event in events if isinstance(event, Lost) or event not in sample.events]
    for event in said:
        assert isinstance(event, Lost) or (isinstance(event, Notice) and "cannot be read" in event.text), event
    whole = [event for event in events if event not in said]
    expected = iter(sample.events)
    assert all(event in expected for event in whole), "in another order"
    assert said or whole == sample.events, "an event is missing"
    return bool(said)


def _replay_harmed(replay: Replay, sample: Sample, store_said: bool) -> bool:
    if replay.damage is not None:
        return True
    assert replay.blocks == [(block.first, block.count) for block in sample.blocks]
    outcomes = [
        *((one.start, one.stop, False) for one in sample.events if isinstance(one, Results)),
        *((one.index, one.index + 1, True) for one in sample.events if isinstance(one, Failure)),
    ]
    assert _by_call(replay.outcomes) == _by_call(outcomes)
    assert replay.crashes.items() <= sample.crashes.items()
    assert replay.trades.items() <= sample.trades.items()
    assert store_said or (replay.crashes, replay.trades) == (sample.crashes, sample.trades)
    assert replay.output_bytes == sum(len(event.data) for event in sample.events if isinstance(event, Output))
    return False


def _by_call(outcomes: list[tuple[int, int, bool]]) -> dict[int, bool]:
    return {index: failed for start, stop, failed in outcomes for index in range(start, stop)}
