"""Clusters on Azure: import it inside functions only.

All of a cluster is in a resource group of its own.
"""

from __future__ import annotations

import asyncio
import os
import re
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from burla.clusters import azure_machine, catalog
from burla.clusters.attempts import whole
from burla.clusters.azure_client import NOT_FOUND, Client
from burla.clusters.azure_client import connect as connect_client
from burla.clusters.azure_vm import HeadVm, NodeVm, Shared
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
from burla.clusters.record import CloudCluster

_ADDRESSES = "10.0.0.0/16"
_NETWORK, _GUARD = "network", "guard"  # names in the group
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")  # the names of machines are longer by 23, and the limit is 64
_ANSWER_S = 30.0
_STATES = {
    "PowerState/starting": "starting",
    "PowerState/running": "running",
    "PowerState/stopping": "stopped",
    "PowerState/stopped": "stopped",
    "PowerState/deallocating": "stopped",
    "PowerState/deallocated": "stopped",
}


def connect(cluster: CloudCluster) -> Azure:
    """Return the cloud of a cluster."""
    return Azure(cluster)


class Azure:
    """See `cloud.Cloud`. The id of a machine is group/name."""

    def __init__(self, cluster: CloudCluster):
        self._cluster = cluster
        self._connected: Client | None = None
        self._group = f"burla-{cluster.name}-{cluster.id}"

    async def _client(self) -> Client:
        if self._connected is None:
            self._connected = await connect_client()
        return self._connected

    def _tags(self, role: str, expiry_s: float) -> dict[str, str]:
        one = self._cluster
        return {
            TAG_CLUSTER: one.id,
            TAG_NAME: one.name,
            TAG_OWNER: one.owner,
            TAG_ROLE: role,
            TAG_EXPIRY: f"{expiry_s:.0f}",
        }

    async def check(self) -> str:
        """Return the region."""
        if not _NAME.fullmatch(self._cluster.name):
            raise Refused(
                "the name of a cluster there must be of letters, digits and '-', begin with a letter, "
                "and have at most 40 of them"
            )
        region = self._cluster.region or os.environ.get("AZURE_DEFAULTS_LOCATION", "")
        if not region:
            raise Refused("which region? Give region=, or set AZURE_DEFAULTS_LOCATION")
        await self._sizes(await self._client(), region)
        return region

    async def has_gpus(self, machine: str) -> bool:
        """Return whether a machine has GPUs, by our catalogue or else by its family."""
        sizes = await self._sizes(await self._client(), self._cluster.region)
        if machine not in sizes:
            raise Refused(f"{self._cluster.region} has no machine {machine}", NOT_FOUND[0])
        listed = catalog.find("azure", machine)
        return listed.gpus > 0 if listed is not None else machine.startswith(("Standard_NC", "Standard_ND"))

    async def _sizes(self, client: Client, region: str) -> set[str]:
        return {one.name for one in await client.every(client.compute.virtual_machine_sizes.list, region)}

    # the network

    async def make_network(self, expiry_s: float) -> str:
        """Return the name of the resource group. Azure's own rules admit the virtual network, and nobody else."""
        client, tags = await self._client(), self._tags("network", expiry_s)
        place = {"location": self._cluster.region, "tags": tags}
        await client.call(client.resources.resource_groups.create_or_update, self._group, place)
        guards, networks = client.network.network_security_groups, client.network.virtual_networks
        if _GUARD not in {one.name for one in await client.every(guards.list, self._group)}:  # it would lose its rules
            await client.carry_out(guards.begin_create_or_update, self._group, _GUARD, dict(place))
        network = {
            **place,
            "address_space": {"address_prefixes": [_ADDRESSES]},
            "subnets": [{"name": "machines", "address_prefix": _ADDRESSES}],
        }
        await client.carry_out(networks.begin_create_or_update, self._group, _NETWORK, network)
        return self._group

    async def admit(self, network: str, cidr: str) -> None:
        """Open the head's port, and nothing else."""
        client = await self._client()
        rules = client.network.security_rules
        known = await client.every(rules.list, network, _GUARD)
        if any(one.source_address_prefix == cidr for one in known):
            return
        rule = {
            "protocol": "Tcp",
            "source_address_prefix": cidr,
            "source_port_range": "*",
            "destination_address_prefix": "*",
            "destination_port_range": str(PORT),
            "access": "Allow",
            "direction": "Inbound",
            "priority": max((one.priority for one in known), default=100) + 1,
        }
        name = "client-" + re.sub(r"[^0-9a-f]", "-", cidr)
        await client.carry_out(rules.begin_create_or_update, network, _GUARD, name, rule)

    async def remove_network(self) -> None:
        """Delete the resource group, and whatever is still there."""
        await remove_group(await self._client(), self._group)

    # machines

    async def boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        """Start a machine."""
        return await whole(self._boot(order, network, expiry_s))

    async def _boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        client = await self._client()
        access = self._cluster.access_of(order.role)
        cluster = Shared(
            client,
            self._tags(order.role, expiry_s),
            location=self._cluster.region,
            resource_group=network,
            vnet=_NETWORK,
            security_group=_GUARD,
            public_ingress=True,
            vm_size=order.machine,
            disk_size=self._cluster.disk_gb,
            docker_image=self._cluster.image,
            subscription_id=client.subscription,
            extra_vm_options={
                "diagnostics_profile": {"boot_diagnostics": {"enabled": True}},
                **(_SPOT if order.spot else {}),
                **({"identity": _identity(access)} if access else {}),
            },
        )
        cluster.uuid = self._cluster.id
        options = cluster.scheduler_options if order.role == HEAD else cluster.worker_options
        # without an address of its own a machine reaches nothing outside
        options = {**options, "public_ingress": True}
        machine: Any = HeadVm(**options) if order.role == HEAD else NodeVm("", **options)
        machine.order(order)
        try:
            private_ip, public_ip = await machine.create_vm()
        except Refused:
            await self._remove_rest(client, order.name)
            raise
        return _vm(machine.vm, "starting", private_ip, public_ip)

    async def _remove_rest(self, client: Client, name: str) -> None:
        """Delete a machine that did not come up: its entry, and what would have gone with it."""
        network = client.network
        for operations in (client.compute.virtual_machines, network.network_interfaces, network.public_ip_addresses):
            await _gone(client, operations.begin_delete, self._group, name)

    async def vms(self) -> list[Vm]:
        """Return the machines that there are, without their addresses."""
        client = await self._client()
        vms = [_vm(one, state) for one, state in await machines(client, self._group)]
        return sorted(vms, key=lambda vm: (vm.started_at_s, vm.name))

    async def end(self, ids: Sequence[str]) -> None:
        """Delete machines, at once."""
        client = await self._client()
        await asyncio.gather(*(remove_machine(client, one) for one in ids))

    def leaving(self, role: str) -> str:
        """Return how a machine with an identity deletes itself, if that may."""
        return azure_machine.leaving() if self._cluster.access_of(role) else ""

    async def console(self, vm_id: str) -> str:
        """Return what it wrote to its serial port."""
        client = await self._client()
        where = await client.call(client.compute.virtual_machines.retrieve_boot_diagnostics_data, *vm_id.split("/"))
        try:
            return await asyncio.to_thread(_read, where.serial_console_log_blob_uri or "")
        except (OSError, ValueError) as error:
            raise Refused(f"the console cannot be read: {error}") from error


_SPOT = {"priority": "Spot", "eviction_policy": "Delete", "billing_profile": {"max_price": -1}}


def _identity(access: str) -> dict[str, Any]:
    """Return what makes a machine act as a managed identity. `access`: its resource id."""
    return {"type": "UserAssigned", "user_assigned_identities": {access: {}}}


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
        return answer.read().decode(errors="replace")


async def machines(client: Client, group: str) -> list[tuple[Any, str]]:
    """Return the machines of a resource group, with their states; none if there is no such group."""
    operations = client.compute.virtual_machines
    try:
        there, running = await asyncio.gather(
            client.every(operations.list, group), client.every(operations.list_all, status_only="true")
        )
    except Refused as error:
        if error.code in NOT_FOUND:
            return []
        raise
    states = {one.id.lower(): _state(one.instance_view) for one in running}
    return [
        (one, "ending" if one.provisioning_state == "Deleting" else states.get(one.id.lower(), "starting"))
        for one in there
    ]


def _state(view: Any) -> str:
    codes = [one.code for one in (view.statuses or [])] if view is not None else []
    return next((_STATES[code] for code in codes if code in _STATES), "starting")


def _vm(machine: Any, state: str, private_ip: str = "", public_ip: str = "") -> Vm:
    tags = machine.tags or {}
    group = machine.id.split("/")[4]
    return Vm(
        id=f"{group}/{machine.name}",
        name=machine.name,
        role=tags.get(TAG_ROLE, ""),
        machine=machine.hardware_profile.vm_size,
        state=state,
        zone=machine.location,
        spot=machine.priority == "Spot",
        started_at_s=machine.time_created.timestamp(),
        private_ip=private_ip,
        public_ip=public_ip,
    )


async def remove_machine(client: Client, vm_id: str) -> None:
    """Delete a machine, with what it has; one that is gone is no error."""
    await _gone(client, client.compute.virtual_machines.begin_delete, *vm_id.split("/"))


async def remove_group(client: Client, name: str) -> None:
    """Delete a resource group; one that is gone is no error."""
    await _gone(client, client.resources.resource_groups.begin_delete, name)


async def _gone(client: Client, delete: Callable[..., Any], *where: str) -> None:
    try:
        await client.carry_out(delete, *where)
    except Refused as error:
        if error.code not in NOT_FOUND:
            raise
