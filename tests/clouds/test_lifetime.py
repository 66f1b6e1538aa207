"""What ends machines, and what does not end jobs: idleness, lost machines, restarts, boots that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import burla
from burla.client import current
from burla.clusters import pool, record, registry
from burla.clusters.apart import run_apart
from burla.clusters.boot import Timers
from tests.clouds.clusters import SHORT, make, scale, wait_until
from tests.clouds.machine_room import MachineRoom, in_machine_room


def _roles(room: MachineRoom) -> list[str]:
    return [machine.tags["burla-role"] for machine in room.machines]


@in_machine_room
def test_idle_machines_end_and_the_cluster_boots_again_under_its_name(room: MachineRoom) -> None:
    """Nodes and head end by themselves; a job keeps the head, and the nodes that run it."""

    def slow(x: int) -> int:
        import time

        time.sleep(12)
        return x

    first = make("idle", nodes=1, idle_s=5)
    with burla.use("idle"):
        assert burla.remote_parallel_map(slow, [1]) == [1]  # longer than a machine may be idle
        assert _roles(room) == ["head", "node"]
    wait_until(lambda: room.machines == [], 40, "the end of idle machines")
    state = burla.cluster_status("idle")
    with pytest.raises(burla.ClusterLost, match="to boot it again: burla cluster create idle"):
        burla.use("idle")
    assert not state.up and str(state).startswith("idle (aws us-east-1) is not up.")
    burla.create_cluster("idle", nodes=0)
    again = record.get("idle")
    assert (again.cloud, again.region, again.idle_s) == ("aws", "us-east-1", 5)
    assert again.id != first.id and _roles(room) == ["head"]
    burla.delete_cluster("idle")


@in_machine_room
def test_a_second_process_uses_and_scales_the_cluster(room: MachineRoom) -> None:
    """Everything it needs is under the name."""
    make("shared", nodes=0)
    program = """
import burla
burla.scale_cluster("shared", 2)
with burla.use("shared"):
    print(burla.remote_parallel_map(lambda x: x + 1, [1, 2, 3]))
burla.scale_cluster("shared", 1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[2, 3, 4]\n"), done
    assert "burla: 2 of 2 nodes joined" in done.stderr
    assert _roles(room) == ["head", "node"]
    assert burla.cluster_status("shared").up
    burla.delete_cluster("shared")


@in_machine_room
def test_another_version_of_burla_takes_an_idle_cluster_over(room: MachineRoom) -> None:
    """Head and nodes become that version; while a job runs, it has to wait."""

    def slow(x: int) -> int:
        import time

        time.sleep(5)
        return x

    first = Path(burla.__file__).parents[1]
    newer = room.folder / "newer"
    for name in ("burla", "burla_jupyter"):
        shutil.copytree(first / name, newer / name)
    with (newer / "burla/config.py").open("a") as file:
        file.write("NEWER = True\n")
    program = """
import burla
def newer(x):
    import burla.config
    return hasattr(burla.config, "NEWER")
burla.use("both")
print(burla.remote_parallel_map(newer, [1, 2]))
"""

    def run() -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PYTHONPATH": str(newer)}
        command = [sys.executable, "-P", "-c", program]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=room.folder)

    make("both", nodes=1, timers=replace(SHORT, head_gone_s=60))
    with burla.use("both"):
        job = burla.submit(slow, [1])
        assert "ClusterBusy" in run().stderr
        assert job.results() == [1]
    machines = room.machines
    current.forget()  # who is connected needs it too
    done = run()
    assert (done.returncode, done.stdout) == (0, "[True, True]\n"), done
    assert room.machines == machines
    burla.delete_cluster("both")


@in_machine_room
def test_a_lost_spot_node_loses_no_result(room: MachineRoom) -> None:
    """The calls that ran there run elsewhere."""

    def slow(x: int) -> int:
        import time

        time.sleep(1)
        return x

    make("spotty", nodes=2, spot=True)
    nodes = [machine for machine in room.machines if machine.tags["burla-role"] == "node"]
    instances = {one["InstanceId"]: one for one in room.instances()}
    assert {instances[node.id].get("InstanceLifecycle") for node in nodes} == {"spot"}
    with burla.use("spotty"):
        job = burla.submit(slow, range(40))
        wait_until(lambda: job.progress.done >= 4, 30, "first results")
        room.preempt(nodes[0])
        assert job.results() == list(range(40))
    burla.delete_cluster("spotty")


@in_machine_room
def test_a_detached_job_goes_on_when_the_head_s_machine_restarts(room: MachineRoom) -> None:
    """The head finds our package and its store on its disk, at its old address; no running call is repeated."""

    def slow(x: int) -> tuple[int, float]:
        import time

        time.sleep(1)
        return x, time.time()

    make("reborn", nodes=1, timers=replace(SHORT, head_gone_s=60))
    head = room.machines[0]
    with burla.use("reborn"):
        job = burla.submit(slow, range(30))
        wait_until(lambda: job.progress.done >= 2, 30, "first results")
    program = f"""
import burla
burla.use("reborn")
print([x for x, _ in burla.attach({job.id!r}).results()])
"""
    room.reboot(head)
    restarted = time.time()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{list(range(30))}\n"), done.stderr
    with burla.use("reborn"):
        assert max(ended for _, ended in burla.attach(job.id).results()) > restarted
    assert room.machines[0] is head
    burla.delete_cluster("reborn")


@in_machine_room
def test_a_head_whose_container_crashes_is_started_again(room: MachineRoom) -> None:
    """Its machine stays."""
    make("steady", nodes=1)
    head = room.machines[0]
    head.kill_python()
    with burla.use("steady"):
        assert burla.remote_parallel_map(abs, [-1]) == [1]
    assert room.machines[0] is head and len(head.containers) == 1
    burla.delete_cluster("steady")


@in_machine_room
def test_a_boot_that_fails_says_what_the_machine_wrote_and_leaves_nothing(room: MachineRoom) -> None:
    """The image does not exist."""
    room.images["example.org/no-such-image"] = None
    with pytest.raises(burla.CloudError) as caught:
        make("broken", image="example.org/no-such-image")
    assert caught.value.step == "waiting for the head, to bring burla there"
    assert "Unable to find image 'example.org/no-such-image'" in str(caught.value)
    assert caught.value.left == [] and str(caught.value).endswith("Nothing of it runs.")
    assert record.find("broken") is None


@in_machine_room
def test_a_machine_that_hangs_is_given_up_and_ended(room: MachineRoom) -> None:
    """The head at creation: nothing stays. A node that is added: the others stay."""
    room.hangs = lambda tags: tags["burla-role"] == "head"
    with pytest.raises(burla.CloudError, match=r"waiting for the head.*waited 5 s.*Nothing of it runs"):
        make("stuck", timers=Timers(boot_s=5))
    room.hangs = lambda tags: False
    make("stuck", nodes=1)
    room.hangs = lambda tags: True
    with pytest.raises(burla.CloudError, match=r"0 of 1 node came.*has not joined in 5 s") as caught:
        scale("stuck", 2, Timers(boot_s=5))
    wait_until(lambda: len([vm for vm in room.instances() if vm["State"]["Name"] == "running"]) == 2, 10, "its end")
    assert _roles(room) == ["head", "node"] and len(caught.value.left) >= 2
    burla.delete_cluster("stuck")


@in_machine_room
def test_what_the_cloud_refuses_is_told_in_its_own_words(room: MachineRoom) -> None:
    """At creation nothing stays; a cluster that is to grow stays as it was."""
    room.refuse(m7i_xlarge="InsufficientInstanceCapacity")
    with pytest.raises(burla.CloudError, match=r"no m7i\.xlarge for you") as caught:
        make("small", nodes=2)
    assert caught.value.step == "starting 2 nodes (m7i.xlarge)" and caught.value.left == []
    assert "us-east-1a: " in caught.value.told and "us-east-1b: " in caught.value.told  # all zones were tried
    assert room.left() == []
    room.refuse()
    make("small", nodes=0)
    room.refuse(m7i_xlarge="UnauthorizedOperation")
    with pytest.raises(burla.CloudError, match=r"UnauthorizedOperation.*Of it run: burla-small-head") as caught:
        scale("small", 1)
    assert caught.value.left == ["burla-small-head"]
    burla.delete_cluster("small")


@in_machine_room
def test_a_cluster_in_use_loses_idle_nodes_first_and_is_deleted_by_force_only(room: MachineRoom) -> None:
    """The job that runs is named."""

    def endless(x: int) -> None:
        import time

        time.sleep(600)

    cluster = make("busy", nodes=2)
    with burla.use("busy"):
        job = burla.submit(endless, [1])
    wait_until(lambda: job.progress.running == 1, 30, "the call")
    slots = run_apart(pool.busy(cluster))
    assert sorted(slots.values()) == [0, 1]
    scale("busy", 1)
    assert [slots.get(machine.tags["Name"]) for machine in room.machines] == [None, 1]
    with pytest.raises(burla.ClusterBusy, match="endless"):
        burla.delete_cluster("busy")
    assert _roles(room) == ["head", "node"]
    registry.keep(registry.find("busy"))
    burla.delete_cluster("busy", force=True)
    assert registry.kept() is None and not (registry.folder("busy")).exists()
    with pytest.raises(burla.UnknownCluster):
        burla.use("busy")


KILLED = """
import sys, os, signal
from aiobotocore.client import AioBaseClient
operation, count = sys.argv[2], int(sys.argv[3])
call = AioBaseClient._make_api_call
async def counted(self, name, arguments):
    global count
    answer = await call(self, name, arguments)
    count -= name == operation
    if name == operation and count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
AioBaseClient._make_api_call = counted
from burla.clusters import lifecycle
def say(text):
    print(text, flush=True)
    if text.startswith(operation):
        os.kill(os.getpid(), signal.SIGKILL)
lifecycle.say = say
from burla.clusters.boot import Timers
from tests.clouds.clusters import SHORT, make
image, boot_s = sys.argv[4:] or (None, SHORT.boot_s)
make(sys.argv[1], idle_s=10, timers=Timers(float(boot_s), SHORT.package_s, SHORT.head_gone_s), image=image)
if operation == "the end":
    os.kill(os.getpid(), signal.SIGKILL)
"""
STEPS = [
    ("CreateSecurityGroup", 1),
    ("AuthorizeSecurityGroupIngress", 1),
    ("AuthorizeSecurityGroupIngress", 2),
    ("RunInstances", 1),
    ("CreateTags", 1),
    ("RunInstances", 2),
    ("CreateTags", 2),
    ("waiting for the head", 1),
    ("waiting for 1 node", 1),
    ("the end", 1),
]


@in_machine_room
def test_a_client_killed_at_any_step_of_create_leaves_what_ends_by_itself(room: MachineRoom) -> None:
    """The machines end; what does not bill is removed with the name, or by the next creation."""
    for number, (step, count) in enumerate(STEPS):
        command = [sys.executable, "-c", KILLED, f"killed-{number}", step, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -9, (step, done.stdout, done.stderr)
    assert len({one["InstanceId"] for one in room.instances()}) == 12
    wait_until(lambda: room.machines == [], 60, "the end of all machines")
    assert {line.partition("-")[0] for line in room.left()} == {"burla"}  # security groups
    for number in range(len(STEPS) - 1):
        burla.delete_cluster(f"killed-{number}")
    make(f"killed-{len(STEPS) - 1}")
    burla.delete_cluster(f"killed-{len(STEPS) - 1}")
    assert sorted(path.name for path in Path(registry.folder("x")).parent.iterdir() if path.is_dir()) == []


@in_machine_room
def test_a_container_that_hangs_ends_its_machine_with_no_client_there(room: MachineRoom) -> None:
    """As when its image cannot be downloaded to the end."""
    hanging = room.folder / "hanging"
    hanging.write_text("#!/bin/sh\nsleep 1000\n")
    hanging.chmod(0o755)
    room.images["example.org/hanging"] = str(hanging)
    command = [sys.executable, "-c", KILLED, "hanging", "RunInstances", "1", "example.org/hanging", "6"]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -9
    wait_until(lambda: room.history and not room.machines, 30, "its end")
    assert [machine.containers[0].image for machine in room.history.values()] == ["example.org/hanging"]
    burla.delete_cluster("hanging")


@in_machine_room
def test_an_interrupt_removes_what_was_made(room: MachineRoom) -> None:
    """Ctrl-C while the head boots."""
    room.hangs = lambda tags: True
    program = "import burla; burla.create_cluster('undone', cloud='aws', nodes=1)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting for the head" in line:
            break
    process.send_signal(2)
    _, told = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in told and "removing what was made" in told
    assert (room.left(), record.find("undone")) == ([], None), (room.left(), told)


assert SHORT.boot_s > SHORT.package_s  # else a head that waits would look like one that hangs
