"""A cluster on another machine, as far as one machine can be two: nodes in another virtual environment, home, network
and mount namespace, where nothing of the client can be read; and a package index of our own, which writes down what it
is asked for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import end_processes

ROOT = Path(__file__).parents[2]
_NET = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"  # of this process: others may run the same tests
HERE, THERE = f"{_NET}.1", f"{_NET}.2"
KEPT_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def run(*command: str, **options: object) -> str:
    """Return what a command prints; raise with all that it wrote if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def uv() -> str:
    found = shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")
    assert found is not None
    return found


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with burla; return its Python."""
    run(uv(), "venv", "--quiet", "--python", sys.executable, str(folder))
    python = folder / "bin" / "python"
    install(python, str(ROOT))
    return python


def install(python: Path, *packages: str, options: tuple[str, ...] = ()) -> None:
    run(uv(), "pip", "install", "--quiet", "--python", str(python), *options, *packages)


def distributions(python: Path) -> list[str]:
    """Return the names of what is installed in an environment."""
    lines = run(uv(), "pip", "freeze", "--python", str(python)).splitlines()
    return [re.split(r"==| @ ", line.removeprefix("-e "))[0].rpartition("/")[2] for line in lines]


def make_wheel(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    version: str = "1.0",
    requires: tuple[str, ...] = (),
    tag: str = "py3-none-any",
) -> Path:
    """Write a wheel with these files; return its path."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    contents = {**files, f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel}
    lines, packed = [], io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(text)}")
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,", ""]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    path.write_bytes(packed.getvalue())
    return path


class Index:
    """A package index that serves the wheels of a folder to this machine and the nodes; `asked`: its requests."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.asked: list[str] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                body = index.page(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Write nothing."""

        self._server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, host: str) -> str:
        return f"http://{host}:{self._server.server_port}/simple/"

    def page(self, path: str) -> bytes | None:
        kind, _, name = path.strip("/").partition("/")
        if kind == "files":
            return (self.folder / name).read_bytes()
        wheels = [file for file in self.folder.iterdir() if file.name.split("-")[0].replace("_", "-") == name]
        links = "".join(f'<a href="/files/{file.name}">{file.name}</a>' for file in wheels)
        return links.encode() if wheels else None

    def close(self) -> None:
        """Be unreachable from now on."""
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Machine:
    """What is another machine: a network namespace that reaches this one alone, and nothing of the folders `hidden`."""

    folder: Path
    hidden: tuple[Path, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"burla-test-{os.getpid()}"

    def start(self) -> None:
        ours = f"bt{os.getpid() % 100_000}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", "veth0", "netns", self.namespace)
        run("ip", "addr", "add", f"{HERE}/30", "dev", ours)
        run("ip", "link", "set", ours, "up")
        for command in (f"addr add {THERE}/30 dev veth0", "link set dev veth0 up", "link set dev lo up"):
            run("ip", "-n", self.namespace, *command.split())

    def run(self, *command: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a program there."""
        hide = " && ".join(f"mount -t tmpfs -o mode=700 none {path}" for path in self.hidden)
        script = f'mount --make-rprivate / && {hide} && cd {self.folder} && exec "$@"'
        known = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        path = f"{Path(uv()).parent}:/usr/bin:/bin"
        inside = {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", **known, **(environ or {})}
        with open(self.folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-c", script, "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=inside | {"PATH": f"{path}:/usr/sbin:/sbin"},
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        end_processes(self.processes)
        self.processes.clear()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


@contextlib.contextmanager
def machine(folder: Path, *hidden: Path) -> Iterator[Machine]:
    """Have another machine; nothing of it is left at the end."""
    made = Machine(folder, hidden)
    try:
        made.start()
        yield made
    finally:
        made.end()


class Proxy:
    """The way of the other machine to the package registries: an HTTP proxy here, which can be closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(5)
        self.connected: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{HERE}:{self.port}"

    async def _open(self) -> int:
        self._server = await asyncio.start_server(self._serve, "0.0.0.0", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).split()
            host, _, port = request[1].decode().rpartition(":")
            self.connected.append(host)
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    def close(self) -> None:
        """Have nothing reach the registries any more."""
        if self._server is not None:
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(5)

    def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        self._server = None
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_soon(self._loop.stop)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
