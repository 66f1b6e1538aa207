"""A make-believe Azure Resource Manager, behind the transport of Azure's own SDK: nothing is sent anywhere.

It keeps what is put there, as a tree by resource id, and says no where Azure would: to what refers to something that is
not there, to names of fields that are not Azure's, to machines that it has none of.
"""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from azure.core.pipeline.transport import HttpTransport
from azure.core.rest import HttpRequest
from azure.core.rest._requests_basic import RestRequestsTransportResponse
from requests import Response
from urllib3 import HTTPResponse

from burla.clusters import catalog

SUBSCRIPTION = "5ub5c21b-0000-4000-8000-000000000000"
_ROOT = f"/subscriptions/{SUBSCRIPTION}"
_FIELD = re.compile(r"[a-z][A-Za-z0-9]*")
_FREE = ("tags", "userAssignedIdentities")  # whose keys are the user's
_MACHINE = "Microsoft.Compute/virtualMachines"
_LINK, _ADDRESS = "Microsoft.Network/networkInterfaces", "Microsoft.Network/publicIPAddresses"


class No(Exception):
    """Azure refuses."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class FakeAzure(HttpTransport[Any, Any]):
    """The transport. `refusals`: machine → code; `bodies`: of all that was put, by kind; `states`: of machines."""

    refusals: dict[str, str] = field(default_factory=dict)
    bodies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    there: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id, small letters
    states: dict[str, str] = field(default_factory=dict)  # by name of a machine
    _lock: Any = field(default_factory=threading.Lock)
    _addresses: int = 3

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

    def send(self, request: HttpRequest, **_: Any) -> RestRequestsTransportResponse:
        """Answer a request."""
        url = urlsplit(request.url)
        body = json.loads(request.content) if request.content and url.hostname == "management.azure.com" else None
        try:
            with self._lock:
                status, told = self._answer(request.method, url.hostname or "", url.path, parse_qs(url.query), body)
        except No as no:
            status, told = no.status, {"error": {"code": no.code, "message": str(no)}}
        answer = Response()
        answer.status_code = status
        data = io.BytesIO(b"" if told is None else json.dumps(told).encode())
        answer.raw = HTTPResponse(data, preload_content=False, status=status)
        answer.headers["Content-Type"] = "application/json"
        return RestRequestsTransportResponse(request=request, internal_response=answer)

    def _answer(self, method: str, host: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if host != "management.azure.com":
            return 200, _login(path)
        assert path.startswith("/subscriptions/"), path
        return {"GET": self._get, "PUT": self._put, "DELETE": self._delete}[method](path, query, body)

    def _get(self, path: str, query: dict[str, list[str]], _: Any) -> tuple[int, Any]:
        if path.endswith("/vmSizes"):
            return 200, {"value": [{"name": one.name} for one in catalog.machines("azure")]}
        parts = path.strip("/").split("/")
        if path.lower() in self.there:
            return 200, self.there[path.lower()]
        if parts[-1].lower() == "resourcegroups":
            [wanted] = query.get("$filter", [""])
            name, value = re.findall(r"'([^']*)'", wanted) or (None, None)
            found = [one for key, one in self.there.items() if key.count("/") == 4]
            return 200, {"value": [one for one in found if name is None or one["tags"].get(name) == value]}
        if "statusOnly" in query:
            return 200, {"value": [self._status(one) for one in self._of(_ROOT, _MACHINE)]}
        if len(parts) % 2 == 0 and len(parts) > 4 and parts[-2] == "providers":
            raise AssertionError(path)
        if parts[-1] in ("virtualMachines", "networkSecurityGroups", "subnets", "securityRules"):
            above = path.rpartition("/")[0].partition("/providers/Microsoft.Compute")[0]
            above = above if "securityGroups/" in above or "Networks/" in above else above.partition("/providers/")[0]
            self._exists(above)
            return 200, {"value": self._of(path.rpartition("/")[0], parts[-1])}
        raise No(404, "ResourceNotFound", f"The Resource '{path}' was not found.")

    def _of(self, above: str, kind: str) -> list[dict[str, Any]]:
        kind = f"/{kind.rpartition('/')[2]}/".lower()
        return [one for key, one in self.there.items()
                if key.startswith(above.lower()) and kind in key and "/" not in key.partition(kind)[2]]  # fmt: skip

    def _exists(self, path: str) -> dict[str, Any]:
        if path.lower() not in self.there:
            code = "ResourceGroupNotFound" if path.count("/") == 4 else "ResourceNotFound"
            raise No(404, code, f"'{path}' could not be found.")
        return self.there[path.lower()]

    def _status(self, machine: dict[str, Any]) -> dict[str, Any]:
        code = f"PowerState/{self.states.get(machine['name'], 'running')}"
        view = {"statuses": [{"code": "ProvisioningState/succeeded"}, {"code": code}]}
        return {**machine, "properties": {"instanceView": view}}

    def _put(self, path: str, _: Any, body: dict[str, Any]) -> tuple[int, Any]:
        kind = path.split("/")[-2]
        _check(body, kind)
        if path.count("/") > 4:
            self._exists(path.partition("/providers/")[0])
        self.bodies.setdefault(kind, []).append(body)
        for one in _references(body):
            self._exists(one)
        known = {**body, "id": path, "name": path.rpartition("/")[2]}
        properties = known["properties"] = {**body.get("properties", {}), "provisioningState": "Succeeded"}
        if kind == "virtualMachines":
            size = properties["hardwareProfile"]["vmSize"]
            if size in self.refusals:
                self.there[path.lower()] = known  # its entry stays all the same
                raise No(409, self.refusals[size], f"no {size} for you")
            properties["timeCreated"] = datetime.now(UTC).isoformat()
        elif kind == "publicIPAddresses":
            self._addresses += 1
            properties["ipAddress"] = f"198.51.100.{self._addresses}"
        elif kind == "networkInterfaces":
            self._addresses += 1
            properties["ipConfigurations"][0]["properties"]["privateIPAddress"] = f"10.0.0.{self._addresses}"
        elif kind == "virtualNetworks":
            for subnet in properties["subnets"]:
                self.there[f"{path}/subnets/{subnet['name']}".lower()] = {
                    **subnet,
                    "id": f"{path}/subnets/{subnet['name']}",
                }
        if kind == "networkSecurityGroups":  # its rules are those of the body
            for key in [key for key in self.there if key.startswith(f"{path.lower()}/")]:
                del self.there[key]
        self.there[path.lower()] = known
        return 200, known

    def _delete(self, path: str, _: Any, __: Any) -> tuple[int, Any]:
        one = self._exists(path)
        if path.split("/")[-2] == "virtualMachines":
            self._delete_with_machine(one["properties"])
        for key in [key for key in self.there if key == path.lower() or key.startswith(f"{path.lower()}/")]:
            self.there.pop(key, None)
        return 200, None

    def _delete_with_machine(self, properties: dict[str, Any]) -> None:
        """What is said to go with a machine goes with it; the disk is not kept here."""
        for link in properties["networkProfile"]["networkInterfaces"]:
            if link["properties"].get("deleteOption") == "Delete":
                [one] = self.there.pop(link["id"].lower())["properties"]["ipConfigurations"]
                address = one["properties"]["publicIPAddress"]
                if address["properties"].get("deleteOption") == "Delete":
                    del self.there[address["id"].lower()]

    def names(self) -> list[str]:
        """Return what there is."""
        return sorted(one["name"] for one in self.there.values())


def _login(path: str) -> dict[str, Any]:
    where = "https://login.microsoftonline.com/t/oauth2/v2.0"
    if path.endswith("/token"):
        return {"access_token": "token", "expires_in": 3600, "token_type": "Bearer"}
    return {
        "token_endpoint": f"{where}/token",
        "authorization_endpoint": f"{where}/authorize",
        "issuer": "https://login.microsoftonline.com/t/v2.0",
        "tenant_discovery_endpoint": f"{where}/.well-known/openid-configuration",
        "metadata": [],
    }


def _check(value: Any, where: str) -> None:
    """Refuse names of fields that are not spelled as Azure spells them, and values that JSON should not have."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not _FIELD.fullmatch(key) and where.rpartition(".")[2] not in _FREE:
                raise No(400, "InvalidRequestContent", f"Could not find member '{key}' on object at {where}")
            _check(one, f"{where}.{key}")
    elif isinstance(value, list):
        for one in value:
            _check(one, where)
    elif value is None:
        raise No(400, "InvalidRequestContent", f"{where} is null")


def _references(value: Any) -> list[str]:
    """Return the ids of what a body refers to; an identity is none of ours."""
    if isinstance(value, dict):
        mine = [value["id"]] if isinstance(value.get("id"), str) else []
        return mine + [one for key, item in value.items() if key not in _FREE for one in _references(item)]
    return [one for item in value for one in _references(item)] if isinstance(value, list) else []
