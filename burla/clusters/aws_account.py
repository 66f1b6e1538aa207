"""What an account has on EC2, by its tags: import it inside functions only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiobotocore.session import AioSession
from dask_cloudprovider.aws.helper import aws_to_dict

from burla.clusters.attempts import once_free
from burla.clusters.aws_client import IN_USE, client
from burla.clusters.cloud import DISK, MACHINE, NETWORK, TAG_OWNER, Refused, Resource

# kind → operation that lists, key of its answer, key of the id, operation that removes
_KINDS = {
    NETWORK: ("describe_security_groups", "SecurityGroups", "GroupId", "delete_security_group"),
    DISK: ("describe_volumes", "Volumes", "VolumeId", "delete_volume"),
}
_STATES = {"pending": "starting", "running": "running", "stopping": "stopped", "stopped": "stopped"}
_GONE = ("InvalidInstanceID.NotFound", "InvalidGroup.NotFound", "InvalidVolume.NotFound")


def account() -> AwsAccount:
    """Return the account of the credentials that AWS's own tools find."""
    return AwsAccount()


class AwsAccount:
    """See `cloud.Account`."""

    def __init__(self) -> None:
        self._session = AioSession()  # it keeps the description of the API, which takes longer to read than to call

    async def regions(self) -> list[str]:
        """Return the regions that are enabled."""
        async with client(None, self._session) as ec2:
            return sorted(one["RegionName"] for one in (await ec2.describe_regions())["Regions"])

    async def tagged(self, owner: str, region: str) -> list[Resource]:
        """Return security groups, volumes and instances."""
        mine = [{"Name": f"tag:{TAG_OWNER}", "Values": [owner]}]
        alive = [*mine, {"Name": "instance-state-name", "Values": list(_STATES)}]
        found: list[Resource] = []
        async with client(region, self._session) as ec2:
            for kind, (operation, answer, key, _) in _KINDS.items():
                async for page in ec2.get_paginator(operation).paginate(Filters=mine):
                    there = [one for one in page[answer] if one.get("State") != "deleting"]
                    found += [Resource(kind, one[key], region, _tags(one)) for one in there]
            async for page in ec2.get_paginator("describe_instances").paginate(Filters=alive):
                found += [_machine(one, region) for one in _instances(page)]
        return found

    async def remove(self, one: Resource) -> None:
        """Terminate an instance; delete a volume, or a security group."""

        async def remove() -> None:
            async with client(one.region, self._session) as ec2:
                if one.kind == MACHINE:
                    await ec2.terminate_instances(InstanceIds=[one.id])
                else:
                    _, _, key, operation = _KINDS[one.kind]
                    await getattr(ec2, operation)(**{key: one.id})

        try:
            await once_free(remove, IN_USE)
        except Refused as error:
            if error.code not in _GONE:
                raise


def _instances(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (one for group in page["Reservations"] for one in group["Instances"])


def _machine(one: dict[str, Any], region: str) -> Resource:
    state = _STATES[one["State"]["Name"]]
    return Resource(MACHINE, one["InstanceId"], region, _tags(one), state, one["InstanceType"])


def _tags(one: dict[str, Any]) -> dict[str, str]:
    return aws_to_dict(one.get("Tags", []))
