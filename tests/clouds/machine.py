"""One machine of the room: network, process and mount namespaces of its own, in which its cloud-init runs.

Its disk is a folder, mounted at /var/lib. Programs that would need a real machine or the internet are stand-ins:
`docker run` runs the command here, with the Python that the room has for the image; `python -m pip` only takes notes.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.nvml import Simulated, simulate

_DISK = "/var/lib"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LINK_S = 10.0

_INIT = """\
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
for address in {addresses}; do ip addr add "$address/32" dev eth0; done
ip link set eth0 up
ip route add default dev eth0 src {private}
mount --bind {disk} /var/lib
mount -t tmpfs none /sys/fs/cgroup  # a container may not make groups either
{lines}
sleep infinity & wait
"""

_DOCKER = """\
import json, os, sys
from pathlib import Path

home = Path(__file__).resolve().parent.parent
TAKE_VALUE = {"-e", "--env", "-v", "--volume", "--name", "--entrypoint", "-u", "--user", "--gpus", "--shm-size"}
verb, *words = sys.argv[1:]
if verb == "login":
    with (home / "logins.jsonl").open("a") as notes:
        notes.write(json.dumps([*words, sys.stdin.read().strip()]) + "\\n")
if verb != "run":
    sys.exit(0)
options, environ, entrypoint = [], {}, []
while words and words[0].startswith("-"):
    option, joined, value = words.pop(0).partition("=")
    if not joined and option in TAKE_VALUE:
        value = words.pop(0)
    options.append(f"{option}={value}" if value else option)
    if option in ("-e", "--env"):
        name, _, environ[name] = value.partition("=")
    elif option == "--entrypoint":
        entrypoint = [value]
    elif option in ("-v", "--volume"):
        assert len(set(value.split(":")[:2])) == 1, f"the stand-in mounts nothing elsewhere: {value}"
image, *command = words
with (home / "containers.jsonl").open("a") as notes:
    notes.write(json.dumps({"image": image, "options": options, "environ": environ, "command": command}) + "\\n")
python = json.loads((home / "images.json").read_text()).get(image, sys.argv[0] and os.environ["ROOM_PYTHON"])
if python is None:
    print(f"Unable to find image '{image}' locally", file=sys.stderr)
    sys.exit(125)
container = home / "container"
container.mkdir(exist_ok=True)
(container / "python").write_text(
    f'#!/bin/sh\\nif [ "$1 $2" = "-m pip" ]; then shift 2; echo "$@" >> {home}/pip.txt; exit 0; fi\\n'
    f'exec {python} "$@"\\n'
)
(container / "python").chmod(0o755)
command = entrypoint + command
path = f"{container}:/usr/sbin:/usr/bin:/sbin:/bin"
clean = {"PATH": path, "HOME": str(home), "TMPDIR": str(home / "tmp"), **environ}
if any(option.startswith("--gpus") for option in options):
    clean |= json.loads((home / "gpus.json").read_text())
(home / "docker.pid").write_text(str(os.getpid()))
os.execvpe(command[0], command, clean)
"""

_SHUTDOWN = """\
touch {home}/shutdown
sleep infinity
"""

_OTHERS = ("apt-get", "systemctl", "curl")  # take notes, and succeed


@dataclass(frozen=True)
class Container:
    """One `docker run`, taken apart."""

    image: str
    options: list[str]
    environ: dict[str, str]
    command: list[str]

    @property
    def gpus(self) -> bool:
        return any(option.startswith("--gpus") for option in self.options)


@dataclass(frozen=True)
class Instance:
    """What a cloud says of a machine. `gone`: it is not to run any more."""

    id: str
    type: str
    running: bool
    gone: bool
    tags: dict[str, str]
    private_ip: str
    public_ip: str | None


class Machine:
    """A machine that runs, or has run.

    `images`: container image → path of a Python, None if nobody has the image; `gpus`: what its driver tells of.
    """

    def __init__(
        self,
        home: Path,
        instance: Instance,
        user_data: str,
        images: dict[str, str | None],
        bridge: str,
        gpus: Sequence[Simulated] = (),
    ):
        self.home = home
        self.id, self.type, self.tags = instance.id, instance.type, instance.tags
        self.private_ip, self.public_ip = instance.private_ip, instance.public_ip
        self.user_data = user_data
        self._bridge = bridge
        self._cloud_init: dict[str, Any] = yaml.safe_load(user_data)
        self._booted = False
        self._process: subprocess.Popen[bytes] | None = None
        for folder in ("bin", "tmp", "disk"):
            (home / folder).mkdir(parents=True)
        (home / "images.json").write_text(json.dumps(images))
        environ = simulate(home / "bin", gpus) if gpus else {}
        assert environ is not None, "a machine with GPUs needs a C compiler"
        (home / "gpus.json").write_text(json.dumps(environ))
        self._install("docker", f"#!{sys.executable} -IS\n{_DOCKER}")
        self._install("shutdown", "#!/bin/sh\n" + _SHUTDOWN.format(home=home))
        self._install("python3", f'#!/bin/sh\nexec {sys.executable} -IS "$@"\n')
        for name in _OTHERS:
            self._install(name, f'#!/bin/sh\necho {name} "$@" >> {home}/notes.txt\n')
        for file in self._cloud_init.get("write_files", []):
            self._write(file)

    def _install(self, name: str, text: str) -> None:
        path = self.home / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def _write(self, file: dict[str, Any]) -> None:
        content = file["content"]
        encoding = file.get("encoding", "")
        data = base64.b64decode(content) if "b64" in encoding else content.encode()
        data = gzip.decompress(data) if "gz" in encoding else data
        path = self.disk / Path(file["path"]).relative_to(_DISK)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(int(file.get("permissions", "0644"), 8))

    @property
    def disk(self) -> Path:
        """What the machine sees as /var/lib."""
        return self.home / "disk"

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def wants_to_end(self) -> bool:
        """Whether it was shut down from inside."""
        return (self.home / "shutdown").exists()

    @property
    def console(self) -> str:
        """What it has written since its first boot."""
        path = self.home / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def containers(self) -> list[Container]:
        """What `docker run` was asked for, oldest first."""
        path = self.home / "containers.jsonl"
        return [Container(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def logins(self) -> list[list[str]]:
        """What `docker login` was asked for, and the password that it was given."""
        path = self.home / "logins.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def pip(self) -> list[list[str]]:
        """What pip was asked for."""
        path = self.home / "pip.txt"
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def boot(self) -> None:
        """Switch it on: the first time all of cloud-init, then only what runs at each boot."""
        per_boot = sorted((self.disk / "cloud/scripts/per-boot").glob("*"))
        lines = [str(Path(_DISK, path.relative_to(self.disk))) for path in per_boot]
        if not self._booted:
            lines += [
                line if isinstance(line, str) else shlex.join(line) for line in self._cloud_init.get("runcmd", [])
            ]
        self._booted = True
        addresses = [self.private_ip, *filter(None, [self.public_ip])]
        script = _INIT.format(
            addresses=" ".join(addresses), private=self.private_ip, disk=self.disk, lines="\n".join(lines)
        )
        with (self.home / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                cwd="/",
                env={
                    "PATH": f"{self.home}/bin:{_PATH}",
                    "HOME": str(self.home),
                    "TMPDIR": str(self.home / "tmp"),
                    "ROOM_PYTHON": sys.executable,
                },
            )
        self._connect(self._process.pid)

    def _connect(self, pid: int) -> None:
        """Give it a link to the room's bridge, once it has its own network."""
        ours, until = os.readlink("/proc/self/ns/net"), time.monotonic() + _LINK_S
        while os.readlink(f"/proc/{pid}/ns/net") == ours:
            if time.monotonic() > until:
                raise TimeoutError(f"machine {self.id} does not get a network of its own")
            time.sleep(0.005)
        link = f"m{pid}"
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in self.private_ip.split("."))  # stays over restarts
        pair = ["link", "add", link, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", str(pid)]
        subprocess.run(["ip", *pair], check=True)
        subprocess.run(["ip", "link", "set", link, "master", self._bridge, "up"], check=True)

    def power_off(self) -> None:
        """End it at once, and all that runs on it."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def crash_container(self) -> None:
        """End what docker runs, as by the kernel's out-of-memory killer."""
        assert self._process is not None
        pid = (self.home / "docker.pid").read_text()
        subprocess.run(["nsenter", "-t", str(self._init()), "-p", "-m", "sh", "-c", f"kill -KILL {pid}"], check=True)

    def kill_python(self) -> None:
        """End the Python processes of its container, and leave the rest."""
        assert self._process is not None
        subprocess.run(
            ["nsenter", "-t", str(self._init()), "-p", "-m", "pkill", "-KILL", "-f", "python.*burla"], check=True
        )

    def _init(self) -> int:
        assert self._process is not None
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def remove(self) -> None:
        """Delete its disk."""
        shutil.rmtree(self.home)
