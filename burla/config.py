"""Settings, from environment variables, read when they are asked for."""

from __future__ import annotations

import math
import os
from pathlib import Path

from burla import images
from burla.errors import InvalidValue

FUNCTION_LIMIT_BYTES = 100_000_000
INPUT_LIMIT_BYTES = 200_000_000
START_TIMEOUT_S = 60.0  # how long a job waits for the first node
NODE_LEASE_S = 20.0  # a node beats every 5 s; silent for so long, its calls run elsewhere
CLIENT_LEASE_S = 60.0  # a client that is silent for longer is given up, and its attached jobs with it
CLOUD_IDLE_MINUTES = 10.0  # then a machine in a cloud ends
CLOUD_DISK_GB = 100
KEEP_RESULTS_HOURS = 24.0  # a head in a cloud stays so long for results that nobody has read
GROWTH_S = 1200.0  # a job that grows waits so long for a machine on which its calls fit
CLIENT_GONE_S = 5.0  # a client whose connection ended has this long to come back


def home() -> Path:
    """Return the folder of all state: `BURLA_HOME`, else `~/.burla`."""
    return Path(os.environ.get("BURLA_HOME") or Path.home() / ".burla")


def local_idle_s() -> float:
    """Return after how many idle seconds the local cluster ends: `BURLA_LOCAL_IDLE_S`, else 300.

    Raises InvalidValue if the variable is not a number of at least 0.
    """
    return _number("BURLA_LOCAL_IDLE_S", 300.0)


def local_cpus() -> int | None:
    """Return how many slots the local cluster has: `BURLA_LOCAL_CPUS`, else None (as many as there are CPUs)."""
    value = _number("BURLA_LOCAL_CPUS", 0.0)
    return int(value) or None


def image() -> str | None:
    """Return the container image that this machine runs, as it was told at boot: `BURLA_IMAGE`, normalised."""
    name = os.environ.get("BURLA_IMAGE", "").strip()
    return images.normalise(name) if name else None


def grow_max_cpus() -> int:
    """Return up to how many CPUs a cluster grows by itself: `BURLA_GROW_MAX_CPUS`, else 2,560."""
    return int(_number("BURLA_GROW_MAX_CPUS", 2560.0))


def keep_s() -> float:
    """Return for how long an ended job is kept: `BURLA_KEEP_DAYS`, else 7 days."""
    return 86_400 * _number("BURLA_KEEP_DAYS", 7.0)


def store_limit_bytes() -> int:
    """Return how much jobs may take on the head's disk before old ones are deleted: `BURLA_STORE_GB`, else 50 GB."""
    return int(1e9 * _number("BURLA_STORE_GB", 50.0))


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise InvalidValue(f"{name}={text!r} in the environment: it must be a number of at least 0.")
    return value
