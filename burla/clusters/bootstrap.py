"""What a machine of a cluster runs first, in its container: it fetches our package, and becomes that.

    python -P bootstrap.py missing     print what pip has to install
    python -P bootstrap.py run         the package; a head waits for a client to bring it, a node asks its head

This file travels in the machine's user data: it needs nothing of ours, and must be small.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import json
import os
import ssl
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

HOME = Path("/var/lib/burla")
PACKAGE = HOME / "package.zip"
AGAIN_S = 1.0
ASK_S = 30.0


def missing(settings: dict[str, Any]) -> list[str]:
    """Return the requirements (name==version, or name alone) that this image does not fulfil."""
    python = "{}.{}".format(*sys.version_info)
    if python != settings["python"]:
        sys.exit(f"burla: the image has Python {python}, the client {settings['python']}: they must be the same")
    lacking = []
    for requirement in settings["requirements"]:
        name, _, version = requirement.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        if not found or (version and found != version):
            lacking.append(requirement)
    return lacking


def security() -> Any:
    """Return the keys of the cluster."""
    from distributed import Security

    keys = HOME / "keys"
    roles = [(role, kind) for role in ("client", "scheduler", "worker") for kind in ("cert", "key")]
    return Security(
        require_encryption=True,
        tls_ca_file=str(keys / "ca.pem"),
        tls_ciphers=None,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        tls_max_version=None,
        **{f"tls_{role}_{kind}": str(keys / f"{kind}.pem") for role, kind in roles},
    )


def keep(archive: bytes, sha256: str) -> None:
    """Write the package, unless it is not what was meant."""
    if hashlib.sha256(archive).hexdigest() != sha256:
        raise ValueError("the package has changed on its way")
    new = PACKAGE.with_suffix(".new")
    with open(new, "wb") as file:
        file.write(archive)
        file.flush()
        os.fsync(file.fileno())
    new.rename(PACKAGE)


async def receive(settings: dict[str, Any]) -> None:
    """Listen where the head will, until a client brings the package. Raises TimeoutError."""
    from distributed.core import Server, Status

    came = asyncio.Event()

    async def get_metadata(keys: list[str], default: Any = None) -> dict[str, Any]:
        return {"key": "", "version": "", "own": True, "waits": True}

    async def put(archive: bytes, sha256: str) -> None:
        keep(archive, sha256)
        came.set()

    async def get() -> None:
        """Tell a node that there is none yet."""

    tls = security()
    handlers = {"get_metadata": get_metadata, "burla_put_package": put, "burla_get_package": get}
    server = Server(handlers, connection_args=tls.get_connection_args("scheduler"))
    await server.listen(f"tls://0.0.0.0:{settings['port']}", **tls.get_listen_args("scheduler"))
    server.status = Status.running
    print("burla: waiting for the package", flush=True)
    await asyncio.wait_for(came.wait(), settings["package_s"])
    await asyncio.sleep(0.1)  # the reply goes first
    await server.close()


async def fetch(settings: dict[str, Any]) -> None:
    """Ask the head for its package, until it has one. Raises TimeoutError."""
    from distributed.core import rpc

    until = time.monotonic() + settings["package_s"]
    arguments = security().get_connection_args("worker")
    while time.monotonic() < until:
        try:
            async with rpc(settings["head"], timeout=ASK_S, connection_args=arguments) as head:
                answer: Any = await head.burla_get_package()
        except OSError as error:
            answer = None
            print(f"burla: no package from {settings['head']} yet: {error!r}", flush=True)
        if answer is not None:
            return keep(answer["archive"], answer["sha256"])
        await asyncio.sleep(AGAIN_S)
    raise TimeoutError


def run(settings: dict[str, Any]) -> None:
    """Become the package. A head that has it on its disk needs nobody to start again."""
    if settings["role"] == "node":
        asyncio.run(fetch(settings))
    elif not PACKAGE.exists():
        asyncio.run(receive(settings))
    archive = PACKAGE.read_bytes()
    folder = HOME / "packages" / hashlib.sha256(archive).hexdigest()[:16]
    with zipfile.ZipFile(io.BytesIO(archive)) as package:
        package.extractall(folder)
    (HOME / "ready").touch()
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from burla.clusters.machine import main; main()"
    os.execv(sys.executable, [sys.executable, "-P", "-c", code])


if __name__ == "__main__":
    told = json.loads((HOME / "settings.json").read_text())
    if sys.argv[1] == "missing":
        print(*missing(told))
    else:
        try:
            run(told)
        except TimeoutError:
            print("burla: nobody has brought the package", flush=True)
            sys.exit(0)  # on purpose: the machine ends
