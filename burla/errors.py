"""Every error that burla raises: one tree, importable from `burla`.

BurlaError
├── InvalidValue (ValueError), InvalidType (TypeError)   an argument of the call is not allowed
├── FunctionTooBig, FunctionNotPicklable                 the function cannot be sent
├── InputTooBig, InputNotPicklable                       an input cannot be sent
├── ArgumentMismatch (TypeError)                         a tuple does not fit the function's signature
├── ResultNotPicklable                                   a result cannot come back
├── RemoteError                                          an exception that cannot be rebuilt here
├── CallExited                                           the function raised SystemExit or the like
├── WorkerCrashed                                        a call killed its process
├── OutOfMemory                                          a call needs more memory than it may have, or there is
├── NoNodes, NoCompatibleNodes                           nothing can run the calls
├── EnvironmentFailed                                    what the function needs cannot be had on a node
├── JobCancelled                                         somebody else stopped the job
│   └── LimitReached                                     … or max_minutes or max_cost_usd did
├── MissingExtra                                         an optional package is not installed
├── UnknownJob (LookupError)                             no such job on this cluster
├── JobUnfinished                                        the job has to end first
├── NoResult (LookupError)                               the job has ended without it
└── ClusterError
    ├── ClusterStartFailed                               the local cluster does not start
    ├── ClusterLost                                      the cluster went away under a running job
    ├── ClusterBusy                                      another version of burla is in use there
    ├── CloudError                                       a step in a cloud failed
    ├── UnknownCluster (LookupError)                     no cluster has this name
    ├── StoreFull                                        the head's disk is full
    ├── StoreDamaged                                     what the head had stored cannot be read any more
    ├── StoreUnreachable                                 the bucket of finished results does not answer
    ├── StoreBusy, StoreUnknown                          the head cannot use its store
    ├── BlobBroken                                       a large value has to be sent again (handled by burla)
    ├── PythonMismatch                                   the cluster has another Python
    ├── EnvironmentNeeded                                nodes lack this machine's disk (handled by burla)
    └── UnsafeFiles                                      keys that somebody else can read or write
"""

from __future__ import annotations

import signal as _signal
from typing import Any


class BurlaError(Exception):
    """What every error of burla derives from; its facts are attributes, and survive pickling."""

    def __init__(self, message: str, **facts: Any):
        super().__init__(message)
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[BurlaError], args: tuple[Any, ...], state: dict[str, Any]) -> BurlaError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidValue(BurlaError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class InvalidType(BurlaError, TypeError):
    """An argument has a type that is not allowed."""


class FunctionTooBig(BurlaError, ValueError):
    """The pickled function is over the limit. Facts: `size_bytes`, `limit_bytes`, `largest`."""


class FunctionNotPicklable(BurlaError, TypeError):
    """The function captures something that cannot be sent. Facts: `path`, `culprit_type`."""


class InputTooBig(BurlaError, ValueError):
    """One pickled input is over the limit. Facts: `index`, `size_bytes`, `limit_bytes`."""


class InputNotPicklable(BurlaError, TypeError):
    """One input cannot be sent; nothing has run. Facts: `index`, `path`, `culprit_type`."""


class ArgumentMismatch(BurlaError, TypeError):
    """A tuple, unpacked into arguments, does not fit the function's signature. Facts: `index`."""


class ResultNotPicklable(BurlaError, TypeError):
    """A call returned something that cannot come back. Facts: `index`, `type_name`."""


class RemoteError(BurlaError):
    """A call raised an exception that cannot be rebuilt here. Facts: `type_name`, `traceback`."""


class CallExited(BurlaError):
    """A call raised SystemExit, KeyboardInterrupt or the like. Facts: `type_name`, `code`."""


class WorkerCrashed(BurlaError):
    """A call ended its process, and did so again when retried alone.

    Facts: `index`, `signal` (number or None), `exit_code` (or None), `attempts`.
    """

    @classmethod
    def of(cls, index: int, signal: int | None, exit_code: int | None, attempts: int) -> WorkerCrashed:
        how = f"was ended by {signal_name(signal)}" if signal else f"exited with code {exit_code}"
        return cls(
            f"input {index}: the process that ran it {how}, {attempts} times of {attempts}. "
            "Other inputs are not to blame. Run the function on this input alone, here, to see why.",
            index=index,
            signal=signal,
            exit_code=exit_code,
            attempts=attempts,
        )


class OutOfMemory(BurlaError):
    """A call needs more memory than `func_ram` gives it, or than the largest node has.

    Facts: `index`, `peak_bytes`, `limit_bytes`.
    """

    @classmethod
    def of(
        cls, index: int, peak_bytes: int, limit_bytes: int, fixed: bool, others_bytes: int, tried: int
    ) -> OutOfMemory:
        """`others_bytes`: of calls beside it; `tried`: how often it was begun again."""
        had, limit = f"{peak_bytes / 1e9:.2f} GB", f"{limit_bytes / 1e9:.2f} GB"
        if fixed:
            more = -(-peak_bytes * 3 // 2 // 1_000_000_000)
            text = (
                f"needs more memory than its func_ram of {limit}: it was ended when it had {had}. Ask for more, as "
                f"func_ram={more}, or let it have less at once"
            )
        else:
            beside = f"with {others_bytes / 1e9:.2f} GB in other calls" if others_bytes else "alone"
            again = f" It was tried {tried + 1} times." if tried else ""
            text = (
                f"had {had} of memory, {beside}, when its node was out of it ({limit} in all), and no node has "
                f"more.{again} Use a larger machine, or let it have less at once"
            )
        return cls(f"input {index}: its call {text}.", index=index, peak_bytes=peak_bytes, limit_bytes=limit_bytes)


def signal_name(number: int | None) -> str:
    """Return the name of a signal, or `signal 99` for one this system does not know."""
    try:
        return _signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


class NoNodes(BurlaError):
    """The cluster has no node, and none came in time. Facts: `waited_s`."""


class NoCompatibleNodes(BurlaError):
    """The cluster has nodes, and none fits what a call asks for. Facts: `asked`, `available`."""


class EnvironmentFailed(BurlaError):
    """What the function needs cannot be had on a node. Facts, of a failed installation: `missing`, by name why."""


class JobCancelled(BurlaError):
    """The job was stopped by somebody else, or because its client was silent for too long."""


class LimitReached(JobCancelled):
    """The job was stopped at a limit that it was given. Facts: `limit`, "max_minutes" or "max_cost_usd"."""


class MissingExtra(BurlaError):
    """What was asked for needs packages that are not installed; the message says how to install them."""


class UnknownJob(BurlaError, LookupError):
    """The cluster has no such job: it was never there, was deleted, or its retention is over. Facts: `job`."""


class JobUnfinished(BurlaError):
    """A job has to end before it can be deleted or retried. Facts: `job`."""


class NoResult(BurlaError, LookupError):
    """A job ended before this call had an outcome. Facts: `job`, `index`."""


class ClusterError(BurlaError):
    """Something about the cluster, not about the function."""


class ClusterStartFailed(ClusterError):
    """The local cluster did not start. Facts: `log`, the path of its log."""


class ClusterLost(ClusterError):
    """The cluster went away under a running job. Finished results are on `burla_results`."""


class ClusterBusy(ClusterError):
    """The running cluster is of another version and has unfinished jobs, so it stays."""


class CloudError(ClusterError):
    """A step of making, changing or ending a cluster in a cloud failed.

    Facts: `step`; `told`, the cloud's own message; `left`, names of machines that may still run.
    """


class UnknownCluster(ClusterError, LookupError):
    """No cluster is known by this name."""


class StoreFull(ClusterError):
    """The head's disk is full. What runs pauses, nothing is lost, and it goes on when there is room. Facts: `path`."""


class StoreDamaged(ClusterError):
    """Something that the head had stored has changed or gone. Facts: `job`, and `start`, `stop` or `path`."""


class StoreUnreachable(ClusterError):
    """The bucket with copies of finished results (`store=`) cannot be read or written. Facts: `url`."""


class StoreBusy(ClusterError):
    """Another head uses the store. Facts: `path`."""


class StoreUnknown(ClusterError):
    """The store was written by another version of burla. Facts: `path`, `schema`."""


class BlobBroken(ClusterError):
    """The head lacks the beginning of a large value, because it was started again: it is sent anew."""


class PythonMismatch(ClusterError):
    """The nodes that do not share this machine's disk have another Python. Facts: `here`, `there`."""


class EnvironmentNeeded(ClusterError):
    """Nodes do not share the client's disk: the job has to say what it needs. Facts: `shared`, whether others do."""


class UnsafeFiles(ClusterError):
    """A file or folder with keys has a wrong owner or mode. Facts: `path`."""
