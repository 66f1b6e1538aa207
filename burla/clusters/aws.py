"""Clusters on EC2, by the machine classes of dask-cloudprovider: import it inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from dask_cloudprovider.aws.ec2 import EC2Cluster, EC2Scheduler, EC2Worker
from dask_cloudprovider.aws.helper import aws_to_dict, dict_to_aws, get_default_vpc, get_latest_ami_id

from burla.clusters.attempts import in_first_zone, once_free, whole
from burla.clusters.aws_client import IN_USE, client
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

# (name, owner) of machine images whose root disk is /dev/sda1, as dask-cloudprovider has it
_UBUNTU = ("ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*", "099720109477")
_WITH_GPU_DRIVER = ("Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)*", "898082745236")
_STATES = {"pending": "starting", "running": "running", "terminated": "ended"}
_GONE = "InvalidInstanceID.NotFound"


class _Cluster(EC2Cluster):
    """Holds what the machines of an order share; boots nothing itself."""

    def render_process_cloud_init(self, process: Any) -> str:
        return process.user_data


class _Ordered:
    """A machine that runs our user data, under our name."""

    user_data: str
    name: str

    def order(self, order: VmOrder) -> _Ordered:
        self.name, self.user_data = order.name, order.user_data
        return self


class _Head(_Ordered, EC2Scheduler):
    pass


class _Node(_Ordered, EC2Worker):
    pass


def connect(cluster: CloudCluster) -> Aws:
    """Return the cloud of a cluster."""
    return Aws(cluster)


class Aws:
    """See `cloud.Cloud`."""

    def __init__(self, cluster: CloudCluster):
        self._cluster = cluster
        self._images: dict[bool, str] = {}
        self._subnets: dict[str, str] = {}  # zone → id

    async def check(self) -> str:
        """Return the region."""
        async with self._client() as ec2:
            await self._vpc(ec2)
            return ec2.meta.region_name

    async def has_gpus(self, machine: str) -> bool:
        """Return whether a machine has GPUs that the driver of its image knows."""
        async with self._client() as ec2:
            [told] = (await ec2.describe_instance_types(InstanceTypes=[machine]))["InstanceTypes"]
        return any(gpu["Manufacturer"] == "NVIDIA" for gpu in told.get("GpuInfo", {}).get("Gpus", []))

    def _client(self) -> AbstractAsyncContextManager[Any]:
        return client(self._cluster.region or None)

    def _tags(self, role: str, expiry_s: float, name: str) -> dict[str, str]:
        one = self._cluster
        return {
            "Name": name,
            TAG_CLUSTER: one.id,
            TAG_NAME: one.name,
            TAG_OWNER: one.owner,
            TAG_ROLE: role,
            TAG_EXPIRY: f"{expiry_s:.0f}",
        }

    # the network

    async def make_network(self, expiry_s: float) -> str:
        """Return the id of the security group."""
        async with self._client() as ec2:
            found = await self._group(ec2)
            if found is not None:
                return found
            name = f"burla-{self._cluster.name}-{self._cluster.id}"
            tags = dict_to_aws(self._tags("network", expiry_s, name), upper=True)
            made = await ec2.create_security_group(
                GroupName=name,
                Description="burla: a cluster and its clients",
                VpcId=await self._vpc(ec2),
                TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
            )
            group = made["GroupId"]
            among = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
            await ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=among)
            return group

    async def _group(self, ec2: Any) -> str | None:
        mine = [{"Name": f"tag:{TAG_CLUSTER}", "Values": [self._cluster.id]}]
        groups = (await ec2.describe_security_groups(Filters=mine))["SecurityGroups"]
        return groups[0]["GroupId"] if groups else None

    async def _vpc(self, ec2: Any) -> str:
        try:
            return await get_default_vpc(ec2)
        except ValueError as error:
            raise Refused("the region has no default VPC: aws ec2 create-default-vpc makes one") from error

    async def admit(self, network: str, cidr: str) -> None:
        """Open the head's port, and nothing else."""
        port = [{"IpProtocol": "tcp", "FromPort": PORT, "ToPort": PORT, "IpRanges": [{"CidrIp": cidr}]}]
        try:
            async with self._client() as ec2:
                await ec2.authorize_security_group_ingress(GroupId=network, IpPermissions=port)
        except Refused as error:
            if error.code != "InvalidPermission.Duplicate":
                raise

    async def remove_network(self) -> None:
        """Delete the security group; a machine that has just ended may hold it for a while."""

        async def remove() -> None:
            async with self._client() as ec2:
                group = await self._group(ec2)
                if group is not None:
                    await ec2.delete_security_group(GroupId=group)

        await once_free(remove, IN_USE)

    # machines

    async def boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        """Start a machine, in the first zone that has one."""
        return await whole(self._boot(order, network, expiry_s))

    async def _boot(self, order: VmOrder, network: str, expiry_s: float) -> Vm:
        async with self._client() as ec2:
            image = await self._image(ec2, order.gpus)
            subnets = await self._find_subnets(ec2)

        async def attempt(zone: str) -> Vm:
            instance = await self._run(order, network, expiry_s, image, subnets[zone])
            return _vm(instance, order.name, order.role)

        return await in_first_zone(order.machine, subnets, attempt)

    async def _run(self, order: VmOrder, network: str, expiry_s: float, image: str, subnet: str) -> dict[str, Any]:
        tags = self._tags(order.role, expiry_s, order.name)
        access = self._cluster.access_of(order.role)
        cluster = _Cluster(
            asynchronous=True,
            shutdown_on_close=False,
            security=False,  # else it sets the keys in Dask's global configuration
            region=self._cluster.region,
            instance_type=order.machine,
            ami=image,
            security_groups=[network],
            subnet_id=subnet,
            filesystem_size=self._cluster.disk_gb,
            instance_tags=tags,
            volume_tags=tags,
            spot=order.spot,
            docker_image=self._cluster.image,
            iam_instance_profile={"Name": access} if access else {},
            use_private_ip=False,
        )
        cluster.uuid = self._cluster.id
        cluster.quiet = True  # else it prints
        if order.role == HEAD:
            machine: Any = _Head(**cluster.scheduler_options)
        else:
            machine = _Node("", **cluster.worker_options)
        machine.order(order)
        async with self._client():  # for its translation of errors
            await machine.create_vm()
        return machine.instance

    async def _image(self, ec2: Any, gpus: bool) -> str:
        if gpus not in self._images:
            pattern, owner = _WITH_GPU_DRIVER if gpus else _UBUNTU
            found = await get_latest_ami_id(ec2, pattern, owner)
            if found is None:
                raise Refused(f"the region has no machine image {pattern} of {owner}")
            self._images[gpus] = found
        return self._images[gpus]

    async def _find_subnets(self, ec2: Any) -> dict[str, str]:
        if not self._subnets:
            only = [{"Name": "vpc-id", "Values": [await self._vpc(ec2)]}]
            found = (await ec2.describe_subnets(Filters=only))["Subnets"]
            self._subnets = dict(sorted((one["AvailabilityZone"], one["SubnetId"]) for one in found))
        if not self._subnets:
            raise Refused("the default VPC of the region has no subnet")
        return self._subnets

    async def vms(self) -> list[Vm]:
        """Return the instances that have not ended."""
        mine = [
            {"Name": f"tag:{TAG_CLUSTER}", "Values": [self._cluster.id]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down", "stopping", "stopped"]},
        ]
        found: list[Vm] = []
        async with self._client() as ec2:
            async for page in ec2.get_paginator("describe_instances").paginate(Filters=mine):
                found += [_vm(one) for group in page["Reservations"] for one in group["Instances"]]
        return sorted(found, key=lambda vm: (vm.started_at_s, vm.name))

    async def end(self, ids: Sequence[str]) -> None:
        """Terminate instances."""
        for one in ids:  # apart: one that is gone must not keep the others
            try:
                async with self._client() as ec2:
                    await ec2.terminate_instances(InstanceIds=[one])
            except Refused as error:
                if error.code != _GONE:
                    raise

    def leaving(self, role: str) -> str:
        """Return nothing: an instance that shuts down is terminated."""
        return ""

    async def console(self, vm_id: str) -> str:
        """Return the console output."""
        async with self._client() as ec2:
            answer = await ec2.get_console_output(InstanceId=vm_id)
        return answer.get("Output", "")


def _vm(instance: dict[str, Any], name: str = "", role: str = "") -> Vm:
    tags = aws_to_dict(instance.get("Tags", []))
    return Vm(
        id=instance["InstanceId"],
        name=name or tags.get("Name", ""),
        role=role or tags.get(TAG_ROLE, ""),
        machine=instance["InstanceType"],
        state=_STATES.get(instance["State"]["Name"], "ending"),
        zone=instance["Placement"]["AvailabilityZone"],
        spot=instance.get("InstanceLifecycle") == "spot",
        started_at_s=instance["LaunchTime"].timestamp(),
        private_ip=instance.get("PrivateIpAddress", ""),
        public_ip=instance.get("PublicIpAddress", ""),
    )
