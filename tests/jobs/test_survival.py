"""Jobs outlive the process that began them, and the cluster's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import burla
from tests.conftest import Home, Ledger, Scripts, cluster_processes, end_cluster, wait_until
from tests.jobs.conftest import Gate

CALL = """
import os, sys, time
import burla

def call(x, gate=sys.argv[1], ledger=sys.argv[2]):
    print("call", x, flush=True)
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x}\\n".encode())
    os.close(fd)
    while x >= 3 and not os.path.exists(gate):
        time.sleep(0.01)
    return x * x
"""


def test_after_kill_9_of_a_script_another_process_follows_the_log_from_the_first_line(
    scripts: Scripts, gate: Gate, ledger: Ledger
):
    script = scripts.start(
        CALL + "print(burla.submit(call, range(20)).id, flush=True); time.sleep(60)", str(gate.path), str(ledger.path)
    )
    job_id = script.stdout.readline().strip()
    wait_until(lambda: len(ledger.entries()) == 5, 30, "five calls")
    os.kill(script.pid, signal.SIGKILL)
    script.wait()

    reader = scripts.start(
        """
        import sys, burla
        job = burla.attach(sys.argv[1])
        for line in job.logs(follow=True):
            print(line, flush=True)
        print(job.results())
        """,
        job_id,
        name="reader.py",
    )
    early = [reader.stdout.readline().strip() for _ in range(5)]
    assert sorted(early) == sorted(f"call {x}" for x in ledger.entries())
    gate.open()
    out, err = reader.communicate(timeout=30)
    *late, results = out.splitlines()
    assert sorted(early + late) == sorted(f"call {x}" for x in range(20)) and err == ""
    assert results == str([x * x for x in range(20)])
    assert sorted(ledger.entries(), key=int) == [str(x) for x in range(20)]


def test_a_detached_generator_that_was_killed_half_way_is_read_again_whole(
    scripts: Scripts, gate: Gate, ledger: Ledger, tmp_path: Path
):
    """What was written line by line before the kill, and what an attached process iterates, are all of it."""
    lines = tmp_path / "results.txt"
    script = scripts.start(
        CALL
        + f"""
with open({str(lines)!r}, "w", buffering=1) as file:
    for result in burla.remote_parallel_map(call, range(50), generator=True, detach=True):
        file.write(f"{{result}}\\n")
""",
        str(gate.path),
        str(ledger.path),
    )
    wait_until(lambda: lines.exists() and len(lines.read_text().splitlines()) == 3, 30, "three results")
    os.kill(script.pid, signal.SIGKILL)
    job_id = script.communicate()[1].split()[2]
    gate.open()
    pairs = list(burla.attach(job_id).iter_results())
    assert sorted(pairs) == [(x, x * x) for x in range(50)]
    assert set(lines.read_text().split()) == {"0", "1", "4"}


def test_a_killed_process_takes_its_attached_jobs_with_it_and_no_others(scripts: Scripts, gate: Gate, ledger: Ledger):
    script = scripts.start(
        CALL
        + """
import threading

def begin():
    before = burla.current_job()
    threading.Thread(target=burla.remote_parallel_map, args=(call, range(3, 9)), daemon=True).start()
    while (job := burla.current_job()) is None or (before is not None and job.id == before.id):
        time.sleep(0.01)
    return job

attached, detached = begin(), begin()
detached.detach()
print(attached.id, detached.id, burla.submit(call, range(3, 9)).id, file=sys.stderr, flush=True)
time.sleep(60)
""",
        str(gate.path),
        str(ledger.path),
    )
    attached, *others = script.stderr.readline().split()
    os.kill(script.pid, signal.SIGKILL)
    wait_until(lambda: burla.attach(attached).status == "cancelled", 20, "the end of the attached job")
    assert {burla.attach(other).status for other in others} <= {"waiting", "running"}
    gate.open()
    for other in others:
        assert burla.attach(other).results(timeout_s=30) == [x * x for x in range(3, 9)]


def test_results_of_classes_of_a_script_load_in_another_process(scripts: Scripts):
    done = scripts.run(
        """
        import burla
        class Pair:
            def __init__(self, x): self.x = x
            def both(self): return self.x, -self.x
        print(burla.submit(Pair, range(3)).id)
        """
    )
    results = burla.attach(done.stdout.strip()).results(timeout_s=30)
    assert [pair.both() for pair in results] == [(0, 0), (1, -1), (2, -2)]


def test_a_job_goes_on_after_the_cluster_was_stopped_when_somebody_attaches(
    own_home: Home, scripts: Scripts, gate: Gate, ledger: Ledger
):
    script = scripts.start(
        CALL
        + """
class Square(int): pass
job = burla.submit(lambda x: Square(call(x)), range(20))
print(job.id, flush=True)
try:
    job.results()
except burla.ClusterLost as error:
    print(sorted(error.burla_results.values()), error.burla_job.id == job.id)
""",
        str(gate.path),
        str(ledger.path),
    )
    job_id = script.stdout.readline().strip()
    wait_until(lambda: len(ledger.entries()) == 5 and burla.attach(job_id).progress.done == 3, 30, "three results")
    stopped = subprocess.run(
        [sys.executable, "-m", "burla.cli", "cluster", "stop"], capture_output=True, text=True, check=True
    )
    assert stopped.stdout.splitlines()[-1].startswith("When it is next started, these detached jobs go on: <lambda>")
    end_cluster(own_home.environ)
    assert script.communicate(timeout=30)[0] == "[0, 1, 4] True\n"
    assert not cluster_processes(own_home.environ)
    running = {entry for entry in ledger.entries() if int(entry) >= 3}
    assert len(ledger.entries()) == 5 and len(running) == 2
    gate.open()
    code = f"""import burla
job = burla.attach({job_id!r})
print([int(x) for x in job.results(timeout_s=60)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{[x * x for x in range(20)]}\n", done.stderr
    assert sorted(ledger.entries()) == sorted([*map(str, range(20)), *running]), "what was finished did not run again"


def test_a_client_that_waits_catches_up_after_kill_9_of_the_head(own_home: Home, gate: Gate, ledger: Ledger):
    write, wait = ledger.writer(), gate.waiter()

    def call(x: int) -> int:
        write(x)
        if x >= 3:
            wait()
        return x * x

    job = burla.submit(call, range(8))
    read: list[list[int]] = []
    reader = threading.Thread(target=lambda: read.append(job.results(timeout_s=60)))
    reader.start()
    wait_until(lambda: len(ledger.entries()) == 5 and job.progress.done == 3, 30, "three results")
    own_home.processes()["head"].kill()
    gate.open()
    reader.join(60)
    assert read == [[x * x for x in range(8)]]
    assert sorted(ledger.entries()) == [str(x) for x in range(8)], "no call of the surviving node ran twice"


def test_the_list_of_a_cluster_that_ended_is_read_by_starting_it_again(own_home: Home):
    done = burla.submit(lambda x: x, range(3))
    done.wait()
    end_cluster(own_home.environ)
    assert [(job.id, job.status) for job in burla.jobs()] == [(done.id, "done")]
    assert burla.attach(done.id).results() == [0, 1, 2]
