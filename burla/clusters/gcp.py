"""Clusters on Compute Engine: import it inside functions only."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from burla.clusters import catalog, gcp_machine
from burla.clusters.attempts import in_first_zone, whole
from burla.clusters.boot import PORT
from burla.clusters.cloud import (
    HEAD,
    TAG_CLUSTER,
    TAG_EXPIRY,
    TAG_NAME,
    TAG_OWNER,
    TAG_ROLE,
    Refused,
    Vm,
    VmOrder,
)
from burla.clusters.gcp_client import EXISTS, NOT_FOUND, Client, endpoint
from burla.clusters.gcp_client import connect as connect_client
from burla.clusters.gcp_vm import STATES, HeadVm, NodeVm, Shared
from burla.clusters.record import CloudCluster

_UBUNTU = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
_WITH_GPU_DRIVER = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
_NETWORK = "default"
_DISK = "pd-balanced"  # the one that all our machines take
_ATTACHED = "nvidia-tesla-t4"  # to machines that have no GPU of their own
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")  # the names of machines are longer by 23, and the limit is 63


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of machine in a region. `gpus`: how many; `attached`: how many of them it does not have of itself."""

    zones: tuple[str, ...]
    gpus: int
    attached: int


def connect(cluster: CloudCluster) -> Gcp:
    """Return the cloud of a cluster."""
    return Gcp(cluster)


class Gcp:
    """See `cloud.Cloud`. The id of a machine is zone/name."""

    def __init__(self, cluster: CloudCluster):
        self._cluster = cluster
        self._connected: Client | None = None
        self._kinds: dict[str, _Kind] = {}
        self._tag = f"burla-{cluster.id}"

    async def _client(self) -> Client:
        if self._connected is None:
            self._connected = await connect_client()
        return self._connected

    async def check(self) -> str:
        """Return the region."""
        if not _NAME.fullmatch(self._cluster.name):
            raise Refused(
                "the name of a cluster there must be of small letters, digits and '-', begin with a letter, "
                "and have at most 40 of them"
            )
        region = self._cluster.region or os.environ.get("CLOUDSDK_COMPUTE_REGION", "")
        if not region:
            raise Refused("which region? Give region=, or set CLOUDSDK_COMPUTE_REGION")
        client = await self._client()
        await client.call(client.compute.regions().get(project=client.project, region=region))
        try:
            await client.call(client.compute.networks().get(project=client.project, network=_NETWORK))
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            raise Refused(f"{error}. gcloud compute networks create {_NETWORK} --subnet-mode=auto makes it") from error
        return region

    async def has_gpus(self, machine: str) -> bool:
        """Return whether a machine has GPUs, of itself or by our catalogue."""
        return (await self._kind(machine)).gpus > 0

    async def _kind(self, machine: str) -> _Kind:
        if machine not in self._kinds:
            self._kinds[machine] = await self._find_kind(machine)
        return self._kinds[machine]

    async def _find_kind(self, machine: str) -> _Kind:
        client = await self._client()
        found = self._in_region(await client.all(client.compute.machineTypes(), filter=f"name={machine}"))
        if not found:
            raise Refused(f"{self._cluster.region} has no machine type {machine}", NOT_FOUND)
        [told] = next(iter(found.values()))
        own = [one for one in told.get("accelerators", []) if one["guestAcceleratorType"].startswith("nvidia")]
        gpus = sum(one["guestAcceleratorCount"] for one in own)
        listed = catalog.find("gcp", machine)
        attached = listed.gpus if listed is not None and not gpus else 0
        zones = found.keys()
        if attached:
            zones &= self._in_region(await client.all(client.compute.acceleratorTypes(), filter=f"name={_ATTACHED}"))
        return _Kind(tuple(sorted(zones)), gpus + attached, attached)

    def _in_region(self, found: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """Return what zones of the region have: zone → items."""
        zones = {place.removeprefix("zones/"): items for place, items in found.items() if items}
        return {zone: items for zone, items in zones.items() if region_of(zone) == self._cluster.region}

    def _labels(self, role: str, expiry_s: float) -> dict[str, str]:
        one = self._cluster
        return {
            TAG_CLUSTER: one.id,
            TAG_NAME: one.name,
            TAG_OWNER: one.owner,
            TAG_ROLE: role,
            TAG_EXPIRY: f"{expiry_s:.0f}",
        }

    # the network: rules for what has the cluster's network tag. They have no labels, so their description has them

    async def make_network(self, expiry_s: float) -> str:
        """Return the cluster's network tag."""
        among = {"sourceTags": [self._tag], "targetTags": [self._tag], "allowed": [{"IPProtocol": "all"}]}
        await self._make_rule("inside", among, expiry_s)
        return self._tag

    async def _make_rule(self, role: str, rule: dict[str, Any], expiry_s: float) -> None:
        client = await self._client()
        description = {**self._labels("network", expiry_s), "region": self._cluster.region}
        body = {
            "name": f"{self._tag}-{role}",
            "network": f"projects/{client.project}/global/networks/{_NETWORK}",
            "direction": "INGRESS",
            "description": json.dumps(description),
            **rule,
        }
        try:
            await client.carry_out(client.compute.firewalls().insert(project=client.project, body=body))
        except Refused as error:
            if error.code != EXISTS:
                raise

    async def admit(self, network: str, cidr: str) -> None:
        """Open the head's port, and nothing else."""
        client = await self._client()
        firewalls, name = client.compute.firewalls(), f"{network}-clients"
        where = {"project": client.project, "firewall": name}
        try:
            known = (await client.call(firewalls.get(**where)))["sourceRanges"]
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            port = [{"IPProtocol": "tcp", "ports": [str(PORT)]}]
            rule = {"sourceRanges": [cidr], "targetTags": [f"{network}-{HEAD}"], "allowed": port}
            await self._make_rule("clients", rule, 0)
        else:
            if cidr not in known:
                await client.carry_out(firewalls.patch(**where, body={"sourceRanges": [*known, cidr]}))

    async def remove_network(self) -> None:
        """Delete the rules."""
        client = await self._client()
        for role in ("clients", "inside"):
            await remove_rule(client, f"{self._tag}-{role}")

    # machines

    async def boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        """Start a machine, in the first zone that has one."""
        return await whole(self._boot(order, network, expiry_s))

    async def _boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        kind = await self._kind(order.machine)

        async def attempt(zone: str) -> Vm:
            return await self._run(order, network, expiry_s, zone, kind.attached)

        return await in_first_zone(order.machine, kind.zones, attempt)

    async def _run(self, order: VmOrder, network: str, expiry_s: float, zone: str, attached: int) -> Vm:
        client = await self._client()
        cluster = Shared(
            client,
            projectid=client.project,
            zone=zone,
            network=_NETWORK,
            network_projectid=client.project,
            machine_type=order.machine,
            source_image=_WITH_GPU_DRIVER if order.gpus else _UBUNTU,
            docker_image=self._cluster.image,
            scheduler_ngpus=attached,
            worker_ngpus=attached,
            scheduler_gpu_type=_ATTACHED,
            worker_gpu_type=_ATTACHED,
            filesystem_size=self._cluster.disk_gb,
            disk_type=_DISK,
            instance_labels=self._labels(order.role, expiry_s),
        )
        cluster.uuid = self._cluster.id
        of_role = cluster.scheduler_options if order.role == HEAD else cluster.worker_options
        # a machine writes its labels into the configuration that it is given: Dask's own
        of_role["config"] = copy.deepcopy(of_role["config"])
        machine: Any = HeadVm(**of_role) if order.role == HEAD else NodeVm("", **of_role)
        machine.order(order, network, self._cluster.access_of(order.role))
        await machine.create_vm()
        where = {"project": client.project, "zone": zone, "instance": order.name}
        return _vm(await client.call(client.compute.instances().get(**where)))

    async def vms(self) -> list[Vm]:
        """Return the instances that there are."""
        client = await self._client()
        found = await client.all(client.compute.instances(), filter=f"labels.{TAG_CLUSTER}={self._cluster.id}")
        vms = [_vm(one) for items in found.values() for one in items]
        return sorted(vms, key=lambda vm: (vm.started_at_s, vm.name))

    async def end(self, ids: Sequence[str]) -> None:
        """Delete instances."""
        client = await self._client()
        for zone, name in (one.split("/") for one in ids):  # apart: one that is gone must not keep the others
            await remove_instance(client, zone, name)

    def leaving(self, role: str) -> str:
        """Return how a machine with an identity deletes itself, if that may."""
        return gcp_machine.leaving(endpoint()) if self._cluster.access_of(role) else ""

    async def console(self, vm_id: str) -> str:
        """Return what it wrote to its serial port."""
        client = await self._client()
        zone, name = vm_id.split("/")
        where = {"project": client.project, "zone": zone, "instance": name}
        answer = await client.call(client.compute.instances().getSerialPortOutput(**where))
        return answer.get("contents", "")


def region_of(zone: str) -> str:
    """Return the region of a zone: europe-west4-a → europe-west4."""
    return zone.rpartition("-")[0]


def last(url: str) -> str:
    """Return the last part of the URL by which the API names something."""
    return url.rpartition("/")[2]


async def remove_instance(client: Client, zone: str, name: str) -> None:
    """Delete an instance, with its disk; one that is gone is no error."""
    where = {"project": client.project, "zone": zone, "instance": name}
    await _remove(client, client.compute.instances().delete(**where))


async def remove_rule(client: Client, name: str) -> None:
    """Delete a firewall rule; one that is gone is no error."""
    await _remove(client, client.compute.firewalls().delete(project=client.project, firewall=name))


async def _remove(client: Client, request: Any) -> None:
    try:
        await client.call(request)
    except Refused as error:
        if error.code != NOT_FOUND:
            raise


def _vm(instance: dict[str, Any]) -> Vm:
    labels, zone = instance.get("labels", {}), last(instance["zone"])
    [link] = instance["networkInterfaces"]
    return Vm(
        id=f"{zone}/{instance['name']}",
        name=instance["name"],
        role=labels.get(TAG_ROLE, ""),
        machine=last(instance["machineType"]),
        state=STATES.get(instance["status"], "ending"),
        zone=zone,
        spot=instance.get("scheduling", {}).get("provisioningModel") == "SPOT",
        started_at_s=datetime.fromisoformat(instance["creationTimestamp"]).timestamp(),
        private_ip=link.get("networkIP", ""),
        public_ip=next((one.get("natIP", "") for one in link.get("accessConfigs", [])), ""),
    )
