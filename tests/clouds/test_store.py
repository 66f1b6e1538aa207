"""Results that outlive the machines: in a folder that these share with the client, as a bucket is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import burla
from burla import cloud_api
from burla.client.connection import DaskTarget
from burla.clusters import boot, record
from burla.clusters.boot import Boot
from burla.follower import whereabouts
from tests.clouds.clusters import make, wait_until
from tests.clouds.machine_room import MachineRoom, in_machine_room

READ = """
import burla
from burla import cli
burla.use("kept")
job = burla.attach()
assert [one.id for one in burla.jobs()] == [job.id]
assert (job.status, job.progress.done, job.progress.failed) == ("failed", 3, 1), job
assert [job.result(i) for i in (0, 1, 3)] == [b"x" * 70_000, b"x" * 1_500_000, b"x" * 3]
try:
    job.results()
except ZeroDivisionError as error:
    assert error.burla_input_index == 2 and len(error.burla_results) == 3
print(*[str(line) for line in job.logs()], *[one.type_name for one in job.errors()], sep="\\n", flush=True)
assert cli.main(["job", "logs", job.id, "--input", "3"]) == 0
try:
    job.retry_failed()
except burla.ClusterLost as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURLA_HOME", str(tmp_path / "home"))


def test_the_line_of_a_detached_job_says_where_its_results_stay_and_at_what_price():
    connection: Any = SimpleNamespace(target=DaskTarget("tls://h:1", None), welcome=SimpleNamespace())
    none = dict.fromkeys(("region", "machine", "image", "idle_minutes", "spot", "disk_gb", "role"))
    cluster = replace(cloud_api.settings("c", "aws", *none.values()), address="tls://h:1")
    for store, keep_s, says in (
        ("", 7200.0, "stay on the head (m7i.large, $0.10 an hour) until they are read, at most 2 h after its end."),
        ("", 0.0, "its results end with the head, 10 min after the last job."),
        ("s3://b/r", 7200.0, "copied to s3://b/r/c, and can be read there when the machines have ended."),
    ):
        record.write(replace(cluster, store=store, keep_results_s=keep_s))
        told = whereabouts("job-1", connection)
        assert told.startswith("it goes on on the cluster c without this process; its results") and says in told, told


def test_store_and_hours_are_kept_with_the_cluster_and_only_with_a_store_the_head_has_the_role(tmp_path: Path):
    none = dict.fromkeys(("region", "machine", "image", "idle_minutes", "spot", "disk_gb"))
    url = f"file://{tmp_path}/b/"
    cluster = cloud_api.settings("c", "aws", *none.values(), "reader", url, 0)
    assert (cluster.copies, cluster.keep_results_s) == (f"file://{tmp_path}/b/c", 0.0)
    assert [cluster.access_of(role) for role in ("head", "node")] == ["reader", "reader"]
    assert [replace(cluster, store="").access_of(role) for role in ("head", "node")] == ["", "reader"]
    record.write(cluster)
    again = cloud_api.settings("c", None, *none.values(), None)
    assert (again.store, again.keep_results_s) == (cluster.store, 0.0)
    with pytest.raises(burla.InvalidValue, match="keep_results_hours=-1"):
        cloud_api.settings("c", "aws", *none.values(), None, None, -1)
    told = json.dumps(boot.settings(Boot("head", "n", "i", 1.0, store=cluster.copies, keep_results_s=5.0)))
    assert f'"store": "{cluster.copies}", "keep_results_s": 5.0' in told


@in_machine_room
def test_results_errors_and_output_are_read_when_no_machine_is_left(room: MachineRoom) -> None:
    """By another process; what needs a head says how to have one, and the next head of the name has them too."""
    url = f"file://{room.folder}/bucket"

    def call(size: int) -> bytes:
        print("size", size)
        if not size:
            raise ZeroDivisionError("of nothing")
        return b"x" * size

    cluster = make("kept", nodes=1, idle_s=6, store=url)
    assert cluster.copies == f"{url}/kept"
    with burla.use("kept"):
        job = burla.submit(call, [70_000, 1_500_000, 0, 3], on_error="continue")
    wait_until(lambda: room.machines == [], 60, "the end of idle machines")
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert sorted(lines[:4]) == ["size 0", "size 1500000", "size 3", "size 70000"]
    assert lines[4:6] == ["ZeroDivisionError", "size 3"] and "burla cluster create kept" in lines[6]
    assert f"jobs that have ended are read from {url}/kept" in done.stderr
    burla.create_cluster("kept", nodes=0)
    with burla.use("kept"):
        assert burla.attach(job.id).result(3) == b"xxx"
        assert [one.id for one in burla.jobs()] == [job.id]
        with pytest.raises(burla.UnknownJob):
            burla.attach("another")
    burla.delete_cluster("kept")
