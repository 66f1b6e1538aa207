"""What is left over in a cloud is found and deleted, and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import burla
from burla import cli, cloud_api
from burla.clusters import cloud as clouds
from burla.clusters import gc, lifecycle, record
from burla.clusters.apart import run_apart
from burla.clusters.cloud import DISK, HEAD, MACHINE, NETWORK, NODE, Refused, Resource
from tests.clouds.clusters import SHORT, wait_until
from tests.clouds.machine_room import MachineRoom, in_machine_room
from tests.clouds.room import CLIENT_IP, ROOT

HERE, ELSEWHERE = "us-east-1", "eu-west-1"
NOW_S = 1_000_000.0


def _tags(cluster: str, expiry_s: float = NOW_S - 60, owner: str = "me", role: str = NODE) -> dict[str, str]:
    return {
        "Name": f"burla-{cluster}",
        "burla-cluster": cluster,
        "burla-name": cluster,
        "burla-owner": owner,
        "burla-role": role,
        "burla-expiry": f"{expiry_s:.0f}",
    }


# what is left over: decided


def _one(kind: str, cluster: str, state: str = "", **tags: Any) -> Resource:
    return Resource(kind, f"{kind}-{cluster}", HERE, _tags(cluster, **tags), state)


@pytest.mark.parametrize("state", ["starting", "running", "stopped"])
def test_a_living_head_claims_all_of_its_cluster_and_of_no_other(state: str) -> None:
    """A stopped one does not; nor does the head of somebody else's cluster, or a disk of a head."""
    claimed = [_one(NETWORK, "a"), _one(DISK, "a"), _one(MACHINE, "a", "running")]
    head = replace(_one(MACHINE, "a", state, role=HEAD), id="head")
    left = [_one(NETWORK, "b"), _one(DISK, "b", role=HEAD), _one(MACHINE, "b", "running")]
    gone = gc.orphans([*claimed, head, *left], "me", NOW_S)
    assert gone == (left if state != "stopped" else [*claimed, head, *left])


def test_while_somebody_may_be_at_work_on_a_cluster_nothing_of_it_is_left_over() -> None:
    """The latest of its expiries counts."""
    old, new = _one(NETWORK, "a", expiry_s=NOW_S - 1), _one(MACHINE, "a", "starting", expiry_s=NOW_S + 1)
    assert gc.orphans([old, new], "me", NOW_S) == []
    assert gc.orphans([old, new], "me", NOW_S + 2) == [old, new]
    assert gc.orphans([old], "me", NOW_S) == [old]


@pytest.mark.parametrize("tag", ["burla-owner", "burla-cluster", "burla-expiry"])
@pytest.mark.parametrize("value", [None, "", "other"])
def test_what_does_not_carry_all_our_tags_is_never_left_over(tag: str, value: str | None) -> None:
    """What a person has tagged by hand, or a cloud's search has found by mistake."""
    tags = _tags("a") if value is None else _tags("a") | {tag: value}
    if value is None:
        del tags[tag]
    one = Resource(DISK, "disk", HERE, tags)
    assert gc.orphans([one], "me", NOW_S) == ([one] if (tag, value) == ("burla-cluster", "other") else [])


class _Refusing:
    """An account that refuses some of what it is asked to remove."""

    def __init__(self, *refused: str):
        self.refused, self.removed = refused, []

    async def regions(self) -> list[str]:
        return [HERE, ELSEWHERE]

    async def tagged(self, owner: str, region: str) -> list[Resource]:
        if region in self.refused:
            raise Refused("not allowed")
        return [_one(DISK, region)]

    async def remove(self, one: Resource) -> None:
        if one.id in self.refused:
            raise Refused("not allowed")
        self.removed.append(one.id)


def test_what_a_cloud_refuses_keeps_nothing_else_from_being_found_and_removed() -> None:
    """Machines go first: they hold the others."""
    account = _Refusing(ELSEWHERE, "disk-a")
    found, refused = run_apart(gc.search(account, [ELSEWHERE, HERE], "me"))
    assert ([one.region for one in found], list(refused)) == ([HERE], [ELSEWHERE])
    gone = [_one(DISK, "a"), _one(NETWORK, "a"), _one(MACHINE, "a", "running")]
    assert [one.id for one, _ in run_apart(gc.remove(account, gone))] == ["disk-a"]
    assert account.removed == ["machine-a", "network-a"]


# what is left over: found and deleted, in moto's EC2


class _Ec2:
    """moto's EC2, where things of clusters can be planted."""

    def __init__(self) -> None:
        import boto3

        self._clients = {region: boto3.client("ec2", region_name=region) for region in (HERE, ELSEWHERE)}

    def group(self, tags: dict[str, str], region: str = HERE) -> str:
        ec2 = self._clients[region]
        wanted = [{"ResourceType": "security-group", "Tags": _as_aws(tags)}]
        made = ec2.create_security_group(GroupName=os.urandom(6).hex(), Description="x", TagSpecifications=wanted)
        return made["GroupId"]

    def disk(self, tags: dict[str, str], region: str = HERE) -> str:
        wanted = [{"ResourceType": "volume", "Tags": _as_aws(tags)}]
        made = self._clients[region].create_volume(AvailabilityZone=f"{region}a", Size=1, TagSpecifications=wanted)
        return made["VolumeId"]

    def machine(self, tags: dict[str, str], group: str | None = None, region: str = HERE) -> tuple[str, str]:
        """Start one; return its id and its disk's."""
        kinds = ("instance", "volume")
        [made] = self._clients[region].run_instances(
            ImageId="ami-0ubuntu",
            InstanceType="t3.micro",
            MinCount=1,
            MaxCount=1,
            SecurityGroupIds=[group] if group else [],
            TagSpecifications=[{"ResourceType": kind, "Tags": _as_aws(tags)} for kind in kinds],
        )["Instances"]
        return made["InstanceId"], self._disks(region, "attachment.instance-id", made["InstanceId"])[0]

    def _disks(self, region: str, name: str, value: str) -> list[str]:
        found = self._clients[region].describe_volumes(Filters=[{"Name": name, "Values": [value]}])
        return [one["VolumeId"] for one in found["Volumes"]]

    def all(self) -> set[str]:
        """Return what there is, apart from what an account has by itself."""
        there: set[str] = set()
        for ec2 in self._clients.values():
            there |= {one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"] if one.get("Tags")}
            there |= {one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]}
            for reserved in ec2.describe_instances()["Reservations"]:
                there |= {one["InstanceId"] for one in reserved["Instances"] if one["State"]["Name"] != "terminated"}
        return there


def _as_aws(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Ec2]:
    path = tmp_path / "moto.log"
    with path.open("wb") as log:
        command = [sys.executable, "-m", "tests.clouds.fake_ec2", "0", str(tmp_path)]
        moto = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        wait_until(lambda: " * Running on" in path.read_text(), 60, "moto")
        environ = {
            "AWS_ENDPOINT_URL": re.findall(r"Running on (http://[\d.:]+)", path.read_text())[0],
            "AWS_DEFAULT_REGION": HERE,
            "AWS_ACCESS_KEY_ID": "AKID",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "LOGNAME": "me",
            "NO_GCE_CHECK": "true",
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        yield _Ec2()
    finally:
        moto.terminate()
        moto.wait(10)


def _gc(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["cluster", "gc", "--json", *options])
    told = json.loads(capsys.readouterr().out)
    # a cloud that there are no credentials for is said not to be searched
    lacking = "in gcp: Your default credentials", "in azure: no subscription is chosen"
    told["not_searched"] = [one for one in told["not_searched"] if not any(text in one for text in lacking)]
    return code, told


@pytest.mark.slow
def test_planted_orphans_are_found_and_deleted_and_only_those(ec2: _Ec2, capsys: pytest.CaptureFixture[str]) -> None:
    """In every region; without --yes they are only shown."""
    over_s, later_s = time.time() - 7200, time.time() + 600
    for tags in (_tags("others", over_s, owner="you"), {"Name": "untagged"}, {"burla-owner": "me", "team": "x"}):
        ec2.group(tags), ec2.disk(tags), ec2.machine(tags)
    living = ec2.group(_tags("living", over_s, role="network"))
    ec2.machine(_tags("living", over_s, role=HEAD), living)
    ec2.machine(_tags("living", over_s), living)
    ec2.disk(_tags("living", over_s))
    ec2.group(_tags("begun", later_s, role="network"))
    ec2.machine(_tags("nodes", later_s))
    stay = ec2.all()

    orphans: set[str] = set()
    for region in (ELSEWHERE, HERE):
        group = ec2.group(_tags("dead", over_s, role="network"), region)
        orphans |= {group, ec2.disk(_tags("dead", over_s), region), *ec2.machine(_tags("dead", over_s), group, region)}
    code, told = _gc(capsys)
    assert (code, told["deleted"], told["not_searched"]) == (4, False, [])
    assert {one["id"] for one in told["found"]} == orphans and len(told["found"]) == len(orphans)
    assert {(one["cluster"], one["cloud"]) for one in told["found"]} == {("dead", "aws")}
    assert {(one["kind"], one["machine"], one["state"]) for one in told["found"] if one["machine"]} == {
        (MACHINE, "t3.micro", "running")
    }
    assert ec2.all() == stay | orphans

    code, told = _gc(capsys, "--cloud", "aws", "--region", ELSEWHERE)
    assert code == 4 and {one["region"] for one in told["found"]} == {ELSEWHERE}
    assert cli.main(["cluster", "gc", "--cloud", "aws", "--region", HERE]) == 4
    out, err = capsys.readouterr()
    assert re.search(rf"^network +{group} +dead +network +aws +{HERE} +2.0 h ago$", out, re.MULTILINE)
    assert "burla: nothing was deleted" in err

    code, told = _gc(capsys, "--yes")
    assert (code, told["deleted"], {one["id"] for one in told["found"]}) == (0, True, orphans)
    assert ec2.all() == stay
    assert _gc(capsys, "--yes") == (0, {"found": [], "deleted": True, "not_searched": []})


@in_machine_room
def test_a_creation_in_progress_loses_nothing_to_a_collection(room: MachineRoom) -> None:
    """One collects before each of its steps; once it is up, it is claimed as long as it has a head."""
    empty = dict.fromkeys(("cloud", "region", "machine", "image", "idle_minutes", "spot", "disk_gb", "role"))
    cluster = cloud_api.settings("new", **{**empty, "cloud": "aws"})
    steps: list[str] = []

    def collect(step: str) -> None:
        steps.append(step)
        assert burla.collect_garbage(cloud="aws", region=HERE, delete=True).found == ()

    timers = replace(SHORT, boot_s=60)
    cluster = run_apart(lifecycle.create(cluster, 1, f"{CLIENT_IP}/32", timers, collect))
    assert "starting the head (m7i.large)" in steps and "starting 1 node (m7i.xlarge)" in steps
    with burla.use("new"):
        assert burla.remote_parallel_map(abs, [-1]) == [1]

    late_s = time.time() + timers.boot_s + 60
    account = clouds.account("aws")
    found, _ = run_apart(gc.search(account, [HERE], cluster.owner))
    assert len(found) == 5 and gc.orphans(found, cluster.owner, late_s) == []
    for machine in room.machines:
        room.preempt(machine)
    found, _ = run_apart(gc.search(account, [HERE], cluster.owner))
    assert [one.kind for one in gc.orphans(found, cluster.owner, late_s)] == [NETWORK]
    assert burla.collect_garbage(cloud="aws", region=HERE).found == ()
    assert record.get("new").id == cluster.id
    burla.delete_cluster("new")
