"""A room of machines behind moto's make-believe EC2."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.clouds.machine import Instance, Machine
from tests.clouds.room import CLIENT_IP, Room, in_room
from tests.nvml import Simulated

REGION = "us-east-1"
_PORT = 5000
_START_S = 60.0
_GONE = ("shutting-down", "terminated", "stopping", "stopped")


class MachineRoom(Room):
    """Runs moto's instances."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_PORT}",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIDROOM",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-room",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",  # Google's tools look for a server that is not there
            "BURLA_CLIENT_CIDR": f"{CLIENT_IP}/32",
        }
        self.ec2 = self.client("ec2")

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
        """Return machines, volumes, addresses, keys and security groups."""
        ec2 = self.ec2
        machines = [f"{one['InstanceId']} {one['Tags']}" for one in self.instances() if _state(one) not in _GONE[:2]]
        volumes = [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]]
        addresses = [one["PublicIp"] for one in ec2.describe_addresses()["Addresses"]]
        keys = [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]]
        groups = [one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]]
        return machines + volumes + addresses + keys + [group for group in groups if group != "default"]

    # what a room needs

    def _serve(self) -> None:
        with (self.folder / "moto.log").open("wb") as log:
            self._moto = subprocess.Popen(
                [sys.executable, "-m", "tests.clouds.fake_ec2", str(_PORT), str(self.folder)], stdout=log, stderr=log
            )
        until = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", _PORT), 1).close()
                return
            except OSError:
                if self._moto.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.folder / "moto.log").read_text()) from None
                time.sleep(0.05)

    def _close(self) -> None:
        self._moto.terminate()
        self._moto.wait(10)

    def _seen(self) -> list[Instance]:
        return [
            Instance(
                one["InstanceId"],
                one["InstanceType"],
                _state(one) == "running",
                _state(one) in _GONE,
                {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])},
                one.get("PrivateIpAddress", ""),
                one.get("PublicIpAddress"),
            )
            for one in self.instances()
        ]

    def _user_data(self, instance: Instance) -> str:
        answer = self.ec2.describe_instance_attribute(InstanceId=instance.id, Attribute="userData")
        return base64.b64decode(answer["UserData"]["Value"]).decode()

    def _gpus(self, instance: Instance) -> list[Simulated]:
        [told] = self.ec2.describe_instance_types(InstanceTypes=[instance.type])["InstanceTypes"]
        return [
            Simulated(f"NVIDIA {gpu['Name']}", f"GPU-{instance.id}-{number}", gpu["MemoryInfo"]["SizeInMiB"] * 2**20)
            for gpu in told.get("GpuInfo", {}).get("Gpus", [])
            for number in range(gpu["Count"])
        ]

    def _has_shut_down(self, instance: Instance) -> None:
        self.ec2.terminate_instances(InstanceIds=[instance.id])  # its behaviour at shutdown


def _state(instance: dict[str, Any]) -> str:
    return instance["State"]["Name"]


in_machine_room = in_room(MachineRoom)
