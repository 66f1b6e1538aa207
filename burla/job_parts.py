"""What a `Job` returns: how far it is, and lines that its calls printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from burla.display.progress import duration_text, rate_text
from burla.protocol import STDOUT, JobState, Output, Snapshot


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is: calls with a result, running, failed, of all; its rate and the seconds left, if known."""

    done: int
    running: int
    failed: int
    total: int
    rate_per_s: float | None
    eta_s: float | None
    nodes: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> JobProgress:
        """Return what a snapshot says."""
        rate, left = snapshot.rate_per_s, snapshot.total - snapshot.done - snapshot.failed
        known = rate is not None and rate > 0 and snapshot.state is JobState.RUNNING
        return cls(
            done=snapshot.done,
            running=snapshot.running,
            failed=snapshot.failed,
            total=snapshot.total,
            rate_per_s=rate,
            eta_s=left / rate if known and rate else None,
            nodes=snapshot.nodes,
        )

    def __str__(self) -> str:
        parts = [f"{self.done:,}/{self.total:,} done"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.running:
            parts.append(f"{self.running:,} running on {self.nodes} node{'s' if self.nodes != 1 else ''}")
        if self.rate_per_s:
            parts.append(rate_text(self.rate_per_s))
        if self.eta_s is not None:
            parts.append(f"eta {duration_text(self.eta_s)}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the call of input `input_index` wrote to `stream`, "stdout" or "stderr"; `str` is its text."""

    input_index: int
    stream: str
    text: str

    def __str__(self) -> str:
        return self.text


def lines_of(output: Output) -> Iterator[LogLine]:
    """Yield the lines of an output, without their ends; bytes that are no UTF-8 as surrogate escapes."""
    stream = "stdout" if output.stream == STDOUT else "stderr"
    for line in output.data.removesuffix(b"\n").split(b"\n"):
        yield LogLine(output.index, stream, line.decode("utf-8", "surrogateescape"))
