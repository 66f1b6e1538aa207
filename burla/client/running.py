"""The jobs that this process follows at the moment, oldest first."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burla.client.connection import Connection
    from burla.client.job import ClientJob

_jobs: list[tuple[int, ClientJob]] = []  # with the thread that began it


def add(job: ClientJob) -> None:
    """The head has taken a job of the current thread."""
    _jobs.append((threading.get_ident(), job))


def remove(job: ClientJob) -> None:
    """A job is followed no more."""
    _jobs[:] = [entry for entry in _jobs if entry[1] is not job]


def newest() -> ClientJob | None:
    """Return the newest job of this thread, else of this process; None if there is none."""
    here = [job for thread, job in _jobs if thread == threading.get_ident()]
    return (here or [job for _, job in _jobs] or [None])[-1]


def over(connection: Connection) -> bool:
    """Whether a job is followed over this connection."""
    return any(job.connection is connection for _, job in _jobs)


def find(job_id: str) -> ClientJob | None:
    """Return the job of this process with this id, if it is followed."""
    return next((job for _, job in _jobs if job.id == job_id), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_jobs.clear)  # they are the other process's
