"""Clusters for tests in the machine room, with timers as short as a test needs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from burla import cloud_api
from burla.clusters import lifecycle, record
from burla.clusters.apart import run_apart
from burla.clusters.boot import Timers
from burla.clusters.record import CloudCluster
from tests.clouds.room import CLIENT_IP

SHORT = Timers(boot_s=40.0, package_s=15.0, head_gone_s=15.0)


def make(name: str, nodes: int = 1, idle_s: float = 600.0, timers: Timers = SHORT, **options: object) -> CloudCluster:
    """Create a cluster."""
    empty = dict.fromkeys(("cloud", "region", "machine", "image", "idle_minutes", "spot", "disk_gb", "role"))
    empty |= dict.fromkeys(("store", "keep_results_hours"))
    cluster = cloud_api.settings(name, **{**empty, "cloud": "aws", **options})
    cluster = replace(cluster, idle_s=idle_s)
    return run_apart(lifecycle.create(cluster, nodes, f"{CLIENT_IP}/32", timers, lifecycle.say))


def scale(name: str, nodes: int, timers: Timers = SHORT) -> None:
    run_apart(lifecycle.scale(record.get(name), nodes, timers, lifecycle.say))


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Return once a condition holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)
