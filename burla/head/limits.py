"""How much of what calls print is kept: so much of each call, and so much of a job. Pure."""

from __future__ import annotations

from collections import Counter

from burla import outputs
from burla.protocol import STDERR, Output, Outputs

CALL_BYTES = 100_000_000
JOB_BYTES = 1_000_000_000


class OutputLimits:
    """Counts the output of one job. `output_bytes`: what was kept of it before."""

    def __init__(self, output_bytes: int = 0, call_bytes: int = CALL_BYTES, job_bytes: int = JOB_BYTES):
        self._kept = output_bytes
        self._call_bytes = call_bytes
        self._job_bytes = job_bytes
        self._of_call: Counter[int] = Counter()  # of calls that have no outcome yet
        self._dropped: Counter[int] = Counter()

    def admit(self, output: Output) -> tuple[Output, ...]:
        """Return what is to be kept of it: all, its beginning, or nothing."""
        room = min(self._call_bytes - self._of_call[output.index], self._job_bytes - self._kept)
        data = output.data[: max(room, 0)]
        self._of_call[output.index] += len(data)
        self._kept += len(data)
        if len(data) == len(output.data):
            return (output,)
        self._dropped[output.index] += len(output.data) - len(data)
        return (Output(output.index, output.stream, data),) if data else ()

    def admit_all(self, event: Outputs) -> tuple[Output | Outputs, ...]:
        """Return what is to be kept of several outputs."""
        written = list(outputs.unpack(event))
        kept = [part for one in written for part in self.admit(one)]
        return (event,) if len(kept) == len(written) and not self._dropped else (outputs.pack(kept),) if kept else ()

    def finish(self, start: int, stop: int) -> tuple[Output, ...]:
        """Forget calls that have an outcome; return a line for each that says how much of its output was dropped."""
        indices = self._of_call if len(self._of_call) < stop - start else range(start, stop)
        lines: list[Output] = []
        for index in [index for index in indices if start <= index < stop]:
            self._of_call.pop(index, None)
            if dropped := self._dropped.pop(index, 0):
                limit = f"{self._call_bytes:,} bytes of a call and {self._job_bytes:,} of a job are kept"
                text = f"\n[burla: {dropped:,} more bytes that input {index} printed were dropped: {limit}]\n"
                lines.append(Output(index, STDERR, text.encode()))
        return tuple(lines)
