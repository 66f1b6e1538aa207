"""Cancel and Detach: what they say, and what pressing them does."""

from __future__ import annotations

import threading

import pytest

from burla_jupyter.controls import ASK_AGAIN_S, HEARD_WITHIN_S, THREAD, Controls, Look


class Job:
    """Notes what is done to it; with `error`, fails."""

    id = "abc123"

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.done: list[str] = []
        self.ended = threading.Event()

    def cancel(self) -> None:
        self._do("cancel")

    def detach(self) -> None:
        self._do("detach")

    def _do(self, what: str) -> None:
        self.done.append(what)
        self.ended.set()
        if self.error is not None:
            raise self.error


@pytest.fixture
def job() -> Job:
    return Job()


def shown(job: Job, blocked: bool = True, heard: bool = True, detached: bool = False) -> Controls:
    controls = Controls()
    controls.shown(0.0)
    controls.begin(job, detached, blocked)
    if heard:
        controls.hear()
    return controls


def settle(controls: Controls, job: Job) -> None:
    """Wait for the thread that a press began."""
    assert job.ended.wait(5)
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(5)


def test_cancel_asks_once_more(job: Job):
    controls = shown(job)
    controls.press_cancel(10.0)
    assert (controls.cancel(10.1), job.done) == (Look("Really cancel?", True), [])
    assert "once more" in controls.note(10.1)
    controls.press_cancel(11.0)
    settle(controls, job)
    assert (controls.cancel(11.1), controls.detach(11.1)) == (Look("Cancelling …", False), Look("Detach", False))
    assert job.done == ["cancel"]


def test_a_first_press_is_forgotten_after_a_while(job: Job):
    controls = shown(job)
    controls.press_cancel(10.0)
    late_s = 10.0 + ASK_AGAIN_S
    assert (controls.cancel(late_s), controls.note(late_s)) == (Look("Cancel", True), "")
    controls.press_cancel(late_s)
    assert controls.cancel(late_s) == Look("Really cancel?", True)
    assert job.done == []


def test_detach_says_how_to_come_back(job: Job):
    controls = shown(job)
    controls.press_detach()
    settle(controls, job)
    assert job.done == ["detach"]
    assert controls.detach(1.0) == Look("Detached", False)
    assert "burla.attach('abc123')" in controls.note(1.0) and "■" in controls.note(1.0)
    assert controls.cancel(1.0).live, "a detached job can still be cancelled"


def test_what_fails_is_told_and_can_be_tried_again():
    job = Job(ConnectionError("nobody answers"))
    controls = shown(job)
    controls.press_cancel(1.0)
    controls.press_cancel(1.5)
    settle(controls, job)
    assert controls.note(2.0) == "It could not be cancelled: nobody answers"
    assert controls.cancel(2.0) == Look("Cancel", True)
    controls.press_detach()
    settle(controls, job)
    assert controls.note(2.0) == "It could not be detached: nobody answers"
    assert controls.detach(2.0) == Look("Detach", True)


def test_buttons_of_a_blocked_cell_are_dead_until_the_front_end_was_heard(job: Job):
    controls = shown(job, heard=False)
    assert not controls.cancel(1.0).live and controls.note(HEARD_WITHIN_S - 0.1) == ""
    assert "■ (interrupt the kernel) stops the job" in controls.note(HEARD_WITHIN_S)
    controls.hear()
    assert controls.cancel(3.0).live and controls.note(3.0) == ""


def test_of_a_detached_job_only_the_cell_is_freed(job: Job):
    controls = shown(job, heard=False, detached=True)
    assert "frees the cell, the job goes on" in controls.note(HEARD_WITHIN_S)
    controls.hear()
    assert (controls.cancel(3.0), controls.detach(3.0)) == (Look("Cancel", True), Look("Detached", False))


def test_buttons_of_a_cell_that_does_not_wait_are_live_at_once(job: Job):
    controls = shown(job, blocked=False, heard=False)
    assert controls.cancel(0.1).live and controls.detach(0.1).live
    assert controls.note(HEARD_WITHIN_S) == ""


def test_before_the_cluster_has_the_job_nothing_can_be_pressed():
    controls = Controls()
    controls.shown(0.0)
    controls.hear()
    controls.press_cancel(0.5)
    controls.press_detach()
    assert controls.cancel(0.5) == Look("Cancel", False)
    assert controls.note(HEARD_WITHIN_S) == ""
