"""The head is killed while it writes: what was acknowledged is there, and nothing is there by half."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from burla.head import recovery
from burla.head.crashpoints import VARIABLE
from burla.head.database import connect
from burla.head.store import Store
from tests.conftest import wait_until
from tests.head.crashing import EVENTS, blob_bytes, blocks_of, event_at
from tests.head.samples import all_blocks, all_events, blob_of, get_blob, in_a_loop, opened

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (ROOT / "burla" / "head").glob("*.py")
POINTS = {name for path in SOURCES for name in re.findall(r'reach\("(store\.\w+)"\)', path.read_text())}
WHILE_OPENING = "store.in_replace"


class Run:
    """A store, a program that writes it, and what that was told is written."""

    def __init__(self, folder: Path):
        self.store = folder / "store"
        self.ledger = folder / "ledger"
        self.token = folder / "token"

    def start(self, point: str | None = None, count: int = 1) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
        if point is not None:
            environ[VARIABLE] = f"{point}:{count}:{self.token}"
        command = [sys.executable, "-m", "tests.head.crashing", str(self.store), str(self.ledger)]
        return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)

    def lines(self) -> list[str]:
        return self.ledger.read_text().splitlines() if self.ledger.exists() else []

    async def check(self) -> None:
        """Open the store, and compare."""
        acknowledged: dict[int, list[list[str]]] = {}
        for line in self.lines():
            word, number, *more = line.split()
            acknowledged.setdefault(int(number), []).append([word, *more])
        async with opened(self.store) as store:
            assert store.remarks == (), "not even a torn page"
            found = {stored.number: stored for stored in await store.jobs()}
            for number, what in acknowledged.items():
                if ["deleted"] in what:
                    assert number not in found
                elif number not in found:
                    assert ["deleting"] in what, f"job {number} is lost"
            for number, stored in found.items():
                what = acknowledged.get(number, [])
                events = await all_events(store, number)
                assert events == [event_at(number, at) for at in range(len(events))]
                assert stored.events == len(events)
                assert {["event", str(at)] in what for at in range(len(events), EVENTS)} <= {False}, "an event is lost"
                blocks = blocks_of(number)
                replay = next(one for one in store.unfinished() if one.job.number == number)
                assert (replay.damage, replay.blocks) == (None, [(b.first, b.count) for b in blocks])
                assert await all_blocks(store, number, 12) == list(blocks)
                assert len((await store.with_function(stored)).spec.function) > 0
                if ["blob"] in what:
                    assert await get_blob(store, number, blob_of("b10b", blob_bytes(number))) == blob_bytes(number)
            self.check_files(store, set(found))

    def check_files(self, store: Store, numbers: set[int]) -> None:
        """No file is there that no row knows of, and none is missing."""
        connection = connect(self.store, read_only=True)
        for folder in (self.store / "files").iterdir():
            assert int(folder.name) in numbers, "a half-deleted job, or a stranger"
            known = set(recovery._files_of(connection, int(folder.name)))
            assert {path.name for path in folder.iterdir()} == known
        connection.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("point", sorted(POINTS - {WHILE_OPENING}))
def test_killed_at_a_named_moment_the_store_has_what_it_acknowledged(run: Run, point: str, count: int):
    @in_a_loop
    async def test() -> None:
        process = run.start(point, count)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        assert run.token.exists(), "it was this moment"
        await run.check()
        await run.check()  # and opening it does no harm
        again = run.start(point, count)  # it goes on from there: a moment comes once
        before = len(run.lines())
        try:
            wait_until(lambda: len(run.lines()) > before + 40 or again.poll() is not None)
        finally:
            again.kill()
        assert again.wait() == -signal.SIGKILL
        await run.check()

    test()


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_the_store_has_what_it_acknowledged(run: Run, seed: int):
    @in_a_loop
    async def test() -> None:
        chance = random.Random(seed)
        for _ in range(3):
            target = len(run.lines()) + chance.randint(0, 80)
            process = run.start()
            try:
                while len(run.lines()) < target:
                    assert process.poll() is None
                for _ in range(chance.randint(0, 20_000)):
                    pass
            finally:
                process.kill()
            assert process.communicate()[1] == ""
            await run.check()

    test()


@pytest.mark.parametrize("damage", ["missing", "structure"])
def test_killed_while_it_replaces_a_damaged_store_the_head_goes_on_with_what_is_whole(run: Run, damage: str):
    @in_a_loop
    async def test() -> None:
        process = run.start("store.after_commit", 60)
        process.communicate(timeout=60)
        async with opened(run.store) as store:
            before = [stored.spec.id for stored in await store.jobs()]
        database = run.store / "store.db"
        if damage == "missing":
            database.unlink()
        else:
            with open(database, "r+b") as file:
                file.seek(36)  # how many pages are free
                file.write(b"\0\0\0\x07")
        run.token.unlink()
        process = run.start(WHILE_OPENING)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL and run.token.exists()
        assert not run.store.exists()
        for _ in range(2):
            async with opened(run.store) as store:
                (remark,) = store.remarks
                assert "set aside" in remark and ("missing" in remark) == (damage == "missing")
                (aside,) = run.store.parent.glob("store.damaged-*")
                assert str(aside) in remark
                assert [stored.spec.id for stored in await store.jobs()] == ([] if damage == "missing" else before)
        assert len(before) > 1

    test()
