"""A named cluster on EC2, from its creation to its end, with real machines in the machine room."""

from __future__ import annotations

import burla
from tests.clouds.machine_room import MachineRoom, in_machine_room


@in_machine_room
def test_a_cluster_is_created_used_and_deleted(room: MachineRoom) -> None:
    """Two nodes that run calls; our package is the only thing of ours there."""

    def where(x: int) -> tuple[int, str, str, int]:
        import os
        import sys

        return x * x, sys.modules["burla"].__file__ or "", os.uname().nodename, os.getppid()

    burla.create_cluster("tens", cloud="aws", machine="m7i.xlarge", nodes=2)
    assert [(machine.tags["burla-role"], machine.type) for machine in room.machines] == [
        ("head", "m7i.large"),
        ("node", "m7i.xlarge"),
        ("node", "m7i.xlarge"),
    ]
    with burla.use("tens"):
        results = burla.remote_parallel_map(where, range(20))
    assert [one[0] for one in results] == [x * x for x in range(20)]
    assert {one[1].startswith("/var/lib/burla/packages/") for one in results} == {True}
    burla.delete_cluster("tens")
    assert room.machines == []
