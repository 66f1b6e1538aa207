"""Who is compared: each maps a function over inputs with two workers, in a driver process of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Protocol

SLOTS = 2
Function = Callable[[Any], Any]


class Contestant(Protocol):
    """`map` gives long calls to whoever is free (`long`), and small ones as the contestant thinks best."""

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]: ...
    def one(self, function: Function, x: Any) -> Any: ...
    def lines(self, function: Function, inputs: Sequence[Any]) -> int:
        """Map a function that prints; return how many lines have come to this process's stdout."""
        ...

    def close(self) -> None: ...


@contextlib.contextmanager
def caught() -> Iterator[io.StringIO]:
    """Have sys.stdout in memory."""
    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        yield sys.stdout
    finally:
        sys.stdout = before


class Burla:
    """Its home says how: under a path that is too long for a Unix socket, all goes over TLS."""

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        from burla import remote_parallel_map

        return remote_parallel_map(function, inputs, spinner=False)

    def one(self, function: Function, x: Any) -> Any:
        return self.map(function, [x], False)[0]

    def lines(self, function: Function, inputs: Sequence[Any]) -> int:
        with caught() as stdout:
            self.map(function, inputs, False)
        return stdout.getvalue().count("\n")

    def close(self) -> None:
        from burla.cli import main

        main(["cluster", "stop"])


class _Silent:
    """Prints of calls go to the workers' own stdout, which nobody collects."""

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        raise NotImplementedError

    def lines(self, function: Function, inputs: Sequence[Any]) -> int:
        return len(self.map(function, inputs, False))


class Multiprocessing(_Silent):
    def __init__(self) -> None:
        self.pool = multiprocessing.Pool(SLOTS)
        self.close = self.pool.terminate

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        return self.pool.map(function, inputs, chunksize=1 if long else None)

    def one(self, function: Function, x: Any) -> Any:
        return self.pool.apply(function, (x,))


class Futures(_Silent):
    def __init__(self) -> None:
        self.executor = ProcessPoolExecutor(SLOTS)
        self.close = self.executor.shutdown

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        return list(self.executor.map(function, inputs, chunksize=1 if long else max(1, len(inputs) // (4 * SLOTS))))

    def one(self, function: Function, x: Any) -> Any:
        return self.executor.submit(function, x).result()


class Joblib(_Silent):
    def __init__(self) -> None:
        from joblib import Parallel

        self.parallel = Parallel(n_jobs=SLOTS)

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        from joblib import delayed

        return list(self.parallel(delayed(function)(x) for x in inputs))

    def one(self, function: Function, x: Any) -> Any:
        return self.map(function, [x], False)[0]

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


class Dask(_Silent):
    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=SLOTS, threads_per_worker=1, processes=True, dashboard_address=":0")
        self.client = Client(cluster)

    def close(self) -> None:
        self.client.shutdown()

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        return self.client.gather(self.client.map(function, list(inputs), pure=False))  # type: ignore[return-value]

    def one(self, function: Function, x: Any) -> Any:
        return self.client.submit(function, x, pure=False).result()


class Ray(_Silent):
    def __init__(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.multiprocessing import Pool  # pyright: ignore[reportMissingImports]

        ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
        self.pool = Pool(SLOTS)
        self.close = ray.shutdown

    def map(self, function: Function, inputs: Sequence[Any], long: bool) -> list[Any]:
        return self.pool.map(function, inputs, chunksize=1 if long else None)

    def one(self, function: Function, x: Any) -> Any:
        return self.pool.apply(function, (x,))


MAKERS: dict[str, Callable[[], Contestant]] = {
    "burla": Burla,
    "burla over TLS": Burla,
    "multiprocessing": Multiprocessing,
    "futures": Futures,
    "joblib": Joblib,
    "dask": Dask,
    "ray": Ray,
}


@functools.cache
def available() -> tuple[str, ...]:
    """Return the names of those that are installed here."""
    return tuple(name for name in MAKERS if name != "ray" or importlib.util.find_spec("ray") is not None)


def environment(name: str, home: str) -> dict[str, str]:
    """Return what a driver of a contestant has in its environment, with a folder of its own."""
    if name == "burla over TLS":
        home = os.path.join(home, "long" * 25)
    return os.environ | {"BURLA_HOME": home, "BURLA_LOCAL_CPUS": str(SLOTS)}
