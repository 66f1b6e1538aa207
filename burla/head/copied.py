"""Answers a client from the copies of finished jobs in a bucket, as the head that wrote them would."""

from __future__ import annotations

import asyncio
import concurrent.futures
import tempfile
from pathlib import Path
from typing import Any

from burla.bucket import Bucket
from burla.errors import ClusterLost, StoreDamaged, UnknownJob
from burla.head.copies import MANIFEST, CopiedFiles, Copy
from burla.head.history import stored_events
from burla.head.reader import Reader
from burla.protocol import (
    PROTOCOL_VERSION,
    Beat,
    GetJob,
    GetPiece,
    Goodbye,
    Hello,
    JobInfo,
    JobList,
    ListJobs,
    Poll,
    Welcome,
)

OPEN = 8  # copies whose rows are on this machine
AT_ONCE = 16  # manifests that are read


class Copies:
    """See the module. `cluster`: the name of the cluster whose head is gone."""

    def __init__(self, bucket: Bucket, cluster: str):
        self._bucket = bucket
        self._cluster = cluster
        self._open: dict[str, tuple[Copy, Reader]] = {}  # the one that was used last is the last
        self._folder = tempfile.TemporaryDirectory(prefix="burla-copies-")
        self._lock = asyncio.Lock()

    async def answer(self, message: Any) -> Any:
        """Return the reply to a message of a client.

        Raises UnknownJob, StoreDamaged, StoreUnreachable; ClusterLost: it needs a head.
        """
        match message:
            case Beat() | Goodbye():
                return None
            case Hello():
                return Welcome(PROTOCOL_VERSION, closing=False)
        async with self._lock:
            match message:
                case GetJob():
                    return await asyncio.to_thread(self._find, message)
                case ListJobs():
                    return await asyncio.to_thread(self._list, message)
                case Poll(job=job_id):
                    copy, reader = await self._opened(job_id)
                    [stored] = await reader.jobs(limit=1)
                    return await stored_events(reader, stored, message)
                case GetPiece(job=job_id):
                    copy, reader = await self._opened(job_id)
                    return await reader.piece(copy.number, message.blob, message.offset_bytes)
        raise ClusterLost(
            f"this needs the cluster {self._cluster} itself: copies of its finished jobs at {self._bucket.url} hold "
            f"results, errors and output, and can only be read. To boot it: burla cluster create {self._cluster}"
        )

    def close(self) -> None:
        """Remove what is on this machine."""
        for _, reader in self._open.values():
            reader.close()
        self._folder.cleanup()

    def _find(self, message: GetJob) -> JobInfo:
        if message.job is not None:
            return self._copy(self._whole(message.job)).info
        own = [info for info in self._infos()[0] if info.owner == message.owner]
        if not own:
            raise UnknownJob(f"{message.owner} has no finished job at {self._bucket.url}", job=None)
        return own[0]

    def _whole(self, beginning: str) -> str:
        """Return the only id that begins so."""
        found = [one for one in self._bucket.folders_with(MANIFEST) if one.startswith(beginning)]
        exact = [one for one in found if one == beginning]
        if not exact and (len(found) != 1 or not beginning):
            raise UnknownJob(
                f"{self._bucket.url} has no job {beginning!r}: it had not ended when the cluster {self._cluster} "
                f"did, was deleted, or is another cluster's. burla.jobs() lists what there is.",
                job=beginning,
            )
        return (exact or found)[0]

    def _copy(self, job_id: str) -> Copy:
        try:
            return Copy(self._bucket, job_id)
        except FileNotFoundError as error:
            raise UnknownJob(f"the copy of job {job_id} at {self._bucket.url} was deleted", job=job_id) from error

    def _infos(self) -> tuple[list[JobInfo], tuple[str, ...]]:
        """Return all jobs, newest first, and what there is to say of those that cannot be read."""

        def read(job_id: str) -> JobInfo | str | None:
            try:
                return Copy(self._bucket, job_id).info
            except FileNotFoundError:  # deleted meanwhile
                return None
            except StoreDamaged as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(read, self._bucket.folders_with(MANIFEST)))
        infos = [one for one in found if isinstance(one, JobInfo)]
        infos.sort(key=lambda info: info.created_at_s, reverse=True)
        return infos, tuple(one for one in found if isinstance(one, str))

    def _list(self, message: ListJobs) -> JobList:
        infos, remarks = self._infos()
        wanted = [info for info in infos if not message.states or info.snapshot.state in message.states]
        return JobList(
            jobs=tuple(wanted[: message.limit]),
            keep_s=0.0,
            used_bytes=sum(info.size_bytes for info in infos),
            limit_bytes=0,
            remarks=remarks,
            copies=self._bucket.url,
        )

    async def _opened(self, job_id: str) -> tuple[Copy, Reader]:
        """Return a copy whose rows are here."""
        known = self._open.pop(job_id, None)
        if known is None:
            copy = await asyncio.to_thread(self._copy, job_id)
            folder = Path(self._folder.name, job_id)
            folder.mkdir(exist_ok=True)
            await asyncio.to_thread(copy.fetch, folder)
            known = copy, Reader(folder, CopiedFiles(self._bucket, job_id), {copy.number: job_id})
        self._open[job_id] = known
        if len(self._open) > OPEN:
            oldest = next(iter(self._open))
            self._open.pop(oldest)[1].close()
            (Path(self._folder.name, oldest) / "store.db").unlink()
        return known
