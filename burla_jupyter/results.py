"""The results of a map that were given no name: read from the cluster when they are asked for, and not kept here."""

from __future__ import annotations

import html
import itertools
import operator
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from burla import BurlaError, ClusterError, Job, UnknownJob

SHOWN = 5  # of the results, in a repr

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


class Results(Sequence[Any]):
    """The results of a job, in the order of its inputs. Indexing and iterating read them from the cluster each time."""

    def __init__(self, job: Job):
        self.job = job
        self._total = job.progress.total
        self._shown: tuple[list[str], str] | None = None  # how it shows; large results are not read for it again

    def __len__(self) -> int:
        return self._total

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return a result, or a list of some. Raises IndexError, and what `Job.result` raises."""
        if isinstance(index, slice):
            return [self.job.result(number) for number in range(*index.indices(self._total))]
        number = operator.index(index)
        if not -self._total <= number < self._total:
            raise IndexError(f"result {number}: there are {self._total:,}, numbered from 0")
        return self.job.result(number % self._total)

    def __iter__(self) -> Iterator[Any]:
        return map(self.job.result, range(self._total))

    def __repr__(self) -> str:
        lines, below = self._lines()
        numbered = [f"  [{number}] {text}" for number, text in enumerate(lines)]
        return "\n".join([self._title(), *numbered, f"  {below}"])

    def _repr_html_(self) -> str:
        lines, below = self._lines()
        rows = "".join(
            f"<tr><td>{number}</td><td style='text-align: left'><code>{html.escape(text)}</code></td></tr>"
            for number, text in enumerate(lines)
        )
        return f"<div>{html.escape(self._title())}<table>{rows}</table><small>{html.escape(below)}</small></div>"

    def _title(self) -> str:
        return f"{self._total:,} result{'s' * (self._total != 1)} of job {self.job.id}"

    def _lines(self) -> tuple[list[str], str]:
        """Return the first results as short texts, and what is to be said below them."""
        if self._shown is None:
            self._shown = self._read_some()
        return self._shown

    def _read_some(self) -> tuple[list[str], str]:
        texts: list[str] = []
        try:
            for value in itertools.islice(self, SHOWN):
                texts.append(described(value))
        except (BurlaError, OSError) as error:  # a repr must not fail
            return texts, f"{type(error).__name__}: {error}"
        more = f"… and {self._total - SHOWN:,} more. " if self._total > SHOWN else ""
        return texts, f"{more}Index or iterate to read them from the cluster; %%burla -o NAME for … keeps them here"


class Finished(Mapping[int, Any]):
    """Results, by input index, of a job that did not come to its end; read from the cluster when they are asked for."""

    def __init__(self, job: Job):
        self.job = job

    def __len__(self) -> int:
        progress = self.job.progress
        return progress.done

    def __getitem__(self, index: int) -> Any:
        try:
            return self.job.result(index)
        except (ClusterError, UnknownJob):
            raise
        except Exception as error:
            raise KeyError(index) from error

    def __iter__(self) -> Iterator[int]:
        return (index for index, _ in self._pairs())

    def _pairs(self) -> Iterator[tuple[int, Any]]:
        try:
            yield from self.job.iter_results()
        except (ClusterError, UnknownJob):
            raise
        except Exception:  # noqa: BLE001 - what ended the job, and who reads this knows that
            return

    def __repr__(self) -> str:
        return f"<{len(self):,} finished results of job {self.job.id}, by input index>"


def described(value: Any) -> str:
    """Return a value in one line: its repr, shortened; of arrays and tables their shape."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} of {' × '.join(map(str, shape))}"
    try:
        return " ".join(_short.repr(value).split())
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
