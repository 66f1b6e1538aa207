"""Gives a job what its function needs on nodes that do not share this machine's disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from burla import blobs, protocol
from burla.client.connection import Connection, DaskTarget
from burla.environment import disk
from burla.environment.model import dumps
from burla.errors import BlobBroken
from burla.protocol import PARTS, CallContext, GetMissing, JobSpec

NOWHERE = CallContext("", {}, ())  # no node can use what this machine has


def located(spec: JobSpec, connection: Connection) -> JobSpec:
    """Return the spec of a job with what nodes know this machine by, if there can be nodes elsewhere."""
    if protocol.nested is not None:
        inherited = protocol.nested.inherited
        environ = {name: text for name, text in spec.context.environ.items() if name not in inherited.hidden}
        everywhere = inherited.origin is None and inherited.environment is not None
        return replace(
            spec,
            context=NOWHERE if everywhere else replace(spec.context, environ=environ),
            origin=inherited.origin,
            environment=inherited.environment,
            sealed=inherited.sealed,
        )
    if not isinstance(connection.target, DaskTarget):
        return spec  # the local cluster is on this machine
    return replace(spec, origin=disk.origin())


def equip(
    spec: JobSpec, shared: bool, connection: Connection, function: Callable[..., Any], packages: tuple[str, ...]
) -> JobSpec:
    """Return the spec of a job with what its function needs, which is on the head then.

    Unless nodes have this machine's disk (`shared`), nothing else of this machine goes with it. Raises as `send` does.
    """
    spec = replace(spec, environment=send(connection, function, packages))
    return spec if shared else replace(spec, origin=None, context=NOWHERE)


def send(connection: Connection, function: Callable[..., Any], packages: tuple[str, ...]) -> str:
    """Describe what a function needs, and give the head what it lacks of that; return the document.

    Raises EnvironmentFailed, InvalidValue, and what the head refuses with.
    """
    from burla.environment.describe import describe  # which most processes never need

    described = describe(function, packages)
    contents = {blob.id: blob for blob in described.environment.contents}
    for name in connection.run(connection.ask_again(GetMissing(tuple(contents)))):
        while True:
            try:
                connection.run(blobs.send(connection.ask_again, PARTS, contents[name], described.contents[name]))
                break
            except BlobBroken:
                continue  # the head was started again in the middle
    return dumps(described.environment)
