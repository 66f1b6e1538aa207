"""A cluster on Azure, as far as what is sent there: no machine runs."""

from __future__ import annotations

import asyncio
import base64
import copy
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dask.config
import pytest

import burla
from burla import cloud_api
from burla.clusters import azure_client, azure_machine
from burla.clusters.azure import Azure
from burla.clusters.boot import LIMIT_BYTES, Boot, user_data
from burla.clusters.cloud import HEAD, NODE, Refused, VmOrder
from burla.clusters.record import CloudCluster
from tests.clouds.fake_azure import SUBSCRIPTION, FakeAzure
from tests.clouds.test_boot import KEYS, files_of

IDENTITY = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/mine/providers/Microsoft.ManagedIdentity/x/reader"
SECRET = "secret-of-the-client"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeAzure:
    fake = FakeAzure()
    monkeypatch.setattr(azure_client, "TRANSPORT", fake)
    environ = {
        "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
        "AZURE_TENANT_ID": "7e4a4700-0000-4000-8000-000000000000",
        "AZURE_CLIENT_ID": "c11e4700-0000-4000-8000-000000000000",
        "AZURE_CLIENT_SECRET": SECRET,
        "AZURE_DEFAULTS_LOCATION": "westeurope",
        "BURLA_CLIENT_CIDR": "192.0.2.1/32",
        "BURLA_HOME": str(tmp_path),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return fake


def _cluster(name: str = "tens", **options: Any) -> CloudCluster:
    empty = dict.fromkeys(("cloud", "region", "machine", "image", "idle_minutes", "spot", "disk_gb", "role"))
    return cloud_api.settings(name, **{**empty, "cloud": "azure", "region": "westeurope", **options})


def _order(cluster: CloudCluster, role: str, machine: str = "Standard_D4s_v5", **options: Any) -> VmOrder:
    name = f"burla-{cluster.name}-{role}"
    return VmOrder(name, role, machine, user_data(Boot(role, name, "python:3.11-slim", 600), KEYS), **options)


async def _begin(cluster: CloudCluster, *orders: VmOrder) -> Azure:
    cloud = Azure(cluster)
    network = await cloud.make_network(time.time() + 60)
    await cloud.admit(network, "192.0.2.1/32")
    for order in orders:
        await cloud.boot(order, network, time.time() + 60)
    return cloud


def test_what_is_sent_for_a_head_and_a_node(azure: FakeAzure) -> None:
    """All tagged; one port open to one address; disks, links and addresses go with their machine; no secret."""
    before = _configuration()
    cluster = _cluster(role=IDENTITY, disk_gb=33)
    head, node = _order(cluster, HEAD, "Standard_D2s_v5"), _order(cluster, NODE, spot=True)
    cloud = asyncio.run(_begin(cluster, head, node))
    assert _configuration() == before

    tags = {"burla-cluster": cluster.id, "burla-name": "tens", "burla-owner": cluster.owner}
    for kind in ("resourcegroups", "virtualMachines", "networkInterfaces", "publicIPAddresses", "virtualNetworks"):
        for body in azure.bodies[kind]:
            assert tags.items() <= body["tags"].items() and body["tags"]["burla-expiry"].isdecimal()
            assert body["location"] == "westeurope"
    [rule] = azure.bodies["securityRules"]
    assert rule["properties"] == {
        "protocol": "Tcp",
        "sourceAddressPrefix": "192.0.2.1/32",
        "sourcePortRange": "*",
        "destinationAddressPrefix": "*",
        "destinationPortRange": "8786",
        "access": "Allow",
        "direction": "Inbound",
        "priority": 101,
    }
    for body in azure.bodies["networkInterfaces"]:
        assert body["properties"]["networkSecurityGroup"]["id"].endswith("/guard")
        [link] = body["properties"]["ipConfigurations"]
        assert link["properties"]["subnet"]["id"].endswith("/network/subnets/machines")
        assert link["properties"]["publicIPAddress"]["properties"] == {"deleteOption": "Delete"}
    of_head, of_node = azure.bodies["virtualMachines"]
    for body, order in ((of_head, head), (of_node, node)):
        properties = body["properties"]
        assert properties["hardwareProfile"] == {"vmSize": order.machine}
        assert properties["osProfile"]["computerName"] == order.name
        assert base64.b64decode(properties["osProfile"]["customData"]).decode() == order.user_data
        assert len(order.user_data) < LIMIT_BYTES and SECRET not in "".join(files_of(order.user_data).values())
        disk = properties["storageProfile"]["osDisk"]
        assert (disk["createOption"], disk["diskSizeGB"], disk["deleteOption"]) == ("FromImage", 33, "Delete")
        assert properties["storageProfile"]["imageReference"]["offer"] == "ubuntu-24_04-lts"
        [link] = properties["networkProfile"]["networkInterfaces"]
        assert link["properties"] == {"primary": True, "deleteOption": "Delete"}
        assert properties["diagnosticsProfile"] == {"bootDiagnostics": {"enabled": True}}
    assert "priority" not in of_head["properties"] and "identity" not in of_head
    spot = {key: of_node["properties"][key] for key in ("priority", "evictionPolicy", "billingProfile")}
    assert spot == {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    assert of_node["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {IDENTITY: {}}}
    passwords = {body["properties"]["osProfile"]["adminPassword"] for body in (of_head, of_node)}
    assert len(passwords) == 2 and min(map(len, passwords)) >= 32  # of nobody: nothing keeps them, no port is open

    found = asyncio.run(cloud.vms())
    assert [(vm.name, vm.role, vm.machine, vm.state, vm.spot) for vm in found] == [
        ("burla-tens-head", HEAD, "Standard_D2s_v5", "running", False),
        ("burla-tens-node", NODE, "Standard_D4s_v5", "running", True),
    ]
    azure.states["burla-tens-node"] = "stopped"
    assert [vm.state for vm in asyncio.run(cloud.vms())] == ["running", "stopped"]


def _configuration() -> dict[str, object]:
    import dask_cloudprovider.azure  # noqa: F401
    import distributed  # noqa: F401

    return copy.deepcopy(dask.config.config)


def test_what_was_made_is_removed_and_what_has_gone_is_no_error(azure: FakeAzure) -> None:
    """A machine with what it has; the resource group with the rest."""
    cluster = _cluster()

    async def run() -> None:
        cloud = await _begin(cluster, _order(cluster, HEAD), _order(cluster, NODE))
        group = f"burla-tens-{cluster.id}"
        await cloud.admit(group, "192.0.2.1/32")
        assert len(azure.bodies["securityRules"]) == 1
        assert await cloud.make_network(time.time() + 60) == group  # again: the rule stays
        vms = await cloud.vms()
        for _ in range(2):
            await cloud.end([vm.id for vm in vms])
        assert azure.names() == sorted([group, "client-192-0-2-1-32", "guard", "machines", "network"])
        for _ in range(2):
            await cloud.remove_network()
        assert azure.names() == [] and await cloud.vms() == []

    asyncio.run(run())


@pytest.mark.parametrize("code", ["SkuNotAvailable", "QuotaExceeded", "OperationNotAllowed", "AuthorizationFailed"])
def test_a_machine_that_is_refused_leaves_nothing_and_says_why(azure: FakeAzure, code: str) -> None:
    """In Azure's words; whether another kind of machine may do depends on the code."""
    azure.refusals = {"Standard_D4s_v5": code}
    cluster = _cluster()
    with pytest.raises(Refused, match=rf"no Standard_D4s_v5 for you \({code}\)") as caught:
        asyncio.run(_begin(cluster, _order(cluster, NODE)))
    assert caught.value.code == code and caught.value.capacity == (code != "AuthorizationFailed")
    assert not any("node" in name for name in azure.names())


def test_a_machine_with_gpus_has_an_image_with_their_driver(azure: FakeAzure) -> None:
    """What Azure does not have there is refused."""
    cluster = _cluster()

    async def run() -> None:
        cloud = await _begin(cluster, _order(cluster, NODE, "Standard_NC4as_T4_v3", gpus=True))
        assert await cloud.has_gpus("Standard_NC4as_T4_v3") and not await cloud.has_gpus("Standard_D4s_v5")
        with pytest.raises(Refused, match="westeurope has no machine Standard_X"):
            await cloud.has_gpus("Standard_X")

    asyncio.run(run())
    [body] = azure.bodies["virtualMachines"]
    assert body["properties"]["storageProfile"]["imageReference"]["offer"] == "ubuntu-hpc"


def test_a_creation_that_is_refused_says_the_step_and_leaves_nothing(azure: FakeAzure) -> None:
    """Through the whole of `create`, up to the head that does not come."""
    azure.refusals = {"Standard_D2s_v5": "SkuNotAvailable"}
    with pytest.raises(burla.CloudError, match=r"starting the head .*SkuNotAvailable.*Nothing of it runs") as caught:
        burla.create_cluster("refused", cloud="azure", nodes=0)
    assert caught.value.left == [] and azure.names() == []
    with pytest.raises(burla.CloudError, match="the name of a cluster there must be of letters"):
        burla.create_cluster("no_underscores", cloud="azure")


def test_planted_orphans_are_found_and_deleted_and_only_those(azure: FakeAzure) -> None:
    """Resource groups without a living head, and stopped nodes, which bill."""

    async def plant(name: str, *orders: str, owner: str = "", expiry_s: float = -60) -> None:
        cluster = _cluster(name)
        cluster = replace(cluster, owner=owner or cluster.owner)
        cloud = Azure(cluster)
        network = await cloud.make_network(time.time() + expiry_s)
        for role in orders:
            await cloud.boot(_order(cluster, role), network, time.time() + expiry_s)

    async def run() -> None:
        await plant("living", HEAD, NODE)
        await plant("others", NODE, owner="you")
        await plant("begun", NODE, expiry_s=600)
        stay = set(azure.names())
        await plant("dead", NODE)
        await plant("headless", HEAD)
        azure.states["burla-headless-head"] = "deallocated"
        gone = set(azure.names()) - stay
        found = await asyncio.to_thread(burla.collect_garbage, cloud="azure")
        assert {one.cluster for one in found.found} == {"dead", "headless"}
        assert {one.id.partition("/")[2] or one.id for one in found.found} <= gone and len(found.found) == 4
        await asyncio.to_thread(burla.collect_garbage, cloud="azure", delete=True)
        assert set(azure.names()) == stay
        azure.states["burla-living-node"] = "stopped"
        found = await asyncio.to_thread(burla.collect_garbage, cloud="azure", delete=True)
        assert [(one.kind, one.state) for one in found.found] == [("machine", "stopped")]
        assert stay - set(azure.names()) == {"burla-living-node"}

    asyncio.run(run())


def test_a_machine_with_an_identity_asks_for_its_own_end() -> None:
    """With the token of its identity; without one it says what that means."""
    asked: list[tuple[str, str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.command, self.path, self.headers["Authorization"] or self.headers["Metadata"]))
            told = {"identity": b'{"access_token": "t"}', "instance": b"/subscriptions/s/machines/m"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told.get(self.path.split("/")[1], b""))

        do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    script = azure_machine.leaving(url, url).replace("python3", sys.executable)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30)
    server.shutdown()
    server.server_close()
    assert done.stdout == "burla: asking for the end of this machine\n", done.stderr
    assert [one[0] for one in asked] == ["GET", "GET", "DELETE"]
    assert asked[-1][1:] == ("/subscriptions/s/machines/m?api-version=2024-07-01", "Bearer t")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30)
    assert "goes on billing" in done.stdout and done.returncode == 0
