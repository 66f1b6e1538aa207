"""Which nodes share a client's disk, and what that means for its jobs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from burla import EnvironmentNeeded, PythonMismatch
from burla.channel import Channel, ChannelClosed
from burla.head import disks
from burla.head.members import NodeState
from burla.protocol import CallContext, HasDisk, JobSpec, NodeOffer, Origin

ORIGIN = Origin("/home/me/.burla/disk", "digest", "/usr/bin/python")
LOCAL = JobSpec("job", "f", b"", CallContext("/", {}, ()), python="cpython 3.11")
SHARING = replace(LOCAL, origin=ORIGIN)
EQUIPPED = replace(SHARING, environment="{}")
FOREIGN = replace(LOCAL, environment="{}")


class Peer:
    """The node's end of a channel: what it answers, and how often it was asked."""

    def __init__(self, answer: bool | Exception):
        self.answer = answer
        self.asked = 0

    async def ask(self, message: HasDisk) -> bool:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def node(name: str, shares: bool | None = None, python: str = "cpython 3.11", peer: Any = None) -> NodeState:
    known = {} if shares is None else {ORIGIN.digest: shares}
    return NodeState(NodeOffer(name, name, 4, 1, python=python), cast(Channel, peer), "", 0.0, known)


def test_each_node_is_asked_once_whether_it_has_a_disk_and_one_that_fails_is_asked_again():
    peers = [Peer(True), Peer(False), Peer(ChannelClosed("gone"))]
    nodes = [node(str(number), peer=peer) for number, peer in enumerate(peers)]
    for _ in range(2):
        asyncio.run(disks.look(ORIGIN, nodes))
    assert [one.disks for one in nodes] == [{"digest": True}, {"digest": False}, {}]
    assert [peer.asked for peer in peers] == [1, 1, 2]
    asyncio.run(disks.look(None, [node("other", peer=Peer(True))]))


@pytest.mark.parametrize(
    ("shares", "shared"),
    [([], False), ([None], False), ([False], False), ([True, False], True), ([True, None], True)],
)
def test_a_job_has_to_say_what_it_needs_unless_all_nodes_share_the_disk(shares: list[bool | None], shared: bool):
    nodes = [node(str(number), one) for number, one in enumerate(shares)]
    with pytest.raises(EnvironmentNeeded) as needed:
        disks.check_environment(SHARING, nodes)
    assert needed.value.shared is shared
    disks.check_environment(EQUIPPED, nodes)
    disks.check_environment(LOCAL, nodes)


def test_a_job_whose_nodes_all_share_the_disk_need_say_nothing():
    disks.check_environment(SHARING, [node("a", True), node("b", True)])


def test_another_python_is_refused_at_once_naming_both():
    others = [node("a", False, "cpython 3.12"), node("b", False, "pypy 3.11")]
    for spec in (SHARING, EQUIPPED, FOREIGN):
        with pytest.raises(PythonMismatch, match=r"cpython 3\.11.*cpython 3\.12, pypy 3\.11") as mismatch:
            disks.check_python(spec, others)
        assert (mismatch.value.here, mismatch.value.there) == ("cpython 3.11", "cpython 3.12, pypy 3.11")
        disks.check_python(spec, [*others, node("c", False)])
    disks.check_python(LOCAL, others)
    disks.check_python(SHARING, [*others, node("c", True, "cpython 3.12")])


def test_nodes_that_cannot_run_a_job_are_barred():
    nodes = [node("same", True), node("other", False), node("newer", False, "cpython 3.12"), node("unknown")]
    assert disks.barred(LOCAL, nodes) == frozenset()
    assert disks.barred(SHARING, nodes) == {"other", "newer"}
    assert disks.barred(EQUIPPED, nodes) == {"newer"}
    assert disks.barred(FOREIGN, nodes) == {"newer"}
