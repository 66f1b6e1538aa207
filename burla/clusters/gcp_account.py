"""What a project has on Compute Engine, by its labels: import it inside functions only."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from burla.clusters.attempts import once_free
from burla.clusters.cloud import DISK, MACHINE, NETWORK, TAG_OWNER, Refused, Resource
from burla.clusters.gcp import last, region_of, remove_instance, remove_rule
from burla.clusters.gcp_client import IN_USE, NOT_FOUND, Client, connect
from burla.clusters.gcp_vm import STATES


def account() -> GcpAccount:
    """Return the project of the credentials that Google's own tools find."""
    return GcpAccount()


class GcpAccount:
    """See `cloud.Account`. The id of a machine or disk is zone/name."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._found: asyncio.Task[list[Resource]] | None = None

    async def _connect(self) -> Client:
        if self._client is None:
            self._client = await connect()
        return self._client

    async def regions(self) -> list[str]:
        """Return the regions of the project."""
        client = await self._connect()
        found: list[str] = []
        request = client.compute.regions().list(project=client.project)
        while request is not None:
            answer = await client.call(request)
            found += [one["name"] for one in answer.get("items", [])]
            request = client.compute.regions().list_next(request, answer)
        return sorted(found)

    async def tagged(self, owner: str, region: str) -> list[Resource]:
        """Return firewall rules, disks and instances."""
        if self._found is None:  # one answer tells of all regions
            self._found = asyncio.ensure_future(self._look(owner))
        return [one for one in await self._found if one.region == region]

    async def _look(self, owner: str) -> list[Resource]:
        client = await self._connect()
        found = await self._rules(client, owner)
        mine = f"labels.{TAG_OWNER}={owner}"
        for kind, collection in ((DISK, client.compute.disks()), (MACHINE, client.compute.instances())):
            for place, items in (await client.all(collection, filter=mine)).items():
                zone = place.removeprefix("zones/")
                found += [one for one in (_resource(kind, zone, item) for item in items) if one is not None]
        return found

    async def _rules(self, client: Client, owner: str) -> list[Resource]:
        found: list[Resource] = []
        request = client.compute.firewalls().list(project=client.project, filter="name:burla-*")
        while request is not None:
            answer = await client.call(request)
            for one in answer.get("items", []):
                tags = _tags(one.get("description", ""))
                if tags.get(TAG_OWNER) == owner:
                    found.append(Resource(NETWORK, one["name"], tags.pop("region", ""), tags))
            request = client.compute.firewalls().list_next(request, answer)
        return found

    async def remove(self, one: Resource) -> None:
        """Delete an instance, a disk, or a firewall rule."""
        client = await self._connect()
        if one.kind == NETWORK:
            await remove_rule(client, one.id)
            return
        zone, name = one.id.split("/")
        if one.kind == MACHINE:
            await remove_instance(client, zone, name)
            return
        where = {"project": client.project, "zone": zone, "disk": name}
        try:
            await once_free(lambda: client.call(client.compute.disks().delete(**where)), IN_USE)
        except Refused as error:  # as a rule it goes with its machine
            if error.code != NOT_FOUND:
                raise


def _resource(kind: str, zone: str, item: dict[str, Any]) -> Resource | None:
    identity, region, labels = f"{zone}/{item['name']}", region_of(zone), item.get("labels", {})
    if kind == DISK:
        return Resource(DISK, identity, region, labels) if item.get("status") != "DELETING" else None
    state = STATES.get(item["status"])
    return Resource(MACHINE, identity, region, labels, state, last(item["machineType"])) if state else None


def _tags(description: str) -> dict[str, str]:
    """Return the tags that a rule of ours has in its description; of any other none."""
    try:
        told = json.loads(description)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else {}
