"""What a subscription has on Azure, by its tags: import it inside functions only."""

from __future__ import annotations

import asyncio

from burla.clusters.azure import machines, remove_group, remove_machine
from burla.clusters.azure_client import Client, connect
from burla.clusters.cloud import MACHINE, NETWORK, TAG_OWNER, Resource


def account() -> AzureAccount:
    """Return the subscription that Azure's own tools have chosen."""
    return AzureAccount()


class AzureAccount:
    """See `cloud.Account`. What guards a network is a resource group, and all that is there goes with it."""

    def __init__(self) -> None:
        self._client: Client | None = None

    async def _connect(self) -> Client:
        if self._client is None:
            self._client = await connect()
        return self._client

    async def regions(self) -> list[str]:
        """Return the regions that have resource groups."""
        client = await self._connect()
        return sorted({one.location for one in await client.every(client.resources.resource_groups.list)})

    async def tagged(self, owner: str, region: str) -> list[Resource]:
        """Return resource groups, and the machines there."""
        client = await self._connect()
        wanted = f"tagName eq '{TAG_OWNER}' and tagValue eq '{owner}'"
        groups = await client.every(client.resources.resource_groups.list, filter=wanted)
        groups = [one for one in groups if one.location == region and one.properties.provisioning_state != "Deleting"]
        found = [Resource(NETWORK, one.name, region, dict(one.tags)) for one in groups]
        there = await asyncio.gather(*(machines(client, one.name) for one in groups))
        for group, pairs in zip(groups, there, strict=True):
            for one, state in pairs:
                if state != "ending":
                    tags, kind = dict(one.tags or {}), one.hardware_profile.vm_size
                    found.append(Resource(MACHINE, f"{group.name}/{one.name}", region, tags, state, kind))
        return found

    async def remove(self, one: Resource) -> None:
        """Delete a machine, or a resource group."""
        client = await self._connect()
        await (remove_machine if one.kind == MACHINE else remove_group)(client, one.id)
