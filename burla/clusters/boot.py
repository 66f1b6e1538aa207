"""What a machine is told at its first start: cloud-init that runs a container, and in it `bootstrap`. Pure.

Nothing else of this process, its environment or its Dask configuration goes there: only what the machine needs.
"""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from burla import bucket

PORT = 8786
LIMIT_BYTES = 16_384  # EC2 takes no more
HOME = "/var/lib/burla"  # on the machine and in its container
APT = "DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300"  # others may be at it when a machine boots
_PINNED = ("dask", "distributed", "cloudpickle", "packaging", "psutil", "uv")
_PINNED_FOR_GPUS = ("nvidia-ml-py",)


@dataclass(frozen=True, slots=True)
class Timers:
    """After how many seconds a machine ends by itself.

    `boot_s`: it did not get as far as our package. `package_s`: nobody brought that. `head_gone_s`: a node has no head.
    """

    boot_s: float = 1200.0
    package_s: float = 900.0
    head_gone_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Boot:
    """A machine to be. `head`: the head's address, of a node; `idle_s`: after so long without work it ends.

    `usd_per_hour`: what a node tells its head of its price, if that is known. Of a head, `store`: the URL where it
    copies results to, if it does; `keep_results_s`: so long it stays for those that are on it alone. `leaving`: shell
    commands of its cloud, run before it shuts down; `login`: such as let docker in where the image is.
    """

    role: str
    name: str
    image: str
    idle_s: float
    head: str = ""
    gpus: bool = False
    timers: Timers = Timers()
    usd_per_hour: float | None = None
    store: str = ""
    keep_results_s: float = 0.0
    leaving: str = ""
    login: str = ""


def settings(boot: Boot) -> dict[str, object]:
    """Return what `bootstrap` and `machine` read there."""
    return {
        "role": boot.role,
        "name": boot.name,
        "image": boot.image,
        "head": boot.head,
        "port": PORT,
        "idle_s": boot.idle_s,
        "python": "{}.{}".format(*sys.version_info),
        "requirements": requirements(boot.gpus) + (bucket.requirements(boot.store) if boot.store else []),
        "usd_per_hour": boot.usd_per_hour,
        "store": boot.store,
        "keep_results_s": boot.keep_results_s,
        **asdict(boot.timers),
    }


def requirements(gpus: bool) -> list[str]:
    """Return what the machine needs beside Python, in the versions of this process."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in (*_PINNED, *(_PINNED_FOR_GPUS if gpus else ()))]


def user_data(boot: Boot, keys: Mapping[str, bytes]) -> str:
    """Return the cloud-init document. `keys`: file name → PEM."""
    files = {
        f"{HOME}/settings.json": json.dumps(settings(boot)).encode(),
        f"{HOME}/bootstrap.py": Path(__file__).with_name("bootstrap.py").read_bytes(),
        f"{HOME}/start.sh": _start(boot).encode(),
        **{f"{HOME}/keys/{name}": pem for name, pem in keys.items()},
        # of each boot: a machine that was restarted goes on
        "/var/lib/cloud/scripts/per-boot/burla": _per_boot(boot).encode(),
    }
    lines = ["#cloud-config", "write_files:"]
    for path, data in files.items():
        mode = "0700" if path.endswith(("/burla", ".sh")) else "0600"
        packed = base64.b64encode(gzip.compress(data, mtime=0)).decode()
        lines += [f"- path: {path}", f"  permissions: '{mode}'", "  encoding: gz+b64", f"  content: {packed}"]
    return "\n".join(lines) + "\n"


def _per_boot(boot: Boot) -> str:
    """Run the container, again if it was killed, then end the machine; also if it hangs before our package runs."""
    options = [
        "--rm", "--net=host", "--user=root", "--name=burla", "--entrypoint=sh", f"--volume={HOME}:{HOME}",
        f"--env=BURLA_IMAGE={boot.image}", *(["--gpus=all"] if boot.gpus else []),
    ]  # fmt: skip
    return f"""\
#!/bin/sh
export DOCKER_CONFIG={HOME}/docker
leave() {{
{boot.leaving or ":"}
}}
chmod 700 {HOME} {HOME}/keys
rm -f {HOME}/ready
(sleep {boot.timers.boot_s:g}; [ -e {HOME}/ready ] || {{ leave; shutdown -h now; }}) &
docker rm -f burla >/dev/null 2>&1
for attempt in 1 2 3; do
  command -v docker >/dev/null || {{ {APT} update -q; {APT} install -qy docker.io; }}
{boot.login or ":"}
  docker run {shlex.join(options)} {shlex.quote(boot.image)} {HOME}/start.sh && break
  sleep 3
done
leave
shutdown -h now
"""


def _start(boot: Boot) -> str:
    """In the container: install what is missing, then run; what crashes starts again, but not for ever."""
    return f"""\
#!/bin/sh
cd {HOME} || exit 1
missing=$(python -P bootstrap.py missing) || exit 1
[ -z "$missing" ] || python -m pip install --no-cache-dir -q $missing || exit 1
failures=0
while [ $failures -lt 10 ]; do
  began=$(date +%s)
  python -P bootstrap.py run && exit 0
  [ $(($(date +%s) - began)) -gt 60 ] && failures=0
  failures=$((failures + 1))
  sleep 1
done
exit 1
"""
