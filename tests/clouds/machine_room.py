"""A machine room: real processes behind moto's make-believe EC2, each machine in namespaces of its own.

    @in_machine_room
    def test_something(room: MachineRoom) -> None: ...

The test runs in a process of its own, in a private network: a bridge, this process at one end, the machines at others.
moto answers the EC2 API; the room watches it, switches on what it says is running, and terminates what shuts itself
down, as EC2 does. After the test nothing may be left in the cloud.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.machine import Machine
from tests.nvml import Simulated

ROOT = Path(__file__).parents[2]
CLIENT_IP = "192.0.2.1"
REGION = "us-east-1"
_PORT = 5000
_BRIDGE = "cloud"
_LOOK_S = 0.1
_START_S = 60.0
_GONE = ("shutting-down", "terminated", "stopping", "stopped")


def in_machine_room(test: Callable[[MachineRoom], None]) -> Callable[[], None]:
    """Make of a function with a room a test that runs in a private network. It is skipped where there can be none."""

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def run() -> None:
        reason = _missing()
        if reason is not None:
            pytest.skip(reason)
        command = [*_namespaces(), sys.executable, "-m", __name__, test.__module__, test.__name__]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.in_room = test  # pyright: ignore[reportFunctionMemberAccess]
    return run


def _namespaces() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]


def _missing() -> str | None:
    """Return why no private network can be made here."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"the machine room needs the program {program}"
    bridge = ["ip", "link", "add", "x", "type", "bridge"]
    tried = subprocess.run([*_namespaces(), *bridge], capture_output=True, text=True)
    return f"the machine room needs namespaces: {tried.stderr.strip()}" if tried.returncode else None


class MachineRoom:
    """Runs moto's instances as processes of this machine.

    Settings for tests: `images`: container image → path of its Python, None for one that nobody has; `hangs`: whether a
    machine with these tags never gets beyond its start.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: dict[str, str | None] = {}
        self.hangs: Callable[[dict[str, str]], bool] = lambda tags: False
        self.history: dict[str, Machine] = {}  # all that ever booted
        self.errors: list[Exception] = []
        self._skipped: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_PORT}",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIDROOM",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-room",
            "AWS_EC2_METADATA_DISABLED": "true",
            "BURLA_CLIENT_CIDR": f"{CLIENT_IP}/32",
        }
        self.ec2 = self.client("ec2")

    def __enter__(self) -> MachineRoom:
        for command in (
            ["link", "set", "lo", "up"],
            ["link", "add", _BRIDGE, "type", "bridge"],
            ["addr", "add", f"{CLIENT_IP}/32", "dev", _BRIDGE],
            ["link", "set", _BRIDGE, "up"],
            ["route", "add", "default", "dev", _BRIDGE, "src", CLIENT_IP],
        ):
            subprocess.run(["ip", *command], check=True)
        with (self.folder / "moto.log").open("wb") as log:
            self._moto = subprocess.Popen(
                [sys.executable, "-m", "tests.clouds.fake_ec2", str(_PORT), str(self.folder)], stdout=log, stderr=log
            )
        self._wait_for_moto()
        self._thread = threading.Thread(target=self._watch, name="machine-room", daemon=True)
        self._thread.start()
        return self

    def _wait_for_moto(self) -> None:
        until = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", _PORT), 1).close()
                return
            except OSError:
                if self._moto.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.folder / "moto.log").read_text()) from None
                time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for machine in self.history.values():
            machine.power_off()
        self._moto.terminate()
        self._moto.wait(10)

    @property
    def machines(self) -> list[Machine]:
        """The machines that run now, oldest first."""
        with self._lock:
            return [machine for machine in self.history.values() if machine.running]

    def client(self, service: str) -> Any:
        """Return a client of one of the cloud's services."""
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.environ["AWS_ENDPOINT_URL"],
            aws_access_key_id="room",
            aws_secret_access_key="room",
        )

    # what tests may do to it

    def preempt(self, machine: Machine) -> None:
        """The cloud takes a machine back with no warning."""
        self.ec2.terminate_instances(InstanceIds=[machine.id])
        with self._lock:
            machine.power_off()

    def reboot(self, machine: Machine) -> None:
        """Switch a machine off and on again."""
        with self._lock:
            machine.power_off()
            machine.boot()

    def refuse(self, **codes: str) -> None:
        """Have the cloud refuse machine types, named with _ for the dot, with these error codes."""
        refusals = {name.replace("_", ".", 1): code for name, code in codes.items()}
        new = self.folder / "refusals.new"
        new.write_text(json.dumps(refusals))
        new.rename(self.folder / "refusals.json")

    # what is there

    def instances(self) -> list[dict[str, Any]]:
        """Return what the cloud says of every machine that was ever started."""
        pages = self.ec2.get_paginator("describe_instances").paginate()
        return [one for page in pages for group in page["Reservations"] for one in group["Instances"]]

    def left(self) -> list[str]:
        """Return what in the cloud would bill, or stand in the way of the next test."""
        ec2 = self.ec2
        machines = [f"{one['InstanceId']} {one['Tags']}" for one in self.instances() if _state(one) not in _GONE[:2]]
        volumes = [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]]
        addresses = [one["PublicIp"] for one in ec2.describe_addresses()["Addresses"]]
        keys = [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]]
        groups = [one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]]
        return machines + volumes + addresses + keys + [group for group in groups if group != "default"]

    # the loop

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                for instance in self.instances():
                    self._look(instance)
            except Exception as error:  # noqa: BLE001  looked at when the test is over
                self.errors.append(error)

    def _look(self, instance: dict[str, Any]) -> None:
        with self._lock:
            identity, state = instance["InstanceId"], _state(instance)
            machine = self.history.get(identity)
            if state == "running" and machine is None and identity not in self._skipped:
                tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
                if self.hangs(tags):
                    self._skipped.add(identity)
                else:
                    self._boot(instance)
            elif machine is not None and machine.running:
                if machine.wants_to_end:  # its behaviour at shutdown: terminate
                    self.ec2.terminate_instances(InstanceIds=[identity])
                    machine.power_off()
                elif state in _GONE:
                    machine.power_off()

    def _boot(self, instance: dict[str, Any]) -> None:
        identity = instance["InstanceId"]
        answer = self.ec2.describe_instance_attribute(InstanceId=identity, Attribute="userData")
        user_data = base64.b64decode(answer["UserData"]["Value"]).decode()
        gpus = self._gpus(identity, instance["InstanceType"])
        machine = Machine(self.folder / identity, instance, user_data, self.images, _BRIDGE, gpus)
        machine.boot()
        self.history[identity] = machine

    def _gpus(self, identity: str, kind: str) -> list[Simulated]:
        [told] = self.ec2.describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
        return [
            Simulated(f"NVIDIA {gpu['Name']}", f"GPU-{identity}-{number}", gpu["MemoryInfo"]["SizeInMiB"] * 2**20)
            for gpu in told.get("GpuInfo", {}).get("Gpus", [])
            for number in range(gpu["Count"])
        ]


def _state(instance: dict[str, Any]) -> str:
    return instance["State"]["Name"]


def _run(module: str, name: str) -> None:
    """Run one test in a room, in this process."""
    test = getattr(importlib.import_module(module), name).in_room
    folder = Path(tempfile.mkdtemp(prefix="machine-room-"))
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.environ.update(BURLA_HOME=str(home), DASK_CONFIG=str(folder / "dask"), BURLA_LOCAL_CPUS="1")
    with ExitStack() as stack:
        room = stack.enter_context(MachineRoom(folder))
        os.environ.update(room.environ)
        try:
            test(room)
            left = room.left()
            assert left == [], f"left in the cloud: {left}"
            assert room.errors == []
        except BaseException:
            for machine in room.history.values():
                print(f"--- {machine.id} {machine.tags}\n{machine.console[-3000:]}")
            raise
    shutil.rmtree(folder)


if __name__ == "__main__":
    _run(*sys.argv[1:])
