"""Machines of Azure, by the classes of dask-cloudprovider: import it inside functions only."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from dask_cloudprovider.azure.azurevm import AzureVM, AzureVMCluster, AzureVMScheduler, AzureVMWorker

from burla.clusters.azure_client import Client
from burla.clusters.cloud import VmOrder

_UBUNTU = {"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
_WITH_GPU_DRIVER = {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204", "version": "latest"}


class Shared(AzureVMCluster):
    """Holds what a machine needs; boots nothing itself."""

    def __init__(self, client: Client, tags: dict[str, str], **options: Any):
        super().__init__(asynchronous=True, shutdown_on_close=False, security=False, **options)
        self.network_client = SimpleNamespace(
            public_ip_addresses=_Amended(client.network.public_ip_addresses),
            network_security_groups=client.network.network_security_groups,
            subnets=client.network.subnets,
            network_interfaces=_Amended(client.network.network_interfaces, _address_goes_too),
        )
        self.compute_client = SimpleNamespace(
            virtual_machines=_Amended(client.compute.virtual_machines, _disk_and_link_go_too)
        )
        self._our_tags = tags
        self._client = client

    async def call_async(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._client.call(f, *args, **kwargs)

    def get_tags(self) -> dict[str, str]:
        return self._our_tags

    def _log(self, log: str) -> None:
        """Print nothing."""

    def render_process_cloud_init(self, process: Any) -> str:
        return process.user_data


class _Amended:
    """Operations of a client whose requests are changed before they are sent.

    They are sent when their end is waited for, in a thread: the machine classes begin them in the event loop.
    """

    def __init__(self, operations: Any, amend: Callable[[dict[str, Any]], None] = lambda body: None):
        self._operations = operations
        self._amend = amend
        self.get = operations.get

    def begin_create_or_update(self, group: str, name: str, body: dict[str, Any]) -> Any:
        def carry_out() -> Any:
            self._amend(body)
            return self._operations.begin_create_or_update(group, name, body).result()

        return SimpleNamespace(result=carry_out, wait=carry_out)


def _address_goes_too(link: dict[str, Any]) -> None:
    link["ip_configurations"][0]["public_ip_address"]["delete_option"] = "Delete"


def _disk_and_link_go_too(machine: dict[str, Any]) -> None:
    machine["storage_profile"]["os_disk"] |= {
        "delete_option": "Delete",
        "managed_disk": {"storage_account_type": "StandardSSD_LRS"},
    }
    machine["network_profile"]["network_interfaces"][0] |= {"delete_option": "Delete", "primary": True}


class Ordered(AzureVM):
    """A machine that runs our user data, under our name."""

    user_data: str

    def order(self, order: VmOrder) -> None:
        self.name = self.nic_name = order.name
        self.user_data = order.user_data
        self.vm_image = _WITH_GPU_DRIVER if order.gpus else _UBUNTU


class HeadVm(Ordered, AzureVMScheduler):
    pass


class NodeVm(Ordered, AzureVMWorker):
    pass
