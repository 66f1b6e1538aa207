"""Cancel and Detach of one job: what the buttons say and do. Time is passed in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

HEARD_WITHIN_S = 2.0  # a front end whose messages get through says so at once
ASK_AGAIN_S = 5.0
THREAD = "burla-button"


class ShownJob(Protocol):
    """A job that can be stopped and detached, from any thread; both wait for the cluster."""

    @property
    def id(self) -> str: ...
    def cancel(self) -> None: ...
    def detach(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Look:
    """How a button looks: its text, and whether it can be pressed."""

    text: str
    live: bool


class Controls:
    """Pressed by the front end in one thread, drawn in another; what they start runs in threads of its own."""

    def __init__(self) -> None:
        self._blocked = True  # the cell waits for the job
        self._job: ShownJob | None = None
        self._shown_s: float | None = None
        self._heard = threading.Event()
        self._asked_s: float | None = None  # Cancel was pressed once
        self._cancel_text, self._detach_text = "Cancel", "Detach"
        self._said = ""

    def begin(self, job: ShownJob, detached: bool, blocked: bool) -> None:
        """The cluster has the job. `blocked`: the cell that shows it waits for it."""
        self._job, self._blocked = job, blocked
        if detached:
            self._detach_text = "Detached"

    def shown(self, now_s: float) -> None:
        """The buttons are on the page from now on."""
        self._shown_s = now_s

    def hear(self) -> None:
        """A message of the front end got through, so that presses will."""
        self._heard.set()

    @property
    def heard(self) -> bool:
        return self._heard.is_set()

    def unheard(self, now_s: float) -> bool:
        """Whether the front end had time to be heard, and was not."""
        return not self.heard and self._shown_s is not None and now_s - self._shown_s >= HEARD_WITHIN_S

    @property
    def live(self) -> bool:
        """Whether a press would do something."""
        return self._job is not None and (self.heard or not self._blocked)

    def cancel(self, now_s: float) -> Look:
        """Return how Cancel looks."""
        if self._cancel_text == "Cancel" and self._asks(now_s):
            return Look("Really cancel?", True)
        return Look(self._cancel_text, self.live and self._cancel_text == "Cancel")

    def detach(self, now_s: float) -> Look:
        """Return how Detach looks."""
        return Look(self._detach_text, self.live and self._detach_text == "Detach" and self._cancel_text == "Cancel")

    def note(self, now_s: float) -> str:
        """Return what is to be said about the buttons, or nothing."""
        if self._cancel_text == "Cancel" and self._asks(now_s):
            return "Press once more to stop all calls. Results that are there are kept."
        if self._said:
            return self._said
        if self._job is not None and self.unheard(now_s) and not self.live:
            end = "frees the cell, the job goes on" if self._detach_text == "Detached" else "stops the job"
            return f"These buttons cannot answer while the cell runs: ■ (interrupt the kernel) {end}."
        return ""

    def press_cancel(self, now_s: float) -> None:
        """Ask; when pressed again, stop the job."""
        job = self._job
        if job is None or self._cancel_text != "Cancel":
            return
        if not self._asks(now_s):
            self._asked_s = now_s
            return
        self._cancel_text = "Cancelling …"
        self._run(job.cancel, self._cancelled)

    def press_detach(self) -> None:
        """Have the job outlive this kernel."""
        job = self._job
        if job is None or self._detach_text != "Detach":
            return
        self._detach_text = "Detaching …"
        self._run(job.detach, lambda error: self._detached(job.id, error))

    def _asks(self, now_s: float) -> bool:
        return self._asked_s is not None and now_s - self._asked_s < ASK_AGAIN_S

    def _run(self, act: Callable[[], None], after: Callable[[BaseException | None], None]) -> None:
        def run() -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001  # it is told on the panel: nobody waits for this thread
                after(error)
            else:
                after(None)

        threading.Thread(target=run, name=THREAD, daemon=True).start()

    def _cancelled(self, error: BaseException | None) -> None:
        if error is not None:
            self._cancel_text, self._asked_s = "Cancel", None
            self._said = f"It could not be cancelled: {error}"

    def _detached(self, job_id: str, error: BaseException | None) -> None:
        if error is not None:
            self._detach_text = "Detach"
            self._said = f"It could not be detached: {error}"
            return
        self._detach_text = "Detached"
        frees = "■ frees the cell. " if self._blocked else ""
        self._said = f"The job goes on without this kernel. {frees}To come back: burla.attach({job_id!r})"
