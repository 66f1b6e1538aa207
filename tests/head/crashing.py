"""A program that writes a store until it is killed: `python -m tests.head.crashing FOLDER LEDGER`.

What it writes follows from the numbers of jobs and events. To the ledger goes what was acknowledged, as it is.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path

from burla.head.records import FILE_BYTES
from burla.head.store import Store
from burla.protocol import Block, Event, Failure, JobState, Output, Results
from tests.head.samples import content, open_store, put_blob, spec

EVENTS = 12  # of a job
BLOB_BYTES = 150_000


def event_at(number: int, at: int) -> Event:
    data = content(FILE_BYTES if at % 4 == 0 else 300, number * 1000 + at)
    return (Results(at, at + 1, False, data), Output(at, 1, data), Failure(at, data))[at % 3]


def blocks_of(number: int) -> tuple[Block, ...]:
    return (
        Block(0, 6, False, content(FILE_BYTES + 1, number)),
        Block(6, 6, True, content(500, number)),
    )


def blob_bytes(number: int) -> bytes:
    return content(BLOB_BYTES, number + 500)


async def write(store: Store, ledger: int) -> None:
    def acknowledge(*words: object) -> None:
        os.write(ledger, (" ".join(str(word) for word in words) + "\n").encode())

    old: list[int] = [stored.number for stored in await store.jobs()]
    while True:
        number = store.add_job(spec(secrets.token_hex(8), function=content(FILE_BYTES)), "session", 1.5, False)
        old.append(number)
        durable = bool(number % 2)
        store.add_blocks(number, blocks_of(number), durable)
        await store.committed()
        acknowledge("job", number)
        await put_blob(store, number, "b10b", blob_bytes(number), 60_000)
        acknowledge("blob", number)
        if not durable:
            store.update_job(number, True, complete=True, detached=True, total=12, state=JobState.RUNNING)
        for at in range(EVENTS):
            store.add_event(number, at, event_at(number, at), durable)
            store.after_commit(lambda at=at, number=number: acknowledge("event", number, at))
            if at % 5 == 0:
                await asyncio.sleep(0)
        await store.committed()
        if len(old) > 3:
            gone = old.pop(0)
            acknowledge("deleting", gone)
            store.delete_job(gone)
            await store.committed()
            acknowledge("deleted", gone)


async def main() -> None:
    folder, ledger = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    await write(open_store(folder), ledger)


if __name__ == "__main__":
    asyncio.run(main())
