"""Clusters that grow for a job, with real machines in the machine room."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

import burla
from burla.clusters import catalog, grow
from burla.clusters.boot import Timers
from tests.clouds.clusters import SHORT, make, wait_until
from tests.clouds.machine_room import MachineRoom, in_machine_room

CPUS = len(os.sched_getaffinity(0))  # of every machine of the room, whatever it is called
CAPACITY = "InsufficientInstanceCapacity"


def _nodes(room: MachineRoom) -> Counter[str]:
    return Counter(machine.type for machine in room.machines if machine.tags["burla-role"] == "node")


def _meeting(room: MachineRoom, name: str, calls: int) -> Callable[[int], str | None]:
    """Return a function whose calls all wait until so many of them run at once, and return which GPU each has."""
    prefix = str(room.folder / name)

    def meet(x: int) -> str | None:
        import glob
        import os
        import time

        open(f"{prefix}-{x}", "w").close()
        while len(glob.glob(f"{prefix}-*")) < calls:
            time.sleep(0.05)
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    return meet


def _fast(timers: Timers = SHORT, idle_s: float = 60.0) -> None:
    grow.TIMERS, grow.IDLE_S, grow.LOOK_S, grow.MEASURE_S = timers, idle_s, 0.5, 0.5


@in_machine_room
def test_a_cluster_without_nodes_grows_to_three_during_a_job_and_shrinks_after_it(room: MachineRoom) -> None:
    """What the cloud does not have is shown, and the next machine that fits takes its place."""
    _fast(idle_s=5.0)
    make("grown", nodes=0)
    room.refuse(m7i_xlarge=CAPACITY)
    with burla.use("grown"), contextlib.redirect_stderr(io.StringIO()) as told:
        planned = burla.growth_plan(abs, range(3), func_cpu=2)
        assert {order.machine.name: order.count for order in planned.orders} == {"m7i.xlarge": 1, "m7i.large": 1}
        assert "$0.30 an hour" in str(planned) and catalog.NOTED in str(planned)
        assert _nodes(room) == {}
        job = burla.submit(_meeting(room, "three", 3), range(3), func_cpu=2, grow=True, detach=False)
        job.follow(spinner=False)
        assert job.results() == [None] * 3
    assert _nodes(room) == {"m7i.large": 3}
    lines = told.getvalue().splitlines()
    assert any("0 of 1 came: m7i.xlarge is to be had in no zone" in line and CAPACITY in line for line in lines), lines
    assert [line for line in lines if " × m7i.large" in line] == [
        "growing grown: 3 × m7i.large (6 CPUs, $0.30 an hour)"
    ]
    assert not any("cannot grow" in line for line in lines)
    wait_until(lambda: not _nodes(room), 40, "the end of nodes that nobody needs")
    assert len(room.machines) == 1
    burla.delete_cluster("grown")


@in_machine_room
def test_images_gpus_and_other_processes_grow_the_same_cluster(room: MachineRoom) -> None:
    """Nodes of several kinds under one head; where nothing is left to boot, a job runs on what is there."""
    _fast()
    make("mixed", nodes=1, spot=True, disk_gb=33)

    def image_here(x: int) -> str:
        import json

        with open("/var/lib/burla/settings.json") as settings:
            return json.load(settings)["image"]

    with burla.use("mixed"):
        # a detached job: ordered before its client may leave
        tools = burla.submit(image_here, [1], image="example.org/tools:1", grow=True)
        assert len(room.instances()) == 3
        on_gpus = burla.submit(_meeting(room, "gpu", 2), [1, 2], func_gpu="T4", grow=True)
        assert len(room.instances()) == 5
        assert tools.results() == ["example.org/tools:1"]
        assert len(gpus := set(on_gpus.results())) == 2 and all(gpu and gpu.startswith("GPU-i-") for gpu in gpus)
        assert _nodes(room) == {"m7i.xlarge": 1, "c7i.large": 1, "g4dn.xlarge": 2}
        _check_settings(room)

        # a second process, for a job that began without growing
        there = sum(_nodes(room).values())
        job = burla.submit(_meeting(room, "wide", there + 1), range(there + 1), func_cpu=CPUS)
        program = f"""
import burla
burla.use("mixed")
job = burla.attach({job.id!r})
job.grow()
print(len(job.results()))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, f"{there + 1}\n"), done.stderr
        assert sum(_nodes(room).values()) == there + 1

        # nothing left
        room.refuse(p4d_24xlarge=CAPACITY, m7i_large="UnauthorizedOperation")
        there = sum(_nodes(room).values())
        patient = burla.submit(_until(room, "go"), range(there + 1), func_cpu=CPUS, grow=True)
        with pytest.raises(burla.NoCompatibleNodes, match="A100_40G"):
            burla.submit(image_here, [1], func_gpu="A100", grow=True).results()
        (room.folder / "go").touch()
        assert "mixed grows no more: no m7i.large for you: UnauthorizedOperation" in (told := _told(patient)), told
        assert patient.results() == list(range(there + 1))

        # machines that never become nodes
        room.refuse()
        room.hangs = lambda tags: tags["burla-role"] == "node"
        _fast(Timers(boot_s=3))
        before = len(room.instances())
        job = burla.submit(image_here, [1], image="example.org/never:1", grow=True)
        with pytest.raises(burla.NoCompatibleNodes, match=r"example\.org/never:1"):
            job.results()
        assert "new machines do not become nodes: burla-mixed-node-" in _told(job, failed=True)
        hung = [one["State"]["Name"] for one in room.instances()[before:]]
        assert hung == ["terminated"] * grow.MOST_FAILURES
    burla.delete_cluster("mixed", force=True)


def _told(job: burla.Job, failed: bool = False) -> str:
    """Return what a follower of the job is told."""
    end = pytest.raises(burla.BurlaError) if failed else contextlib.nullcontext()
    with contextlib.redirect_stderr(io.StringIO()) as told, end:
        job.follow(spinner=False)
    return told.getvalue()


def _until(room: MachineRoom, name: str) -> Callable[[int], int]:
    """Return a function whose calls wait for a file."""
    path = str(room.folder / name)

    def wait(x: int) -> int:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.05)
        return x

    return wait


def _check_settings(room: MachineRoom) -> None:
    """New nodes are as the cluster's own."""
    nodes = {machine.id: machine for machine in room.machines if machine.tags["burla-role"] == "node"}
    instances = {one["InstanceId"]: one for one in room.instances() if one["InstanceId"] in nodes}
    assert {one["InstanceLifecycle"] for one in instances.values()} == {"spot"}
    assert {machine.containers[0].gpus for machine in nodes.values() if machine.type.startswith("g")} == {True}
    volumes = room.ec2.describe_volumes()["Volumes"]
    assert {one["Size"] for one in volumes} == {33}


KILLED = """
import os, signal, sys
from aiobotocore.client import AioBaseClient
import burla
from burla import growth
from burla.clusters import grow
from tests.clouds.clusters import SHORT
step, count = sys.argv[2], int(sys.argv[3])
def reached(name):
    global count
    count -= name.startswith(step)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
call, tell = AioBaseClient._make_api_call, growth._Job.tell
async def calling(self, name, arguments):
    answer = await call(self, name, arguments)
    reached(name)
    return answer
async def telling(self, text, over=False):
    await tell(self, text, over)
    reached(text)
AioBaseClient._make_api_call, growth._Job.tell = calling, telling
grow.TIMERS, grow.IDLE_S, grow.LOOK_S = SHORT, 5.0, 0.5
def endless(x):
    import time
    time.sleep(600)
burla.use("killed")
burla.remote_parallel_map(endless, range(3), func_cpu=2, image=sys.argv[1], grow=True)
"""
STEPS = [("growing", 1), ("RunInstances", 1), ("CreateTags", 1), ("RunInstances", 2), ("killed has 1 more node", 1)]


@in_machine_room
def test_a_client_killed_at_any_step_of_growth_leaves_what_ends_by_itself(room: MachineRoom) -> None:
    """Nodes and head; the job was attached, so it ends too."""
    make("killed", nodes=0, idle_s=15)
    for number, (step, count) in enumerate(STEPS):
        # an image of its own: what another has left behind is of no use
        command = [sys.executable, "-c", KILLED, f"example.org/step:{number}", step, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -9, (step, done.stdout, done.stderr)
    assert len(room.instances()) >= 1 + 1 + 1 + 2 + 1
    wait_until(lambda: room.machines == [], 90, "the end of all machines")
    burla.delete_cluster("killed")
