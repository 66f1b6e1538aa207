"""For how long a job is kept, and how much of what it prints."""

from __future__ import annotations

import pytest

import burla
from tests.conftest import Home, end_cluster, wait_until
from tests.jobs.conftest import Gate


def test_a_job_past_its_retention_is_deleted_and_one_that_runs_is_not(
    own_home: Home, monkeypatch: pytest.MonkeyPatch, gate: Gate
):
    old = burla.submit(abs, [-1])
    assert old.results(timeout_s=30) == [1]
    running = burla.submit(gate.guarding(bool), [0, 1])
    wait_until(lambda: running.progress.done == 1, 30, "a result")
    end_cluster(own_home.environ)
    monkeypatch.setenv("BURLA_KEEP_DAYS", "0")
    wait_until(lambda: [job.id for job in burla.jobs()] == [running.id], 30, "that the old job is gone")
    assert "Jobs are kept for 0" in repr(burla.jobs())
    with pytest.raises(burla.UnknownJob, match="past its retention"):
        burla.attach(old.id)
    gate.open()
    assert running.results(timeout_s=30) == [0, 1]


def test_the_oldest_jobs_go_when_all_are_too_large(own_home: Home, monkeypatch: pytest.MonkeyPatch):
    jobs = [burla.submit(lambda x: bytes(400_000), range(2)) for _ in range(4)]
    for job in jobs:
        job.wait(30)
    end_cluster(own_home.environ)
    monkeypatch.setenv("BURLA_STORE_GB", "0.002")
    wait_until(lambda: len(burla.jobs()) < 4, 30, "that a job is gone")
    assert [job.id for job in burla.jobs()] == [jobs[3].id, jobs[2].id]
    assert jobs[2].results() == [bytes(400_000)] * 2


@pytest.mark.slow
def test_of_a_call_that_prints_without_end_the_beginning_is_kept_and_the_rest_counted():
    def call(x: int) -> None:
        line = "x" * 999
        for _ in range(110_000 if x else 10):
            print(line)

    job = burla.submit(call, range(2))
    job.wait(60)
    kept = sum(len(line.text) + 1 for line in job.logs(1, "stdout"))
    assert kept == 100_000_000
    assert [str(line) for line in job.logs(1, "stderr") if str(line)] == [
        "[burla: 10,000,000 more bytes that input 1 printed were dropped: 100,000,000 bytes of a call and "
        "1,000,000,000 of a job are kept]"
    ]
    assert len(list(job.logs(0))) == 10
