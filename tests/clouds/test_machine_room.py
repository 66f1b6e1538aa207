"""The machine room itself: what dask-cloudprovider boots there are real Dask processes."""

from __future__ import annotations

import os
import time

from tests.clouds.fake_ec2 import UBUNTU
from tests.clouds.machine_room import MachineRoom, in_machine_room


@in_machine_room
def test_a_bare_dask_cluster_boots_computes_and_ends(room: MachineRoom) -> None:
    """A scheduler and a worker, as dask-cloudprovider makes them."""
    from dask_cloudprovider.aws import EC2Cluster
    from distributed import Client

    group = room.ec2.create_security_group(GroupName="bare", Description="bare")["GroupId"]
    with (
        EC2Cluster(
            n_workers=1, region="us-east-1", ami=UBUNTU, security_groups=[group], bootstrap=False, security=False
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        scheduler, worker = room.machines
        assert client.submit(os.uname).result(timeout=30) == os.uname()
        assert [where.split(":")[1] for where in client.scheduler_info()["workers"]] == [f"//{worker.private_ip}"]
        assert scheduler.containers[0].image == "daskdev/dask:latest"
        worker.crash_container()  # its cloud-init shuts the machine down, and the shutdown terminates it
        until = time.monotonic() + 30
        while worker.running and time.monotonic() < until:
            time.sleep(0.05)
        assert not worker.running
    room.ec2.delete_security_group(GroupId=group)
