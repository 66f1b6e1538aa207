"""Machines of Compute Engine, by the classes of dask-cloudprovider: import it inside functions only."""

from __future__ import annotations

from typing import Any

from dask_cloudprovider.gcp.instances import GCPCluster, GCPInstance, GCPScheduler, GCPWorker

from burla.clusters.cloud import Refused, VmOrder
from burla.clusters.gcp_client import Client, check

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what the identity may do is its own affair
STATES = {
    "PROVISIONING": "starting",
    "STAGING": "starting",
    "RUNNING": "running",
    "REPAIRING": "running",
    "TERMINATED": "stopped",
    "SUSPENDED": "stopped",
}


class Shared(GCPCluster):
    """Holds what machines share; boots nothing itself."""

    client: Client

    def __init__(self, client: Client, **options: Any):
        super().__init__(asynchronous=True, shutdown_on_close=False, security=False, **options)
        self.client, self.compute = client, client.compute
        self.scheduler_internal_ip = self.scheduler_port = ""  # asked for, and used in a command that is not run

    def _log(self, log: str) -> None:
        """Print nothing."""

    def render_process_cloud_init(self, process: Any) -> str:
        return process.ordered.user_data


class Ordered(GCPInstance):
    """A machine that runs our user data, under our name."""

    ordered: VmOrder
    access: str

    def order(self, order: VmOrder, network: str, access: str) -> None:
        self.name, self.ordered, self.access = order.name, order, access
        self._tags = [network, f"{network}-{order.role}"]

    def create_gcp_config(self) -> dict[str, Any]:
        body = _typed(super().create_gcp_config())
        gpus, spot = self.ordered.gpus, self.ordered.spot
        body["tags"] = {"items": self._tags}
        body["disks"][0]["initializeParams"]["labels"] = self.instance_labels
        body["serviceAccounts"] = [{"email": self.access, "scopes": [_SCOPE]}] if self.access else []
        body["scheduling"] = {
            "provisioningModel": "SPOT" if spot else "STANDARD",
            "preemptible": spot,
            "automaticRestart": not spot,
            # what has GPUs, or may be taken back, cannot be moved
            "onHostMaintenance": "TERMINATE" if gpus or spot else "MIGRATE",
            **({"instanceTerminationAction": "DELETE"} if spot else {}),
        }
        body["metadata"]["items"].append({"key": "block-project-ssh-keys", "value": "true"})
        if gpus:
            body["metadata"]["items"].append({"key": "install-nvidia-driver", "value": "True"})
        return body

    async def update_status(self) -> str:
        """Return RUNNING once it runs. Raises Refused: also when its zone turns out to have none left."""
        client, where = self.cluster.client, {"project": self.projectid, "zone": self.zone}
        asked = client.compute.zoneOperations().get(**where, operation=self.gcp_inst["name"])
        if check(await client.call(asked))["status"] != "DONE":
            return "PROVISIONING"
        status = (await client.call(client.compute.instances().get(**where, instance=self.name)))["status"]
        if STATES.get(status) not in ("starting", "running"):
            raise Refused(f"{self.name} is {status} before it was up", status, capacity=True)
        return status


def _typed(value: Any, key: str = "") -> Any:
    """Return a request with truth values where dask-cloudprovider has texts; metadata are texts."""
    if isinstance(value, dict):
        return {key: _typed(one, key) if key != "metadata" else one for key, one in value.items()}
    if isinstance(value, list):
        return [_typed(one, key) for one in value]
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


class HeadVm(Ordered, GCPScheduler):
    pass


class NodeVm(Ordered, GCPWorker):
    pass
