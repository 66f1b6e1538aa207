"""What was finished is never run again: `retry_failed` and `resume`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import burla
from burla import JobUnfinished, StoreDamaged, UnknownJob
from tests.conftest import Home, Ledger, end_cluster, wait_until
from tests.jobs.conftest import Gate


def noting(ledger: Ledger, bad: Callable[[Any], bool] = lambda x: False) -> Callable[[Any], Any]:
    """Return a function for calls that notes each input, and raises on some."""
    write = ledger.writer()

    def call(x: Any) -> Any:
        write(repr(x["n"] if isinstance(x, dict) else x))
        if bad(x):
            raise ValueError(f"bad {x}")
        return [x]

    return call


def ran(ledger: Ledger) -> list[str]:
    """Return what has run since the last time."""
    entries = ledger.entries()
    ledger.path.unlink(missing_ok=True)
    return sorted(entries)


def test_retrying_runs_only_inputs_without_a_result_with_the_new_function(ledger: Ledger):
    old = burla.submit(noting(ledger, lambda x: x % 3 == 0), range(10), on_error="continue")
    old.wait()
    assert ran(ledger) == sorted(map(repr, range(10)))
    same = old.retry_failed()
    same.wait()
    assert same.status == "failed" and ran(ledger) == ["0", "3", "6", "9"]
    padding = bytes(2_000_000)  # a large function goes another way
    fixed = noting(ledger)
    for function in (fixed, lambda x: fixed(x) if padding else None):
        new = same.retry_failed(function)
        assert new.results() == [[x] for x in range(10)]
        assert ran(ledger) == ["0", "3", "6", "9"]
        assert dict(new.iter_results()) == {x: [x] for x in range(10)}
        assert [new.input(index) for index in (0, 9)] == [0, 9]
    assert old.status == same.status == "failed"
    again = new.retry_failed()
    assert again.results() == [[x] for x in range(10)] and ran(ledger) == []


def test_retrying_waits_for_the_end_of_the_job(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: True), range(2))
    with pytest.raises(JobUnfinished, match=job.id):
        job.retry_failed()
    with pytest.raises(TypeError, match="function_=5"):
        job.retry_failed(5)  # type: ignore[arg-type]
    gate.open()
    job.wait()


def test_a_resumed_job_runs_only_what_changed_is_new_or_had_no_result(ledger: Ledger):
    first = [{"n": n, "tags": {str(n), "all"}} for n in range(40)]
    old = burla.submit(noting(ledger, lambda x: x["n"] == 7), first, on_error="continue")
    old.wait()
    assert len(ran(ledger)) == 40
    second = [*first[:20], {"n": -20, "tags": set()}, *first[21:], {"n": 100, "tags": set()}]
    new = burla.submit(noting(ledger), (dict(one) for one in second), resume=old.id)
    assert new.results() == [[one] for one in second]
    assert ran(ledger) == ["-20", "100", "7"]
    third = burla.submit(noting(ledger), second[:5], resume=new)
    assert third.results() == [[one] for one in second[:5]] and ran(ledger) == []


def test_inputs_that_moved_run_again(ledger: Ledger):
    old = burla.submit(noting(ledger), ["a", "b", "c"])
    old.wait()
    ran(ledger)
    new = burla.submit(noting(ledger), ["b", "a", "c"], resume=old.id[:9])
    assert new.results() == [["b"], ["a"], ["c"]] and ran(ledger) == ["'a'", "'b'"]


def test_large_inputs_and_results_are_taken_over(ledger: Ledger):
    write = ledger.writer()

    def call(x: bytes) -> bytes:
        write(len(x))
        return x + x

    inputs = [bytes([n]) * size for n, size in enumerate((10, 1_500_000, 20, 4_500_000))]
    old = burla.submit(call, inputs)
    old.wait()
    assert len(ran(ledger)) == 4
    inputs[1] = b"y" * 1_500_000
    new = burla.submit(call, inputs, resume=old.id)
    assert new.results() == [x + x for x in inputs] and ran(ledger) == ["1500000"]
    old.delete()
    assert new.results() == [x + x for x in inputs], "the new job does not need the old one any more"


def test_many_small_results_are_taken_over_whatever_blocks_they_were_in():
    old = burla.submit(lambda x: -x, range(50_000))
    old.wait()
    new = burla.submit(lambda x: x // 0, (x for x in range(49_999)), resume=old.id)
    assert new.results() == [-x for x in range(49_999)]


def test_results_that_were_lost_in_the_store_are_named_and_computed_again(own_home: Home, ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> bytes:
        import time

        write(x)
        time.sleep(0.06)  # so that each result is told of, and stored, alone
        return bytes([x]) * 200_000

    job = burla.submit(call, range(6))
    whole = job.results()
    assert len(ran(ledger)) == 6
    end_cluster(own_home.environ)  # a head that has just heard of results has them in memory too
    victim = next(own_home.path.glob("clusters/*/store/files/*/*"))
    index = victim.read_bytes()[100_000]  # it holds the result of one call, most of which is this byte
    victim.unlink()
    others = {x: result for x, result in enumerate(whole) if x != index}
    seen: list[tuple[int, bytes]] = []
    with pytest.raises(StoreDamaged):
        seen.extend(job.iter_results())
    assert dict(seen) == others
    with pytest.raises(
        StoreDamaged, match=rf"job {job.id}: what was stored of inputs {index} cannot be read"
    ) as caught:
        job.results()
    assert caught.value.burla_results == others and caught.value.lost == ((index, index + 1),)
    again = job.retry_failed()
    assert again.results() == whole and ran(ledger) == [str(index)]


@pytest.mark.parametrize("unfinished", [True, False])
def test_only_a_job_that_is_there_and_has_ended_can_be_resumed(unfinished: bool, gate: Gate, ledger: Ledger):
    old = burla.submit(gate.guarding(lambda x: True), range(2))
    before = {job.id for job in burla.jobs()}
    with pytest.raises(JobUnfinished if unfinished else UnknownJob):
        burla.submit(noting(ledger), range(2), resume=old.id if unfinished else "no such job")
    assert ran(ledger) == []
    wait_until(lambda: {job.id for job in burla.jobs()} == before, what="the end of what was refused")
    gate.open()
    old.wait()
