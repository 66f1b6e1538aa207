"""How a job stands, folded from its snapshots and apart from any drawing. Time is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from burla.display.failures import ErrorGroup, FailureGroups
from burla.protocol import Event, Failure, JobState, Snapshot

RATE_WINDOW_S = 10.0
SAMPLE_EVERY_S = 0.25
RATE_SAMPLES = 3  # calls that end together, every 20 s, still give a steady rate

PHASES = {
    JobState.RECEIVING: "uploading",
    JobState.WAITING: "waiting for room on a node",
    JobState.RUNNING: "running",
    JobState.STOPPING: "stopping",
    JobState.DONE: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


class Progress:
    """One job as a person wants to see it; `total` is None while the number of inputs is not known."""

    def __init__(self, function_name: str, total: int | None, started_s: float):
        self.function_name = function_name
        self.started_s = started_s
        self.job_id: str | None = None  # None: the head does not have it yet
        self._total = total
        self._snapshot: Snapshot | None = None
        self._uploaded = 0
        self._failures = FailureGroups()
        self._samples: deque[tuple[float, int]] = deque()  # (time, done); the rate is from the first to the last

    def apply(self, snapshot: Snapshot, now_s: float) -> None:
        """Take in the newest snapshot."""
        self._snapshot = snapshot
        if snapshot.state is not JobState.RECEIVING:
            self._total = snapshot.total
        self._sample(snapshot, now_s)

    def note(self, events: Iterable[Event]) -> None:
        """Take in what the journal says of failures."""
        for event in events:
            if isinstance(event, Failure):
                self._failures.add(event)

    def uploaded(self, inputs: int) -> None:
        """So many inputs have gone to the head."""
        self._uploaded = inputs

    def begun(self, job_id: str, total: int) -> None:
        """The head has the job, and this many inputs of it."""
        self.job_id, self._total = job_id, total

    @property
    def failures(self) -> list[ErrorGroup]:
        """The failures so far by type and line, the most frequent first."""
        return self._failures.groups()

    @property
    def state(self) -> JobState | None:
        """None before the first snapshot."""
        return self._snapshot.state if self._snapshot else None

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def done(self) -> int:
        """How many calls have an outcome, failed ones too."""
        return self._snapshot.done + self._snapshot.failed if self._snapshot else 0

    @property
    def failed(self) -> int:
        return self._snapshot.failed if self._snapshot else 0

    @property
    def remark(self) -> str | None:
        """What holds the job up now, such as a full disk."""
        return self._snapshot.remark if self._snapshot else None

    @property
    def running(self) -> int:
        return self._snapshot.running if self._snapshot else 0

    @property
    def waiting(self) -> int:
        """How many calls have not begun, as far as the number of inputs is known."""
        return max(0, (self._total or 0) - self.done - self.running)

    @property
    def retries(self) -> int:
        """How many calls were begun again, because the process that ran them was lost."""
        return self._snapshot.retries if self._snapshot else 0

    @property
    def slowest(self) -> tuple[tuple[int, float], ...]:
        """(input, seconds so far) of calls that take long, the longest first."""
        return self._snapshot.slowest if self._snapshot else ()

    @property
    def memory(self) -> str | None:
        """What to say of memory when fewer calls run than the CPUs allow, for want of it; else None."""
        if self._snapshot is None or not self._snapshot.short_of_memory:
            return None
        return f"short of memory ({size_text(self._snapshot.peak_bytes)} a call)"

    @property
    def cost(self) -> str | None:
        """What to say of the money that its nodes have cost so far; None: nobody knows it."""
        shot = self._snapshot
        return None if shot is None or shot.usd is None else used_text(shot.node_s, shot.usd)

    @property
    def nodes(self) -> int:
        return self._snapshot.nodes if self._snapshot else 0

    @property
    def fraction(self) -> float | None:
        """From 0 to 1, or None before the number of inputs is known to the head."""
        if not self._total or self.state in (None, JobState.RECEIVING):
            return None
        return min(1.0, self.done / self._total)

    @property
    def phase(self) -> str:
        """What the job does now, in words."""
        if self.state is None:
            return "uploading" if self._uploaded else "connecting"
        if self.state is JobState.RUNNING and not self.nodes:
            return "waiting for a node"
        if self.state is JobState.RUNNING and self._snapshot and self._snapshot.installing and not self.running:
            return "installing packages"
        return PHASES[self.state]

    def elapsed_s(self, now_s: float) -> float:
        """Return the seconds since the start."""
        return max(0.0, now_s - self.started_s)

    def rate_per_s(self, now_s: float) -> float | None:
        """Return calls finished per second over the last 10 s, or since the first if they are few, or None if none."""
        if len(self._samples) < 2:
            return None
        (from_s, from_done), (last_s, last_done) = self._samples[0], self._samples[-1]
        gaps = len(self._samples) - 1
        # Until the next results are overdue, waiting for them says nothing about the rate.
        span_s = max(last_s - from_s, (now_s - from_s) * gaps / (gaps + 1))
        return (last_done - from_done) / span_s if span_s > 0 else None

    def eta_s(self, now_s: float) -> float | None:
        """Return the seconds until the last call is done, or None when that is not known."""
        rate_per_s = self.rate_per_s(now_s)
        if rate_per_s is None or self._total is None or self.state is not JobState.RUNNING:
            return None
        left_s = self._samples[-1][0] + (self._total - self.done) / rate_per_s - now_s
        return max(0.0, left_s) if left_s > -1.0 else None  # long overdue: nobody knows

    def fields(self, now_s: float) -> list[str]:
        """Return the parts of a status line, in order: the first matters most, then the last ones."""
        elapsed = duration_text(self.elapsed_s(now_s))
        arrived = self._snapshot.total if self._snapshot else self._uploaded
        if self.state in (None, JobState.RECEIVING) and arrived:
            return [self.phase, f"{arrived:,} inputs", elapsed]
        if self._total is None or self.fraction is None:
            return [self.phase, elapsed]
        total = f"{self._total:,}"
        fields = [f"{self.done:>{len(total)},}/{total}"]
        if self.phase != "running":
            return [*fields, self.phase, elapsed]
        if self.failed:
            fields.append(f"{self.failed:,} failed")
        fields.append(", ".join(filter(None, (f"{self.running:,} running", self.memory))))
        if self.cost:
            fields.append(self.cost)
        rate_per_s = self.rate_per_s(now_s)
        if rate_per_s is not None:
            fields.append(rate_text(rate_per_s))
        eta_s = self.eta_s(now_s)
        fields.append(elapsed if eta_s is None else f"eta {duration_text(eta_s)}")
        return fields

    def line(self, now_s: float) -> str:
        """Return the status as plain text, without a bar."""
        return "  ".join([self.function_name, *self.fields(now_s)])

    def _sample(self, snapshot: Snapshot, now_s: float) -> None:
        samples = self._samples
        idle = self.done == 0 and snapshot.running == 0
        if not samples or idle:
            samples.clear()
            samples.append((now_s, self.done))
            return
        if self.done <= samples[-1][1]:
            return
        if len(samples) > 1 and now_s - samples[-2][0] < SAMPLE_EVERY_S:
            samples.pop()
        samples.append((now_s, self.done))
        while len(samples) > RATE_SAMPLES + 1 and samples[1][0] <= now_s - RATE_WINDOW_S:
            samples.popleft()


def duration_text(seconds: float) -> str:
    """Return `0:12`, `1:02:03`, or `2 d 3 h`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24:,} d {hours % 24} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size_text(size_bytes: int) -> str:
    """Return `1.2 GB`, `34 kB`, `5 B`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            number = size_bytes / factor
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:,.0f} {unit}"
    return f"{size_bytes} B"


def usd_text(usd: float) -> str:
    """Return `$1,234`, `$3.10`, or `$0.003`."""
    if usd >= 100:
        return f"${usd:,.0f}"
    return f"${usd:.2f}" if usd >= 0.1 else f"${usd:.3f}"


def used_text(node_s: float, usd: float) -> str:
    """Return what a job has used of nodes whose price is known, in words."""
    return f"{node_s / 3600:,.2f} h of nodes, at most {usd_text(usd)}"


def rate_text(rate_per_s: float) -> str:
    """Return `1,234/s`, `3.1/s`, `12/min` or `2.5/h`, so that slow calls do not read as none."""
    for rate, unit in ((rate_per_s, "s"), (rate_per_s * 60, "min")):
        if rate >= 1:
            return f"{rate:,.0f}/{unit}" if rate >= 9.95 else f"{rate:.1f}/{unit}"
    return f"{rate_per_s * 3600:.1f}/h"
