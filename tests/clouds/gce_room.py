"""A room of machines behind a make-believe Compute Engine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from burla.clusters import catalog
from tests.clouds.fake_gce import PROJECT, FakeGce
from tests.clouds.machine import Instance, Machine
from tests.clouds.room import BRIDGE, CLIENT_IP, Room, in_room
from tests.nvml import Simulated

REGION = "us-central1"
_PORT = 5000
_METADATA = "169.254.169.254"
_PRODUCTS = {"L4": "NVIDIA L4", "T4": "Tesla T4"}


class GceRoom(Room):
    """Runs the instances of `gce`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._names: dict[str, str] = {}  # id → zone/name
        self.gce = FakeGce(console=self._console)
        self.environ = {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"http://{CLIENT_IP}:{_PORT}/compute/v1/",
            "CLOUDSDK_COMPUTE_REGION": REGION,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self._credentials()),
            "BURLA_CLIENT_CIDR": f"{CLIENT_IP}/32",
        }

    def _credentials(self) -> Path:
        """Return the file of a service account, whose tokens the room hands out."""
        self.private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.folder / "credentials.json"
        account: dict[str, Any] = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "key",
            "private_key": self.private_key.decode(),
            "client_email": "client@example.org",
            "token_uri": f"http://{CLIENT_IP}:{_PORT}/token",
        }
        path.write_text(json.dumps(account))
        return path

    def preempt(self, machine: Machine) -> None:
        """The cloud takes a machine back with no warning."""
        with self._lock:
            machine.power_off()
            self.gce.preempt(self._names[machine.id])

    def shut_down(self, machine: Machine) -> None:
        """A machine ends from inside."""
        with self._lock:
            machine.power_off()
            self.gce.stop(self._names[machine.id])

    def left(self) -> list[str]:
        """Return instances, disks and firewall rules, and what did not fit the published schema."""
        assert self.gce.complaints == []
        return [f"{one['name']} {one['status']}" for one in self.gce.seen().values()] + [
            *self.gce.disks,
            *self.gce.firewalls,
        ]

    def _console(self, identity: str) -> str:
        [machine] = [one for number, one in self.history.items() if self._names[number] == identity][-1:] or [None]
        return machine.console if machine is not None else ""

    def _serve(self) -> None:
        subprocess.run(["ip", "addr", "add", f"{_METADATA}/32", "dev", BRIDGE], check=True)
        self.gce.serve(CLIENT_IP, _PORT, _METADATA)

    def _close(self) -> None:
        self.gce.close()

    def _seen(self) -> list[Instance]:
        there = self.gce.seen()
        self._names |= {one["id"]: identity for identity, one in there.items()}
        return [
            Instance(
                one["id"],  # a name may be used again
                one["machineType"].rpartition("/")[2],
                one["status"] == "RUNNING",
                one["status"] in ("STOPPING", "TERMINATED"),
                one["labels"],
                one["networkInterfaces"][0]["networkIP"],
                one["networkInterfaces"][0]["accessConfigs"][0]["natIP"],
            )
            for one in there.values()
        ]

    def _user_data(self, instance: Instance) -> str:
        items = self.gce.instances[self._names[instance.id]]["metadata"]["items"]
        [found] = [one["value"] for one in items if one["key"] == "user-data"]
        return found

    def _gpus(self, instance: Instance) -> list[Simulated]:
        kind = catalog.find("gcp", instance.type)
        assert kind is not None
        attached = self.gce.instances[self._names[instance.id]].get("guestAccelerators", [])
        count = sum(one["acceleratorCount"] for one in attached) if instance.type.startswith("n1-") else kind.gpus
        return [
            Simulated(_PRODUCTS[kind.gpu], f"GPU-{instance.private_ip}-{number}", 16 * 2**30) for number in range(count)
        ]

    def _has_shut_down(self, instance: Instance) -> None:
        self.gce.stop(self._names[instance.id])


in_gce_room = in_room(GceRoom)
