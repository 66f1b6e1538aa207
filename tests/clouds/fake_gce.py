"""A make-believe Compute Engine: projects, zones, instances, disks, firewall rules, and what Google's own schema says.

Every body that it is sent is compared with the discovery document that googleapiclient brings along; `complaints` has
what does not fit. What is asked for takes a moment, as there: an operation says when it is done, or has failed.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import googleapiclient

from burla.clusters import catalog

PROJECT = "room-1234"
REGIONS = {"europe-west4": "ab", "us-central1": "ab"}
ZONES = [f"{region}-{letter}" for region, letters in REGIONS.items() for letter in letters]
_DOCUMENT = Path(googleapiclient.__file__).parent / "discovery_cache/documents/compute.v1.json"
_BUNDLED = {"g2": "nvidia-l4", "a2": "nvidia-tesla-a100", "a3": "nvidia-h100-80gb"}
_TYPES = {"boolean": bool, "string": str, "integer": int, "number": (int, float)}
_TAKES_S = 0.2
_URL = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}"


def complaints(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> Iterator[str]:
    """Return what of a body the published schema does not know."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"]]
    kind = schema.get("type", "any")
    if kind == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, one in value.items() if isinstance(value, dict) else [("not an object", None)]:
            if key in known or others:
                yield from complaints(one, known.get(key, others), schemas, f"{where}.{key}")
            else:
                yield f"{where}.{key}: unknown"
    elif kind == "array":
        for number, one in enumerate(value if isinstance(value, list) else [None]):
            yield from complaints(one, schema["items"], schemas, f"{where}[{number}]")
    elif not isinstance(value, _TYPES.get(kind, object)) or (kind == "integer" and isinstance(value, bool)):
        yield f"{where}: {value!r} is no {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"


class Error(Exception):
    """The API says no, at once."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass
class Operation:
    """Something asked for. `done_at_s`: monotonic; `error`: the code of what came of it."""

    name: str
    done_at_s: float
    error: str = ""

    def answer(self) -> dict[str, Any]:
        told: dict[str, Any] = {"kind": "compute#operation", "id": self.name, "name": self.name, "status": "RUNNING"}
        if time.monotonic() >= self.done_at_s:
            told["status"] = "DONE"
            if self.error:
                told["error"] = {"errors": [{"code": self.error, "message": f"none for you: {self.error}"}]}
        return told


@dataclass
class FakeGce:
    """The cloud. `refusals`: machine type, or zone/machine type → code; `may_delete`: identities of machines that may.

    `console`: what an instance has written, by zone/name.
    """

    console: Callable[[str], str] = lambda name: ""
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)  # by zone/name
    disks: dict[str, dict[str, Any]] = field(default_factory=dict)  # by zone/name
    firewalls: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    may_delete: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    inserted: list[dict[str, Any]] = field(default_factory=list)  # bodies of instances
    _operations: dict[str, Operation] = field(default_factory=dict)
    _starting: dict[str, float] = field(default_factory=dict)  # instance → when it runs
    _ending: dict[str, float] = field(default_factory=dict)  # instance → when it is gone
    _lock: Any = field(default_factory=threading.RLock)
    _servers: list[ThreadingHTTPServer] = field(default_factory=list)
    _made: int = 0

    def __post_init__(self) -> None:
        self.schemas = json.loads(_DOCUMENT.read_text())["schemas"]

    def serve(self, host: str, port: int, metadata: str | None = None) -> int:
        """Answer the API at one address, and machines that ask who they are at another. Return the API's port."""
        for where, handler in (((host, port), _Api), *([((metadata, 80), _Metadata)] if metadata else ())):
            server = _Server(where, type(handler.__name__, (handler,), {"fake": self}))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._servers.append(server)
        return self._servers[0].server_address[1]

    def close(self) -> None:
        """Answer no more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def seen(self) -> dict[str, dict[str, Any]]:
        """Return the instances as they are now."""
        with self._lock:
            for identity in [one for one, when_s in self._starting.items() if time.monotonic() > when_s]:
                del self._starting[identity]
                if identity in self.instances and self.instances[identity]["status"] == "STAGING":
                    self.instances[identity]["status"] = "RUNNING"
            for identity in [one for one, when_s in self._ending.items() if time.monotonic() > when_s]:
                del self._ending[identity]
                one = self.instances.pop(identity)
                if one["disks"][0]["autoDelete"]:
                    del self.disks[identity]
            return {key: dict(one) for key, one in self.instances.items()}

    def stop(self, identity: str) -> None:
        """An instance has shut itself down: it stays, and so does its disk."""
        with self._lock:
            if identity in self.instances and identity not in self._ending:
                self.instances[identity]["status"] = "TERMINATED"

    def preempt(self, identity: str) -> None:
        """The cloud takes an instance back; what becomes of it is in its scheduling."""
        with self._lock:
            if self.instances[identity]["scheduling"].get("instanceTerminationAction") == "DELETE":
                self._ending[identity] = 0.0
                self.seen()
            else:
                self.stop(identity)

    # the API

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, bearer: str) -> Any:
        with self._lock:
            self.seen()
            for wanted, pattern, do in _ROUTES:
                found = re.fullmatch(pattern, path)
                if wanted == method and found:
                    if bearer not in self.identities():
                        raise Error(401, "authError", "Invalid Credentials")
                    return do(self, *found.groups(), **({"query": query, "body": body, "bearer": bearer}))
        raise AssertionError(f"{method} {path}: not made believe")

    def identities(self) -> set[str]:
        """Return the tokens that are valid."""
        return {"client", *(one["serviceAccounts"][0]["email"] for one in self.instances.values()
                            if one.get("serviceAccounts"))}  # fmt: skip

    def _operation(self, takes_s: float = _TAKES_S, error: str = "") -> dict[str, Any]:
        self._made += 1
        name = f"operation-{self._made}"
        one = self._operations[name] = Operation(name, time.monotonic() + takes_s, error)
        return one.answer()

    def _check(self, body: Any, schema: str) -> None:
        self.complaints += complaints(body, {"$ref": schema}, self.schemas, schema)

    def operation(self, name: str, **_: Any) -> Any:
        return self._operations[name].answer()

    def region(self, name: str, **_: Any) -> Any:
        return {"name": _there(name, REGIONS)}

    def regions(self, **_: Any) -> Any:
        return {"items": [{"name": name} for name in REGIONS]}

    def network(self, name: str, **_: Any) -> Any:
        return {"name": _there(name, {"default": 0})}

    def aggregated(self, kind: str, query: dict[str, str], **_: Any) -> Any:
        by_kind = {"instances": self.instances, "disks": self.disks}
        found = by_kind[kind] if kind in by_kind else _offered(kind)
        items: dict[str, Any] = {f"zones/{zone}": {"warning": {"code": "NO_RESULTS_ON_PAGE"}} for zone in ZONES}
        for key, one in found.items():
            if _fits(one, query.get("filter", "")):
                place = items[f"zones/{key.split('/')[0]}"]
                place.pop("warning", None)
                place.setdefault(kind, []).append(one)
        return {"items": items}

    def insert(self, zone: str, body: Any, **_: Any) -> Any:
        self._check(body, "Instance")
        machine, name = body["machineType"].rpartition("/")[2], f"{zone}/{body['name']}"
        code = self.refusals.get(machine) or self.refusals.get(f"{zone}/{machine}")
        if code == "quotaExceeded":
            raise Error(403, code, f"no {machine} for you: Quota 'CPUS' exceeded.")
        if name in self.instances:
            raise Error(409, "alreadyExists", f"{name} already exists")
        if code:
            return self._operation(error=code)
        self._made += 1
        [link] = body["networkInterfaces"]
        link = {**link, "networkIP": f"10.128.{self._made // 250}.{self._made % 250 + 2}"}
        link["accessConfigs"] = [{**one, "natIP": f"198.51.100.{self._made + 1}"} for one in link["accessConfigs"]]
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {"id": str(self._made), "status": "STAGING", "creationTimestamp": created}
        known |= {"zone": f"{_URL}/zones/{zone}", "machineType": f"{_URL}/{body['machineType']}"}
        self.instances[name] = {**body, **known, "networkInterfaces": [link]}
        self.disks[name] = {"name": body["name"], "labels": body["disks"][0]["initializeParams"]["labels"]}
        self.inserted.append(body)

        self._starting[name] = time.monotonic() + _TAKES_S
        return self._operation()

    def instance(self, zone: str, name: str, **_: Any) -> Any:
        return self.instances[_there(f"{zone}/{name}", self.instances)]

    def listed(self, zone: str, query: dict[str, str], **_: Any) -> Any:
        here = {key: one for key, one in self.instances.items() if key.startswith(f"{zone}/")}
        return {"items": [one for one in here.values() if _fits(one, query["filter"])]}

    def delete(self, zone: str, name: str, bearer: str, **_: Any) -> Any:
        identity = _there(f"{zone}/{name}", self.instances)
        if bearer != "client" and bearer not in self.may_delete:
            raise Error(403, "forbidden", "Required 'compute.instances.delete' permission")
        self.instances[identity]["status"] = "STOPPING"
        self._ending.setdefault(identity, time.monotonic() + _TAKES_S)
        return self._operation()

    def delete_disk(self, zone: str, name: str, **_: Any) -> Any:
        identity = _there(f"{zone}/{name}", self.disks)
        if identity in self.instances:
            raise Error(400, "resourceInUseByAnotherResource", f"The disk {name} is already being used")
        del self.disks[identity]
        return self._operation()

    def serial(self, zone: str, name: str, **_: Any) -> Any:
        return {"contents": self.console(_there(f"{zone}/{name}", self.instances))}

    def rules(self, query: dict[str, str], **_: Any) -> Any:
        return {"items": [one for one in self.firewalls.values() if _fits(one, query.get("filter", ""))]}

    def rule(self, name: str, **_: Any) -> Any:
        return self.firewalls[_there(name, self.firewalls)]

    def insert_rule(self, body: Any, **_: Any) -> Any:
        self._check(body, "Firewall")
        if body["name"] in self.firewalls:
            raise Error(409, "alreadyExists", f"{body['name']} already exists")
        self.firewalls[body["name"]] = body
        return self._operation()

    def patch_rule(self, name: str, body: Any, **_: Any) -> Any:
        self._check(body, "Firewall")
        self.firewalls[_there(name, self.firewalls)] |= body
        return self._operation()

    def delete_rule(self, name: str, **_: Any) -> Any:
        del self.firewalls[_there(name, self.firewalls)]
        return self._operation()


_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "regions", FakeGce.regions),
    ("GET", "regions/([^/]+)", FakeGce.region),
    ("GET", "global/networks/([^/]+)", FakeGce.network),
    ("GET", "(?:global|zones/[^/]+)/operations/([^/]+)", FakeGce.operation),
    ("GET", "aggregated/([^/]+)", FakeGce.aggregated),
    ("POST", "zones/([^/]+)/instances", FakeGce.insert),
    ("GET", "zones/([^/]+)/instances", FakeGce.listed),
    ("GET", "zones/([^/]+)/instances/([^/]+)", FakeGce.instance),
    ("DELETE", "zones/([^/]+)/instances/([^/]+)", FakeGce.delete),
    ("GET", "zones/([^/]+)/instances/([^/]+)/serialPort", FakeGce.serial),
    ("DELETE", "zones/([^/]+)/disks/([^/]+)", FakeGce.delete_disk),
    ("GET", "global/firewalls", FakeGce.rules),
    ("POST", "global/firewalls", FakeGce.insert_rule),
    ("GET", "global/firewalls/([^/]+)", FakeGce.rule),
    ("PATCH", "global/firewalls/([^/]+)", FakeGce.patch_rule),
    ("DELETE", "global/firewalls/([^/]+)", FakeGce.delete_rule),
]


def _there(name: str, known: dict[str, Any]) -> str:
    if name not in known:
        raise Error(404, "notFound", f"The resource '{name}' was not found")
    return name


def _fits(one: dict[str, Any], wanted: str) -> bool:
    """Whether a resource is what a filter asks for, of the three forms that there are here."""
    if not wanted:
        return True
    if wanted.startswith("name:"):
        return one["name"].startswith(wanted.removeprefix("name:").removesuffix("*"))
    key, _, value = wanted.partition("=")
    return (one["name"] if key == "name" else one.get("labels", {}).get(key.removeprefix("labels."))) == value


def _offered(kind: str) -> dict[str, dict[str, Any]]:
    """Return what can be had: machine types in every zone, GPUs to attach in the second zone of each region."""
    if kind == "acceleratorTypes":
        return {f"{zone}/t4": {"name": "nvidia-tesla-t4"} for zone in ZONES if zone.endswith("b")}
    found: dict[str, dict[str, Any]] = {}
    for one in catalog.machines("gcp"):
        told: dict[str, Any] = {"name": one.name}
        gpu = _BUNDLED.get(one.name.partition("-")[0])
        if gpu is not None:
            told["accelerators"] = [{"guestAcceleratorType": gpu, "guestAcceleratorCount": one.gpus}]
        found |= {f"{zone}/{one.name}": told for zone in ZONES}
    return found


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks the name of its address, and there is nobody to answer


class _Handler(BaseHTTPRequestHandler):
    fake: FakeGce

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""

    def reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Api(_Handler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if url.path == "/token":
            self.reply(200, json.dumps({"access_token": "client", "expires_in": 3600}).encode())
            return
        path = url.path.partition(f"/compute/v1/projects/{PROJECT}/")[2]
        query = {key: one for key, [one] in parse_qs(url.query).items()}
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            told = self.fake.answer(self.command, path, query, json.loads(data) if data else None, bearer)
            self.reply(200, json.dumps(told).encode())
        except Error as error:
            why = {"message": str(error), "domain": "global", "reason": error.reason}
            told = {"error": {"code": error.status, "message": str(error), "errors": [why]}}
            self.reply(error.status, json.dumps(told).encode())

    do_POST = do_PATCH = do_DELETE = do_GET


class _Metadata(_Handler):
    def do_GET(self) -> None:
        address, path = self.client_address[0], self.path.removeprefix("/computeMetadata/v1/")
        for name, one in self.fake.seen().items():
            if one["networkInterfaces"][0]["networkIP"] == address and self.headers["Metadata-Flavor"] == "Google":
                known = {
                    "instance/zone": f"projects/1/zones/{name.partition('/')[0]}",
                    "instance/name": one["name"],
                    "project/project-id": PROJECT,
                }
                if one.get("serviceAccounts"):
                    token = {"access_token": one["serviceAccounts"][0]["email"]}
                    known["instance/service-accounts/default/token"] = json.dumps(token)
                if path in known:
                    self.reply(200, known[path].encode())
                    return
        self.reply(404, b"")
