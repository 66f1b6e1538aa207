"""A named cluster on Compute Engine, from its creation to its end, with real machines in the machine room."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dask.config
import pytest

import burla
from burla import cloud_api
from burla.clusters import boot, grow, lifecycle, record
from burla.clusters import cloud as clouds
from burla.clusters.apart import run_apart
from tests.clouds.clusters import SHORT, make, scale, wait_until
from tests.clouds.fake_gce import FakeGce, complaints
from tests.clouds.gce_room import REGION, GceRoom, in_gce_room
from tests.clouds.test_boot import dask_hidden, files_of

OUT_OF_STOCK = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
OWNER = lifecycle.owner()


def _nodes(room: GceRoom) -> Counter[str]:
    return Counter(machine.type for machine in room.machines if machine.tags["burla-role"] == "node")


def _statuses(room: GceRoom) -> list[str]:
    return [one["status"] for one in room.gce.seen().values()]


@in_gce_room
def test_a_cluster_is_created_used_and_deleted(room: GceRoom) -> None:
    """All is labelled, one port is open to one address, and nothing of the client goes there but the cluster's keys."""
    os.environ.update(MY_TOKEN="token-of-the-client", DASK_MY__TOKEN="token-of-the-variable")
    dask.config.set({"my.secret": "secret-of-the-configuration"})
    before = _configuration()
    burla.create_cluster("tens", cloud="gcp", machine="n2-standard-4", nodes=2, role="reader@example.org", disk_gb=33)
    assert _configuration() == before
    with burla.use("tens"):
        assert burla.remote_parallel_map(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    state = str(burla.cluster_status("tens"))
    assert "3 machines" in state and "unknown" not in state

    secrets = ["token-of-the-client", "token-of-the-variable", "secret-of-the-configuration", "client@example.org"]
    secrets += room.private_key.decode().splitlines()[1:-1]
    for machine in room.machines:
        assert len(machine.user_data.encode()) < boot.LIMIT_BYTES
        text = "".join(files_of(machine.user_data).values()) + machine.user_data
        assert [secret for secret in secrets if secret in text or dask_hidden(secret) in text] == []
    labels = {"burla-cluster", "burla-name", "burla-owner", "burla-role", "burla-expiry"}
    assert all(labels <= one["labels"].keys() for one in [*room.gce.seen().values(), *room.gce.disks.values()])
    network = f"burla-{record.get('tens').id}"
    assert {name: json.loads(one["description"])["burla-owner"] for name, one in room.gce.firewalls.items()} == {
        f"{network}-inside": OWNER,
        f"{network}-clients": OWNER,
    }
    rules = {name: (one.get("sourceRanges"), one.get("sourceTags"), one["targetTags"], one["allowed"])
             for name, one in room.gce.firewalls.items()}  # fmt: skip
    assert rules == {
        f"{network}-inside": (None, [network], [network], [{"IPProtocol": "all"}]),
        f"{network}-clients": (["192.0.2.1/32"], None, [f"{network}-head"], [{"IPProtocol": "tcp", "ports": ["8786"]}]),
    }
    by_role = {body["labels"]["burla-role"]: body for body in room.gce.inserted}
    for role, body in by_role.items():
        assert body["tags"]["items"] == [network, f"{network}-{role}"]
        assert body["machineType"].endswith({"head": "n2-standard-2", "node": "n2-standard-4"}[role])
        [disk] = body["disks"]
        assert disk["autoDelete"] is True and disk["initializeParams"]["diskSizeGb"] == "33"
        assert body["scheduling"]["onHostMaintenance"] == "MIGRATE" and not body["scheduling"]["preemptible"]
    assert by_role["head"]["serviceAccounts"] == []  # it needs none without a store
    assert [one["email"] for one in by_role["node"]["serviceAccounts"]] == ["reader@example.org"]

    cloud_api.admit_client("tens", "198.51.100.7/32")
    assert room.gce.firewalls[f"{network}-clients"]["sourceRanges"] == ["192.0.2.1/32", "198.51.100.7/32"]
    burla.delete_cluster("tens")
    assert room.machines == []


def _configuration() -> dict[str, object]:
    """Return Dask's global configuration, also of what creating a cluster imports."""
    import dask_cloudprovider.gcp
    import distributed  # noqa: F401

    assert dask_cloudprovider.gcp
    return copy.deepcopy(dask.config.config)


@in_gce_room
def test_a_job_grows_over_zones_without_stock_and_gets_gpus(room: GceRoom) -> None:
    """GPUs that a machine has, and such as are attached where the zone has them; a quota is shown in Google's words."""
    grow.TIMERS, grow.IDLE_S, grow.LOOK_S, grow.MEASURE_S = SHORT, 60.0, 0.5, 0.5
    make("grown", cloud="gcp", nodes=0, spot=True)

    def gpu_here(x: int) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with burla.use("grown"), contextlib.redirect_stderr(io.StringIO()) as told:
        room.gce.refusals = {f"{REGION}-a/n2-standard-{cpus}": OUT_OF_STOCK for cpus in (2, 4)}
        job = burla.submit(_meeting(room, 2), range(2), func_cpu=2, grow=True)
        assert job.results() == [0, 1]
        assert {vm.zone[-1] for vm in burla.cluster_status("grown").machines if vm.role == "node"} == {"b"}
        room.gce.refusals = {"n2-standard-2": "quotaExceeded"}
        job = burla.submit(abs, [-1], func_cpu=2, image="example.org/tools:1", grow=True)
        job.follow(spinner=False)
        assert job.results() == [1]
        for gpu in ("T4", "L4"):
            [identity] = burla.submit(gpu_here, [1], func_gpu=gpu, grow=True).results()
            assert identity.startswith("GPU-")
    assert "n2-standard-2 is to be had in no zone: us-central1-a: no n2-standard-2 for you: Quota" in told.getvalue()
    bodies = {body["machineType"].rpartition("/")[2]: body for body in room.gce.inserted}
    t4, l4 = bodies["n1-standard-4"], bodies["g2-standard-4"]
    [attached] = t4["guestAccelerators"]
    assert attached["acceleratorType"].endswith(f"/{REGION}-b/acceleratorTypes/nvidia-tesla-t4")
    assert attached["acceleratorCount"] == 1 and "guestAccelerators" not in l4
    for body in (t4, l4):
        assert "nvidia" in body["disks"][0]["initializeParams"]["sourceImage"]
        assert {"key": "install-nvidia-driver", "value": "True"} in body["metadata"]["items"]
        assert body["scheduling"] == {
            "provisioningModel": "SPOT",
            "preemptible": True,
            "automaticRestart": False,
            "onHostMaintenance": "TERMINATE",
            "instanceTerminationAction": "DELETE",
        }
    assert [machine.containers[0].gpus for machine in room.machines if machine.type in ("n1-standard-4",)] == [True]
    burla.delete_cluster("grown")


def _meeting(room: GceRoom, calls: int) -> Callable[[int], int]:
    """Return a function whose calls all wait until so many of them run at once."""
    prefix = str(room.folder / "met")

    def meet(x: int) -> int:
        import glob
        import time

        open(f"{prefix}-{x}", "w").close()
        while len(glob.glob(f"{prefix}-*")) < calls:
            time.sleep(0.05)
        return x

    return meet


@in_gce_room
def test_a_private_image_is_got_with_the_identity_of_the_nodes(room: GceRoom) -> None:
    """The head, which has none, runs Python's own; its machine is told nothing of the registry."""
    image = "europe-docker.pkg.dev/mine/images/tools:1"
    make("private", cloud="gcp", nodes=1, image=image, role="reader@example.org")
    head, node = room.machines
    assert head.logins == [] and head.containers[0].image == lifecycle.default_image()
    assert node.containers[0].image == image
    [login] = node.logins
    assert login[-2:] == ["https://europe-docker.pkg.dev", "reader@example.org"]  # its token, in the room
    with burla.use("private"):
        assert burla.remote_parallel_map(abs, [-1], image=image) == [1]
    burla.delete_cluster("private")


@in_gce_room
def test_a_lost_spot_node_and_a_restarted_head_lose_no_result(room: GceRoom) -> None:
    """The calls that ran there run elsewhere; the head finds its store on its disk."""

    def slow(x: int) -> int:
        import time

        time.sleep(1)
        return x

    make("spotty", cloud="gcp", nodes=2, spot=True)
    head, lost, _ = room.machines
    with burla.use("spotty"):
        job = burla.submit(slow, range(24))
        wait_until(lambda: job.progress.done >= 4, 30, "first results")
        room.preempt(lost)
        wait_until(lambda: job.progress.done >= 10, 30, "more results")
        room.reboot(head)
        assert job.results() == list(range(24))
    assert len(room.gce.seen()) == 2
    burla.delete_cluster("spotty")


@in_gce_room
def test_idle_machines_end_and_what_is_only_stopped_is_swept(room: GceRoom) -> None:
    """A machine with an identity that may deletes itself; of another the disk stays, until somebody looks."""
    room.gce.may_delete = {"janitor@example.org"}
    make("idle", cloud="gcp", nodes=1, idle_s=4, role="janitor@example.org")
    wait_until(lambda: not room.machines, 60, "the end of idle machines")
    wait_until(lambda: _statuses(room) == ["TERMINATED"], 10, "the end of the node")  # the head has no identity
    with pytest.raises(burla.ClusterLost, match="to boot it again: burla cluster create idle"):
        burla.use("idle")
    make("idle", nodes=1, idle_s=600, role="reader@example.org", cloud="gcp")  # what was left of it is gone
    assert len(room.gce.seen()) == 2
    make("other", cloud="gcp", nodes=1, idle_s=4)
    wait_until(lambda: Counter(_statuses(room)) == {"RUNNING": 2, "TERMINATED": 2}, 60, "the end of idle machines")
    room.shut_down(room.machines[1])
    assert burla.cluster_status("idle").up and "1 machine," in str(burla.cluster_status("idle"))

    [broken] = [vm for vm in burla.cluster_status("idle").machines if vm.state == "stopped"]
    assert "Registered to" in run_apart(clouds.connect(record.get("idle")).console(broken.id))
    scale("idle", 1)
    assert _statuses(room).count("TERMINATED") == 2 and _nodes(room) == {"n2-standard-4": 1}
    _let_expire(room.gce)
    found = burla.collect_garbage(cloud="gcp", delete=True)
    assert {one.cluster for one in found.found} == {"other"} and len(found.found) == 6
    assert {one.kind: one.state for one in found.found}["machine"] == "stopped"
    assert burla.cluster_status("idle").up and len(room.gce.seen()) == 2
    burla.delete_cluster("idle")


def _let_expire(gce: FakeGce) -> None:
    over = {"burla-expiry": f"{time.time() - 60:.0f}"}
    for one in [*gce.instances.values(), *gce.disks.values()]:
        one["labels"] |= over
    for rule in gce.firewalls.values():
        rule["description"] = json.dumps(json.loads(rule["description"]) | over)


@in_gce_room
def test_what_cannot_be_had_is_refused_in_google_s_words_and_leaves_nothing(room: GceRoom) -> None:
    """A machine that there is not, one that no zone has, a name that the cloud does not take."""
    with pytest.raises(burla.CloudError, match="us-central1 has no machine type n2-hugest"):
        make("broken", cloud="gcp", machine="n2-hugest")
    room.gce.refusals = {"n2-standard-4": OUT_OF_STOCK}
    with pytest.raises(burla.CloudError, match=rf"us-central1-a: .*{OUT_OF_STOCK}.*; us-central1-b: ") as caught:
        make("broken", cloud="gcp")
    assert caught.value.step == "starting 1 node (n2-standard-4)" and caught.value.left == []
    with pytest.raises(burla.CloudError, match="the name of a cluster there must be of small letters"):
        make("Broken", cloud="gcp")
    with pytest.raises(burla.CloudError, match="The resource 'mars-north1' was not found"):
        make("broken", cloud="gcp", region="mars-north1")
    assert room.left() == [] and record.find("broken") is None


KILLED = """
import os, signal, sys
from googleapiclient.http import HttpRequest
from burla.clusters import gcp_client, lifecycle
step, count = sys.argv[2], int(sys.argv[3])
def reached(name):
    global count
    count -= name.startswith(step)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
execute = HttpRequest.execute
def executing(self, *args):
    answer = execute(self, *args)
    reached(self.methodId)
    return answer
HttpRequest.execute = executing
lifecycle.say = reached
from tests.clouds.clusters import make
make(sys.argv[1], cloud="gcp", nodes=1, idle_s=10)
reached("the end")
"""
STEPS = [
    ("compute.firewalls.insert", 1),
    ("compute.firewalls.insert", 2),
    ("compute.instances.insert", 1),
    ("compute.instances.insert", 2),
    ("waiting for the head", 1),
    ("waiting for 1 node", 1),
    ("the end", 1),
]


@in_gce_room
def test_a_client_killed_at_any_step_of_create_leaves_what_ends_by_itself(room: GceRoom) -> None:
    """The machines shut down; their disks go with the name, or by the next creation."""
    for number, (step, count) in enumerate(STEPS):
        command = [sys.executable, "-c", KILLED, f"killed-{number}", step, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -9, (step, done.stdout, done.stderr)
    assert len(room.gce.inserted) == 9
    wait_until(lambda: set(_statuses(room)) == {"TERMINATED"}, 60, "the end of all machines")
    for number in range(len(STEPS) - 1):
        burla.delete_cluster(f"killed-{number}")
    make(f"killed-{len(STEPS) - 1}", cloud="gcp")
    burla.delete_cluster(f"killed-{len(STEPS) - 1}")


@in_gce_room
def test_a_client_killed_while_a_job_grows_leaves_what_ends_by_itself(room: GceRoom) -> None:
    """Once machines were asked for, and once one has come."""
    program = """
import os, signal, sys
import burla
from burla import cloud_api
from burla import growth
from burla.clusters import grow
from tests.clouds.clusters import SHORT
tell = growth._Job.tell
async def telling(self, text, over=False):
    await tell(self, text, over)
    if text.startswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
growth._Job.tell = telling
grow.TIMERS, grow.IDLE_S, grow.LOOK_S = SHORT, 5.0, 0.5
def endless(x):
    import time
    time.sleep(600)
burla.use("killed")
burla.remote_parallel_map(endless, range(2), func_cpu=2, image=sys.argv[2], grow=True)
"""
    make("killed", cloud="gcp", nodes=0, idle_s=8)
    for step in ("growing", "killed has 1 more node"):
        command = [sys.executable, "-c", program, step, f"example.org/step:{len(room.gce.inserted)}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -9, (step, done.stdout, done.stderr)
    assert len(room.gce.inserted) >= 2
    wait_until(lambda: room.machines == [], 90, "the end of all machines")
    burla.delete_cluster("killed")


# without machines


@pytest.fixture
def gce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGce]:
    room, fake = GceRoom(tmp_path), FakeGce()
    port = fake.serve("127.0.0.1", 0)
    path = Path(room.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    path.write_text(path.read_text().replace("http://192.0.2.1:5000", f"http://127.0.0.1:{port}"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", f"http://127.0.0.1:{port}/compute/v1/")
    yield fake
    fake.close()


def test_planted_orphans_are_found_and_deleted_and_only_those(gce: FakeGce) -> None:
    """In every region: machines, disks and firewall rules; others', and what a living head claims, stay."""

    def plant(cluster: str, role: str = "node", owner: str = OWNER, expiry_s: float = -60, zone: str = "") -> set[str]:
        tags = {"burla-cluster": cluster, "burla-name": cluster, "burla-owner": owner, "burla-role": role}
        tags["burla-expiry"] = f"{time.time() + expiry_s:.0f}"
        where, name = zone or f"{REGION}-a", f"burla-{cluster}-{role}-{owner}"
        disk = {"autoDelete": False}
        machine = {"name": name, "labels": tags, "status": "RUNNING", "machineType": "x/n2-standard-2", "disks": [disk]}
        gce.instances[f"{where}/{name}"] = machine
        gce.disks[f"{where}/{name}"] = {"name": name, "labels": tags}
        described = json.dumps({**tags, "region": where[:-2]})
        gce.firewalls[name] = {"name": name, "description": described, "network": "x"}
        return {f"{where}/{name}", name}

    plant("living", "head"), plant("living"), plant("others", owner="you"), plant("begun", expiry_s=600)
    gce.instances[f"{REGION}-a/x"] = {"name": "x", "status": "RUNNING", "machineType": "x/y"}
    gce.disks[f"{REGION}-a/y"] = {"name": "y"}
    gce.firewalls["burla-by-hand"] = {"name": "burla-by-hand", "description": "not [json", "network": "x"}
    stay = {*gce.instances, *gce.disks, *gce.firewalls}
    gone = plant("dead") | plant("dead", "head", zone="europe-west4-b")
    gce.instances["europe-west4-b/burla-dead-head-" + OWNER]["status"] = "TERMINATED"

    there = burla.collect_garbage(cloud="gcp", region="europe-west4")
    assert {one.region for one in there.found} == {"europe-west4"} and len(there.found) == 3
    shown = burla.collect_garbage(cloud="gcp")
    assert {one.id for one in shown.found} == gone and {one.cluster for one in shown.found} == {"dead"}
    assert burla.collect_garbage(cloud="gcp", delete=True).deleted
    wait_until(lambda: set(gce.seen()) | {*gce.disks, *gce.firewalls} == stay, 10, "the end of orphans")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"name": 1}, "name: 1 is no string"),
        ({"labels": {"a": True}}, "labels.a: True is no string"),
        ({"disks": [{"autoDelete": "true"}]}, r"disks[0].autoDelete: 'true' is no boolean"),
        ({"machine_type": "x"}, "machine_type: unknown"),
        ({"scheduling": {"provisioningModel": "CHEAP"}}, "scheduling.provisioningModel: 'CHEAP' is none of"),
    ],
)
def test_a_body_that_does_not_fit_google_s_schema_is_noticed(body: object, where: str) -> None:
    """Else the other tests would prove nothing of bodies."""
    schemas = FakeGce().schemas
    [told] = complaints(body, {"$ref": "Instance"}, schemas, "Instance")
    assert told.startswith(f"Instance.{where}")
    assert list(complaints({"name": "x", "disks": [{"boot": True}]}, {"$ref": "Instance"}, schemas, "Instance")) == []
