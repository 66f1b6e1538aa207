"""Results that outlive the machines: in a folder that these share with the client, as a bucket is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import burla
from tests.clouds.clusters import make, wait_until
from tests.clouds.machine_room import MachineRoom, in_machine_room

READ = """
import burla, sys
burla.use("kept")
job = burla.attach()
assert [one.id for one in burla.jobs()] == [job.id]
assert (job.status, job.progress.done, job.progress.failed) == ("failed", 3, 1), job
assert [job.result(i) for i in (0, 1, 3)] == [b"x" * 70_000, b"x" * 1_500_000, b"x" * 3]
try:
    job.results()
except ZeroDivisionError as error:
    assert error.burla_input_index == 2 and len(error.burla_results) == 3
print(*[str(line) for line in job.logs()], *[one.type_name for one in job.errors()], sep="\\n")
try:
    job.retry_failed()
except burla.ClusterLost as error:
    print(error)
"""


@in_machine_room
def test_results_errors_and_output_are_read_when_no_machine_is_left(room: MachineRoom) -> None:
    """By another process; what needs a head says how to have one, and the next head of the name has them too."""
    url = f"file://{room.folder}/bucket"

    def call(size: int) -> bytes:
        print("size", size)
        if not size:
            raise ZeroDivisionError("of nothing")
        return b"x" * size

    cluster = make("kept", nodes=1, idle_s=3, store=url)
    assert cluster.copies == f"{url}/kept"
    with burla.use("kept"):
        job = burla.submit(call, [70_000, 1_500_000, 0, 3], on_error="continue")
    wait_until(lambda: room.machines == [], 60, "the end of idle machines")
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert sorted(lines[:4]) == ["size 0", "size 1500000", "size 3", "size 70000"]
    assert lines[4] == "ZeroDivisionError" and "burla cluster create kept" in lines[5]
    assert f"jobs that have ended are read from {url}/kept" in done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "burla.cli", "job", "logs", job.id, "--input", "3"],
        capture_output=True,
        text=True,
        env=os.environ | {"BURLA_CLUSTER": "kept"},
    )
    assert shown.stdout == "size 3\n", shown
    burla.create_cluster("kept", nodes=0)
    with burla.use("kept"):
        assert burla.attach(job.id).result(3) == b"xxx"
        assert [one.id for one in burla.jobs()] == [job.id]
        with pytest.raises(burla.UnknownJob):
            burla.attach("another")
    burla.delete_cluster("kept")
