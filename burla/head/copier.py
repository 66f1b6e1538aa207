"""Copies jobs that have ended to a bucket, one after the other, in the background."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from pathlib import Path

from burla.bucket import Bucket
from burla.errors import StoreUnreachable, UnknownJob
from burla.head import copies
from burla.head.files import Files
from burla.head.head import Head
from burla.head.history import History
from burla.head.keeping import Keeping
from burla.head.records import Damaged
from burla.protocol import JobInfo

log = logging.getLogger(__name__)

LOOK_S = 1.0
AGAIN_S = 15.0
_WORK = "copy-"


class Copier:
    """See the module. `folder`: of the store."""

    def __init__(self, head: Head, history: History, keeping: Keeping, bucket: Bucket, folder: Path):
        self._head = head
        self._history = history
        self._keeping = keeping
        self._bucket = bucket
        self._folder = folder
        self._begun = False
        self._lock = asyncio.Lock()  # who deletes a copy waits until it is whole

    async def run(self) -> None:
        """Look for ever for what is to be copied."""
        while True:
            try:
                await self.look()
                self._keeping.failure = ""
            except (StoreUnreachable, OSError) as error:  # such as a full disk
                log.warning("copying results: %s", error)
                self._keeping.failure = str(error)
            except Exception as error:  # a mistake of ours must not end the copying of other jobs
                log.exception("copying results")
                self._keeping.failure = f"burla failed at the head: {error!r}. Please report this"
            await asyncio.sleep(AGAIN_S if self._keeping.failure else LOOK_S)

    async def look(self) -> None:
        """Copy what has ended, and is not going to be forgotten by its client. Raises StoreUnreachable, OSError."""
        self._keeping.look(self._head.jobs.values(), time.time())
        for job_id in self._keeping.waiting:
            if job_id not in self._head.jobs and not self._head.store.knows(job_id):  # its client has forgotten it
                self._keeping.settle(job_id)
        if not self._begun:  # a head of before may have copied some, and have ended in the middle
            for begun in self._folder.parent.glob(f"{_WORK}*"):
                shutil.rmtree(begun)
            for job_id in await asyncio.to_thread(self._bucket.folders_with, copies.MANIFEST):
                self._keeping.settle(job_id)
            self._begun = True
        for job_id in self._keeping.waiting:
            running = self._head.jobs.get(job_id)
            if running is None or running.detached or running.session not in self._head.sessions:
                async with self._lock:
                    await self._copy(job_id)

    async def _copy(self, job_id: str) -> None:
        await self._head.store.committed()
        try:
            stored = await self._history.stored(job_id)
            await asyncio.to_thread(self._copy_now, stored.number, self._history.described(stored))
            log.info("job %s is copied to %s", job_id, self._bucket.url)
        except UnknownJob:  # it was deleted meanwhile
            pass
        except Damaged as error:  # it would be so the next time, too
            log.warning("job %s cannot be copied: %s", job_id, error)
        self._keeping.settle(job_id)

    def _copy_now(self, number: int, info: JobInfo) -> None:
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=self._folder.parent) as work:
            copies.copy(self._folder, Files(self._folder / "files"), number, info, self._bucket, Path(work))

    async def remove(self, job_id: str) -> None:
        """Remove the copy of a job that is to be deleted. Raises StoreUnreachable."""
        async with self._lock:
            await asyncio.to_thread(copies.remove, self._bucket, job_id)
            self._keeping.settle(job_id)
