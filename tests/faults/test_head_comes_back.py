"""What those see who are connected to a head that dies, or who die themselves before it has all."""

from __future__ import annotations

import socketserver
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import burla
from burla.clusters import local
from tests.conftest import Home, Ledger, Scripts, process_kind, wait_until


def test_a_killed_head_is_back_on_its_address_and_who_follows_the_log_sees_a_pause(
    own_home: Home, ledger: Ledger, tmp_path: Path
):
    """Killed twice, while calls run: they go on, each line comes once, in the order of its input, within 10 s."""
    write = ledger.writer()

    def call(x: int) -> int:
        import time

        write(x)
        for part in range(3):
            print(f"{x}.{part}", flush=True)
            time.sleep(0.1)
        return x

    job = burla.submit(call, range(30))
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(map(str, job.logs(follow=True))), daemon=True)
    follower.start()
    ready = local.find()
    assert ready is not None
    for _ in range(2):
        calls = len(ledger.entries()) + 6
        wait_until(lambda calls=calls: len(ledger.entries()) >= calls, 30, "calls")
        done = job.progress.done
        own_home.processes()["head"].kill()
        killed_at = time.monotonic()
        wait_until(lambda done=done: job.progress.done > done + 2, 10, "results after the kill of the head")
        assert time.monotonic() - killed_at < 10
        assert local.find() == ready, "the same address, of the same supervisor"
    assert job.results(timeout_s=60) == list(range(30))
    follower.join(30)
    assert Counter(lines) == Counter(f"{x}.{part}" for x in range(30) for part in range(3))
    for x in range(30):
        assert [line for line in lines if line.startswith(f"{x}.")] == [f"{x}.{part}" for part in range(3)]
    assert Counter(ledger.entries()) == Counter(map(str, range(30))), "no call of the surviving node ran twice"


class Hangup(socketserver.BaseRequestHandler):
    """Somebody else's server: it lets everybody in, and has nothing to say."""


def take(port: int) -> socketserver.ThreadingTCPServer:
    """Listen at the port of a head that is just ending."""
    other = socketserver.ThreadingTCPServer(("127.0.0.1", port), Hangup, bind_and_activate=False)
    other.allow_reuse_address = True  # connections of the old head still linger there

    def bound() -> bool:
        try:
            other.server_bind()
        except OSError:
            return False
        return True

    wait_until(bound, 10, "its port")
    other.server_activate()
    return other


def test_a_head_whose_port_was_taken_meanwhile_is_back_on_another(own_home: Home, ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import time

        write(x)
        time.sleep(0.1)
        return x

    job = burla.submit(call, range(30))
    wait_until(lambda: job.progress.done > 4, 30, "results")
    ready, processes = local.find(), own_home.processes()
    assert ready is not None
    processes["supervisor"].suspend()  # or it would be faster than us
    try:
        processes["head"].kill()
        wait_until(lambda: process_kind(processes["head"]) == "gone", 10, "the end of the head")
        other = take(int(ready.address.rsplit(":", 1)[1]))
    finally:
        processes["supervisor"].resume()
    serving = threading.Thread(target=other.serve_forever, daemon=True)
    serving.start()
    try:
        assert job.results(timeout_s=60) == list(range(30))
        now = local.find()
        assert now is not None and now.address != ready.address
    finally:
        other.shutdown()
        other.server_close()
    assert Counter(ledger.entries()) == Counter(map(str, range(30))), "no call of the surviving node ran twice"


SENDER = """
    import os, sys, time
    import burla

    def call(value):
        with open(sys.argv[1], "a") as file:
            file.write("ran\\n")

    def inputs():
        for number in range(60):
            yield bytes(200_000)
            if number == 40:
                print("half way", flush=True)
                time.sleep(60)

    burla.submit(call, inputs())
"""


def test_a_client_killed_before_all_inputs_had_arrived_leaves_a_cancelled_job_that_says_why(
    own_home: Home, scripts: Scripts, ledger: Ledger
):
    """It is given up although it is to be detached; no call of it has run."""
    script = scripts.start(SENDER, str(ledger.path))
    assert script.stdout is not None and script.stdout.readline() == "half way\n"
    wait_until(lambda: len(burla.jobs()) == 1, 30, "the job")
    (job,) = burla.jobs()
    assert job.status == "receiving"
    script.kill()
    wait_until(lambda: job.status == "cancelled", 20, "the end of the job")
    with pytest.raises(burla.JobCancelled, match=f"{job.id}.*before all its inputs had arrived"):
        job.results(timeout_s=10)
    assert ledger.entries() == []
    job.delete()
