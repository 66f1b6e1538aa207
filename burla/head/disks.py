"""Which nodes share the disk of a client, and which can run its jobs although they do not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from burla.errors import EnvironmentNeeded, PythonMismatch
from burla.head.members import NodeState
from burla.protocol import HasDisk, JobSpec, Origin

log = logging.getLogger(__name__)

ANSWER_S = 5.0  # of a node, to a question that takes it no time


async def look(origin: Origin | None, nodes: Collection[NodeState]) -> None:
    """Ask nodes that have not been asked yet whether they share the disk of a client."""
    if origin is None:
        return
    unknown = [node for node in nodes if origin.digest not in node.disks]
    questions = (asyncio.wait_for(node.channel.ask(HasDisk(origin)), ANSWER_S) for node in unknown)
    answers = await asyncio.gather(*questions, return_exceptions=True)
    for node, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, bool):
            node.disks[origin.digest] = answer
        else:
            log.warning("node %s does not say whether it has a client's disk: %r", node.offer.name, answer)


def check_environment(spec: JobSpec, nodes: Collection[NodeState]) -> None:
    """Raise EnvironmentNeeded if nodes lack the client's disk, or may, and the job does not say what it needs."""
    if spec.origin is None or spec.environment is not None:
        return
    shared = [node.disks.get(spec.origin.digest, False) for node in nodes]
    if not shared or not all(shared):
        raise EnvironmentNeeded("nodes lack the disk of the client", shared=any(shared))


def check_python(spec: JobSpec, nodes: Collection[NodeState]) -> None:
    """Raise PythonMismatch if no node shares the client's disk, and all have another Python."""
    foreign = [node for node in nodes if _is_foreign(spec, node)]
    if foreign and len(foreign) == len(nodes) and all(node.offer.python != spec.python for node in foreign):
        there = ", ".join(sorted({node.offer.python for node in foreign}))
        raise PythonMismatch(
            f"this is {spec.python}, and the nodes of this cluster have {there}: a function that was pickled by one "
            "does not run on the other. Use that version here, or a cluster that has this one.",
            here=spec.python,
            there=there,
        )


def barred(spec: JobSpec, nodes: Collection[NodeState]) -> frozenset[str]:
    """Return the nodes that lack the client's disk, and cannot run the job without it."""
    if spec.origin is None and spec.environment is None:
        return frozenset()
    foreign = (node.offer for node in nodes if _is_foreign(spec, node))
    return frozenset(offer.id for offer in foreign if spec.environment is None or offer.python != spec.python)


def _is_foreign(spec: JobSpec, node: NodeState) -> bool:
    """Whether a node is known not to share the disk, as far as the job depends on that."""
    if spec.origin is None:
        return spec.environment is not None
    return node.disks.get(spec.origin.digest) is False
