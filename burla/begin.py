"""Begins a job: pickles the function, sends it and the inputs."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from burla import blobs, config, growth, serialize, serialize_inputs
from burla.client import current
from burla.client.connection import Connection
from burla.client.job import ClientJob, new_id
from burla.equip import equip, located
from burla.errors import BurlaError, JobUnfinished
from burla.options import Options
from burla.protocol import CallContext, GetInputs, GetJob, JobInfo, JobSpec, Variables, python_tag
from burla.resume import Comparison


def begin(
    function: Callable[..., Any],
    inputs: Iterable[Any],
    wanted: Options,
    say: Callable[..., None],
    resume: str | None = None,
    sent: Callable[[int], None] | None = None,
) -> ClientJob:
    """Send a job; return when all of it is on the head. `resume`: the id of a job whose results it takes over.

    `say` is as in a `View`; `sent` is told how many inputs have gone to the head, as they go.
    """
    name = serialize.function_name(function)
    pickled = serialize.dump_function(function)
    current.begin()
    spec = JobSpec(
        id=new_id(),
        function_name=name,
        function=pickled,
        context=_context(wanted.variables),
        python=python_tag(),
        func_cpu=wanted.func_cpu,
        func_ram_bytes=wanted.func_ram_bytes,
        func_gpu=wanted.func_gpu,
        image=wanted.image,
        max_parallelism=wanted.max_parallelism,
        grow=wanted.grow,
        start_timeout_s=config.START_TIMEOUT_S,
        detach=wanted.detach,
        on_error=wanted.on_error,
        owner=_owner(),
        max_run_s=wanted.max_run_s,
        max_cost_usd=wanted.max_cost_usd,
    )
    blocks = serialize_inputs.pack_inputs(inputs)
    try:
        connection = current.connection(say)
        growing = growth.cluster_of(connection) if wanted.grow else None
        comparison = None if resume is None else _comparison(connection, resume)
        if comparison is not None:
            spec, blocks = replace(spec, resumed=comparison.job_id), comparison.watch(blocks)
        spec = located(spec, connection)
        job = ClientJob(
            connection,
            spec,
            wanted.variables,
            again=lambda lost: current.instead_of(lost, say),
            equip=lambda spec, shared: equip(spec, shared, connection, function, wanted.packages),
            grows=growing is not None,
        )
        job.submit(blocks, None if comparison is None else comparison.resume, sent)
    except BaseException as error:
        if wanted.detach and not isinstance(error, BurlaError):  # those say themselves what was wrong
            text = "burla: the job was cancelled, because not all of its inputs had arrived at the cluster"
            vars(error)["__notes__"] = [*vars(error).get("__notes__", ()), text]
            if isinstance(error, KeyboardInterrupt):
                say(text, always=True)
        raise
    if growing is not None:
        growth.start(growing, job.id, job.connection, until_ordered=wanted.detach)
    return job


def told(connection: Connection, job_id: str | None) -> JobInfo:
    """Return what the head knows of a job, by the beginning of its id; None: of the newest of this user."""
    return connection.run(connection.ask_again(GetJob(job_id, _owner())))


def _comparison(connection: Connection, job_id: str) -> Comparison:
    old = told(connection, job_id)
    if not old.snapshot.state.ended:
        raise JobUnfinished(
            f"job {old.id} has not ended, so it is too early to resume it: it is {old.snapshot.state.value}. "
            "Wait for it, or cancel it first.",
            job=old.id,
        )
    return Comparison(
        old.id,
        old.snapshot.total,
        lambda index: connection.run(connection.ask_again(GetInputs(old.id, index))).blocks,
        lambda payload: connection.run(blobs.fetch(connection.ask_again, old.id, payload)),
    )


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # neither a variable nor the password database has a name
        return str(os.getuid())


def _context(variables: Variables) -> CallContext:
    return CallContext(
        cwd=os.getcwd(),
        environ={name: value for name, value in os.environ.items() if name not in variables.values},
        sys_path=tuple(os.path.abspath(entry) if isinstance(entry, str) else str(entry) for entry in sys.path),
    )
