"""`burla cluster …` for clusters in a cloud."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from burla.clusters import record
from tests.clouds.machine_room import MachineRoom, in_machine_room


def _burla(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "burla.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout, done.stderr


@in_machine_room
def test_the_commands_follow_a_cluster_through_its_life(room: MachineRoom) -> None:
    """Each step is told on stderr, what was asked for on stdout."""
    code, out, err = _burla("cluster", "create", "demo", "--cloud", "aws", "--nodes", "2", "--machine", "c7i.large")
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "burla: looking at the account (aws)",
        "burla: looking at c7i.large",
        "burla: making a network for demo in us-east-1, open to 192.0.2.1/32",
        "burla: starting the head (m7i.large)",
        "burla: starting 2 nodes (c7i.large)",
        "burla: waiting for the head, to bring burla there",
        "burla: waiting for 2 nodes",
        *re.findall(r"burla: 1 of 2 nodes joined", err),
        "burla: 2 of 2 nodes joined",
        "burla: demo is up: burla.use('demo'), or: burla use demo",
    ]
    code, _, err = _burla("cluster", "create", "demo", "--cloud", "aws")
    assert (code, err) == (
        1,
        "burla: looking at the account (aws)\nburla: 'demo' exists: burla cluster status demo, or delete it first.\n",
    )
    code, out, _ = _burla("cluster", "status", "demo")
    lines = out.splitlines()
    assert code == 0
    title = r"demo \(aws us-east-1\) is up at tls://[\d.]+:8786, ends after 10 min idle\."
    assert re.fullmatch(title, lines[0])
    assert re.fullmatch(r"  head burla-demo-head: m7i.large, us-east-1a, running, 0 min old", lines[1])
    assert re.fullmatch(r"  node burla-demo-node-\w{8}: c7i.large, us-east-1a, running, 0 min old", lines[2])
    assert sum("image python:3" in line for line in lines) == 2

    assert _burla("use", "demo")[0] == 0
    code, out, _ = _burla("clusters")
    assert re.search(r"^demo +tls://\S+ +aws +yes +burla use$", out, re.MULTILINE)
    code, _, err = _burla("cluster", "scale", "demo", "1")
    assert (code, err) == (0, "burla: looking at demo\nburla: ending 1 node\n")
    code, out, _ = _burla("cluster", "list")
    assert re.search(r"^demo +aws +us-east-1 +running +1 +tls://\S+$", out, re.MULTILINE)

    code, out, _ = _burla("cluster", "stop", "demo")
    assert (code, out, room.machines) == (0, "demo has ended.\n", [])
    code, out, _ = _burla("cluster", "status", "demo")
    assert (code, out) == (3, "demo (aws us-east-1) is not up. To boot it again: burla cluster create demo.\n")
    assert _burla("cluster", "create", "demo")[0] == 0
    assert [machine.type for machine in room.machines] == ["m7i.large", "c7i.large"]
    assert _burla("cluster", "delete", "demo")[0] == 0
    for command in (["status"], ["scale", "1"], ["stop"], ["delete"]):
        code, _, err = _burla("cluster", command[0], "demo", *command[1:])
        assert (code, err) == (3, "burla: there is no cluster 'demo' in a cloud; known are: none.\n")


@in_machine_room
def test_without_credentials_nothing_is_made(room: MachineRoom) -> None:
    """The cloud's own words say what is missing."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del os.environ[name]
    code, _, err = _burla("cluster", "create", "demo", "--cloud", "aws")
    assert code == 1
    assert "burla: demo: looking at the account (aws): Unable to locate credentials" in err
    assert room.instances() == [] and room.left() == []


@in_machine_room
def test_a_cluster_is_exported_to_another_machine(room: MachineRoom) -> None:
    """The bundle is all that it needs; with the cloud's credentials it admits itself."""
    secret, bundle = room.folder / "passphrase", room.folder / "demo.bundle"
    secret.write_text("correct horse battery\n")
    assert _burla("cluster", "create", "demo", "--cloud", "aws")[0] == 0
    code, out, err = _burla("cluster", "export", "demo", str(bundle), "--passphrase-file", str(secret))
    assert (code, out, err) == (0, f"{bundle} holds demo. There: burla cluster import {bundle}\n", "")
    assert bundle.stat().st_mode & 0o777 == 0o600
    assert _burla("cluster", "export", "demo", str(bundle), "--passphrase-file", str(secret))[0] == 1  # it is there

    here = os.environ["BURLA_HOME"]
    os.environ["BURLA_HOME"] = str(room.folder / "elsewhere")
    os.environ["BURLA_CLIENT_CIDR"] = "198.51.100.7"
    code, out, err = _burla("cluster", "import", str(bundle), "--passphrase-file", str(secret))
    assert (code, out) == (0, "demo is known here: burla use demo\n")
    assert err == "burla: admitting 198.51.100.7/32 to demo\n"
    group = room.ec2.describe_security_groups(GroupNames=[f"burla-demo-{record.get('demo').id}"])["SecurityGroups"][0]
    [rule] = [rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "tcp"]
    assert sorted(one["CidrIp"] for one in rule["IpRanges"]) == ["192.0.2.1/32", "198.51.100.7/32"]
    program = "import burla; burla.use('demo'); print(burla.remote_parallel_map(abs, [-1]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
    os.environ["BURLA_HOME"] = here
    assert _burla("cluster", "delete", "demo")[0] == 0
