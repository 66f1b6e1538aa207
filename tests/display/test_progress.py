"""What a job says of itself, with the time passed in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burla import serialize
from burla.display.progress import Progress, duration_text, rate_text, usd_text
from burla.protocol import Failure, JobState, Snapshot


def snapshot(
    done: int,
    running: int = 2,
    total: int = 5000,
    state: JobState = JobState.RUNNING,
    nodes: int = 1,
    failed: int = 0,
) -> Snapshot:
    return Snapshot(state=state, total=total, done=done, failed=failed, running=running, nodes=nodes)


def running_job(total: int = 5000) -> Progress:
    progress = Progress("crunch", total, started_s=100.0)
    progress.apply(snapshot(0, running=0, total=total), 100.0)
    return progress


def test_calls_that_failed_are_counted_and_named():
    progress = running_job(total=100)
    progress.apply(snapshot(40, total=100, failed=10), 110.0)
    assert progress.line(110.0) == "crunch   50/100  10 failed  2 running  5.0/s  eta 0:10"
    assert progress.fraction == 0.5


def test_a_running_job_in_one_line():
    progress = running_job()
    for second in range(1, 5):
        progress.apply(snapshot(310 * second), 100.0 + second)
    assert progress.line(104.0) == "crunch  1,240/5,000  2 running  310/s  eta 0:12"
    assert (progress.done, progress.running, progress.nodes, progress.total) == (1240, 2, 1, 5000)
    assert progress.fraction == pytest.approx(0.248)


def test_a_job_that_is_short_of_memory_says_so_and_how_much_its_calls_have():
    progress = running_job()
    progress.apply(replace(snapshot(10), peak_bytes=310_000_000), 101.0)
    assert progress.memory is None
    progress.apply(replace(snapshot(10), peak_bytes=310_000_000, short_of_memory=True), 102.0)
    assert "  2 running, short of memory (310 MB a call)  " in progress.line(102.0)
    progress.apply(replace(snapshot(10), peak_bytes=2_340_000_000, short_of_memory=True), 103.0)
    assert progress.memory == "short of memory (2.3 GB a call)"


def test_what_its_nodes_have_cost_shows_where_it_is_known():
    progress = running_job()
    progress.apply(replace(snapshot(10), node_s=7200.0), 101.0)
    assert progress.cost is None and "h of nodes" not in progress.line(101.0)
    progress.apply(replace(snapshot(10), node_s=7200.0, usd=1.6), 102.0)
    assert "  2 running  2.00 h of nodes, at most $1.60  " in progress.line(102.0)
    assert [usd_text(usd) for usd in (0.0, 0.0123, 0.5, 12.345, 1234.5)] == [
        "$0.000", "$0.012", "$0.50", "$12.35", "$1,234",
    ]  # fmt: skip


def test_the_count_keeps_its_width_so_that_nothing_moves():
    progress = running_job()
    progress.apply(snapshot(7), 101.0)
    assert progress.fields(101.0)[0] == "    7/5,000"


def test_nothing_is_known_before_the_first_snapshot():
    progress = Progress("crunch", None, started_s=100.0)
    assert progress.line(103.0) == "crunch  connecting  0:03"
    assert (progress.state, progress.total, progress.fraction) == (None, None, None)
    assert progress.rate_per_s(103.0) is None and progress.eta_s(103.0) is None


def test_inputs_on_their_way_are_no_total_yet():
    progress = Progress("crunch", None, started_s=100.0)
    progress.apply(snapshot(0, running=0, total=12_000, state=JobState.RECEIVING), 101.0)
    assert progress.line(101.0) == "crunch  uploading  12,000 inputs  0:01"
    assert progress.total is None
    progress.apply(snapshot(0, running=0, total=20_000, state=JobState.WAITING), 102.0)
    assert progress.total == 20_000
    assert progress.line(102.0) == "crunch       0/20,000  waiting for room on a node  0:02"


@pytest.mark.parametrize(
    ("state", "nodes", "running", "phase"),
    [
        (JobState.RECEIVING, 0, 0, "uploading"),
        (JobState.WAITING, 0, 0, "waiting for room on a node"),
        (JobState.WAITING, 3, 0, "waiting for room on a node"),
        (JobState.RUNNING, 3, 2, "running"),
        (JobState.RUNNING, 0, 0, "waiting for a node"),
        (JobState.STOPPING, 3, 2, "stopping"),
        (JobState.DONE, 3, 0, "done"),
        (JobState.FAILED, 0, 0, "failed"),
        (JobState.CANCELLED, 0, 0, "cancelled"),
    ],
)
def test_the_phase_in_words(state: JobState, nodes: int, running: int, phase: str):
    progress = Progress("crunch", 10, started_s=0.0)
    progress.apply(snapshot(0, running=running, total=10, state=state, nodes=nodes), 1.0)
    assert progress.phase == phase
    assert progress.state is state
    assert phase in progress.line(1.0)


def test_a_job_that_stops_says_how_far_it_came():
    progress = running_job()
    progress.apply(snapshot(40, state=JobState.STOPPING), 102.0)
    assert progress.line(102.0) == "crunch     40/5,000  stopping  0:02"
    assert progress.eta_s(102.0) is None


def test_before_the_first_result_the_elapsed_time_stands_in_for_the_eta():
    progress = running_job()
    progress.apply(snapshot(0), 101.0)
    assert progress.fields(165.0) == ["    0/5,000", "2 running", "1:05"]


def test_the_rate_follows_the_last_ten_seconds():
    progress = running_job(total=100_000)
    done = 0
    for tick in range(1, 400):  # 40 s: first 100/s, from 20 s on 1,000/s
        done += 10 if tick <= 200 else 100
        progress.apply(snapshot(done, total=100_000), 100.0 + tick / 10)
    assert progress.rate_per_s(140.0) == pytest.approx(1000, rel=0.05)


def test_the_rate_is_the_mean_while_the_job_is_young():
    progress = running_job()
    progress.apply(snapshot(10), 101.0)
    progress.apply(snapshot(100), 104.0)
    assert progress.rate_per_s(104.0) == pytest.approx(25)


def test_calls_that_end_together_do_not_make_the_rate_jump():
    progress = running_job(total=400)
    rates, etas = [], []
    for second in range(1, 201):  # four calls end every 20 s
        progress.apply(snapshot(second // 20 * 4, running=4, total=400), 100.0 + second)
        if second >= 20:
            rates.append(progress.rate_per_s(100.0 + second))
            etas.append((second, progress.eta_s(100.0 + second)))
    assert rates == pytest.approx([0.2] * len(rates), rel=0.02)
    for second, eta_s in etas:
        assert eta_s == pytest.approx(2000 - second, abs=40)


def test_uneven_ends_within_a_burst_do_not_make_the_rate_jump():
    progress = running_job(total=400)
    ends_s = [20.0 * burst + 0.4 * call for burst in range(1, 11) for call in range(4)]
    rates = []
    for tenth in range(1, 2000):
        now_s = 100.0 + tenth / 10
        progress.apply(snapshot(sum(100.0 + end_s <= now_s for end_s in ends_s), running=4, total=400), now_s)
        if tenth > 220:
            rates.append(progress.rate_per_s(now_s) or 0.0)
    assert min(rates) > 0.1 and max(rates) < 0.25


def test_results_that_stay_away_bring_the_rate_down_and_end_the_eta():
    progress = running_job()
    for second in range(1, 21):
        progress.apply(snapshot(10 * second, total=220), 100.0 + second)
    assert progress.eta_s(120.0) == pytest.approx(2.0, abs=0.1)
    rate_per_s = progress.rate_per_s(160.0)
    assert rate_per_s is not None and rate_per_s < 3
    assert progress.eta_s(160.0) is None


def test_time_spent_waiting_does_not_count_into_the_rate():
    progress = Progress("crunch", 100, started_s=100.0)
    progress.apply(snapshot(0, running=0, total=100, state=JobState.WAITING, nodes=0), 100.0)
    progress.apply(snapshot(0, running=0, total=100, state=JobState.WAITING, nodes=0), 159.0)
    progress.apply(snapshot(0, total=100), 159.5)
    progress.apply(snapshot(20, total=100), 161.0)
    assert progress.rate_per_s(161.0) == pytest.approx(10)


def test_results_from_before_the_first_look_do_not_count_into_the_rate():
    progress = Progress("crunch", None, started_s=100.0)
    progress.apply(snapshot(4000), 100.1)
    assert progress.rate_per_s(100.1) is None
    progress.apply(snapshot(4010), 101.1)
    assert progress.rate_per_s(101.1) == pytest.approx(10)


def test_what_is_kept_for_the_rate_does_not_grow():
    progress = running_job(total=10**6)
    for tick in range(100_000):
        progress.apply(snapshot(tick, total=10**6), 100.0 + tick / 100)
    assert len(progress._samples) < 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (12.9, "0:12"), (3599, "59:59"), (3723, "1:02:03"), (183_600, "2 d 3 h")]
)
def test_durations(seconds: float, text: str):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("rate_per_s", "text"),
    [(123_456.0, "123,456/s"), (9.96, "10/s"), (3.14, "3.1/s"), (0.2, "12/min"), (0.02, "1.2/min"), (0.001, "3.6/h")],
)
def test_slow_rates_do_not_read_as_none(rate_per_s: float, text: str):
    assert rate_text(rate_per_s) == text


def test_inputs_that_go_to_the_head_are_counted_before_it_says_anything():
    progress = Progress("crunch", None, started_s=100.0)
    progress.uploaded(12_000)
    assert progress.line(104.0) == "crunch  uploading  12,000 inputs  0:04"


def test_failures_are_grouped_as_they_come():
    progress = running_job()
    for index in (3, 8, 9):
        error = ValueError("odd") if index != 8 else KeyError("k")
        progress.note([Failure(index, serialize.dump_exception(error, index))])
    assert [(one.type_name, one.count, one.inputs) for one in progress.failures] == [
        ("ValueError", 2, (3, 9)),
        ("KeyError", 1, (8,)),
    ]


def test_what_waits_is_what_neither_runs_nor_has_an_outcome():
    progress = running_job(total=100)
    assert progress.waiting == 100
    progress.apply(snapshot(40, running=4, total=100, failed=10), 110.0)
    assert progress.waiting == 46
