"""What a job is shown on: a terminal, a notebook, or just the standard streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from burla.display.progress import Progress


@dataclass(frozen=True, slots=True)
class Text:
    """What a call wrote: whole lines, or the unfinished last one of a call that ended. `stream`: 1 or 2."""

    index: int
    stream: int
    text: str


class ShownJob(Protocol):
    """What a view may do with the job that it shows, from any thread. Both wait for the cluster."""

    @property
    def id(self) -> str: ...
    def cancel(self) -> None: ...
    def detach(self) -> None: ...


class View(Protocol):
    """Shows one job. Whoever follows the job calls these, from one thread.

    `ticks`: whether `update` is to be called about every 0.1 s while nothing comes.
    """

    ticks: bool

    def begin(self, job: ShownJob, detached: bool) -> None:
        """The head has the job. `detached`: it outlives this process."""
        ...

    def write(self, texts: Sequence[Text]) -> None:
        """Show text of calls, in the order given. Raises BrokenPipeError if nobody reads it any more."""
        ...

    def update(self, progress: Progress, now_s: float) -> None:
        """Show the job as it is at `now_s`, of the monotonic clock."""
        ...

    def say(self, text: str, always: bool = False) -> None:
        """Show a line of burla's own; with `always`, also where nothing but the text of calls is shown."""
        ...

    def hide(self) -> None:
        """Make room: somebody else may print until the next update."""
        ...

    def close(self, error: BaseException | None, kept: bool) -> None:
        """Nothing more follows. `error`: what the follower is about to raise. `kept`: the job can be read later on."""
        ...
