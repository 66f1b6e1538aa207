"""The options of a call: checked before anything starts."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from burla import configured, images
from burla.errors import InvalidType, InvalidValue
from burla.protocol import ANY_GPU, JobState, Variables

GB = 1_000_000_000
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
GPUS = {
    "A100": "A100_40G",
    "A100_40G": "A100_40G",
    "A100_80G": "A100_80G",
    "H100": "H100_80G",
    "H100_80G": "H100_80G",
    "H200": "H200",
    "B200": "B200",
    "L4": "L4",
    "T4": "T4",
    "V100": "V100",
    ANY_GPU: ANY_GPU,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a call asks for, in the terms of `protocol.JobSpec`."""

    func_cpu: int
    func_ram_bytes: int | None
    func_gpu: str | None
    image: str | None
    grow: bool
    max_parallelism: int | None
    detach: bool
    generator: bool
    spinner: bool
    on_error: str
    packages: tuple[str, ...]
    variables: Variables
    max_run_s: float | None
    max_cost_usd: float | None


def check(
    function: Any,
    inputs: Any,
    func_cpu: Any,
    func_ram: Any,
    func_gpu: Any,
    image: Any,
    grow: Any,
    max_parallelism: Any,
    detach: Any,
    generator: Any,
    spinner: Any,
    on_error: Any = "raise",
    packages: Any = (),
    env_vars: Any = NO_VARIABLES,
    max_cost_usd: Any = None,
    max_minutes: Any = None,
) -> Options:
    """Return the options. Raises InvalidValue or InvalidType, which name the parameter."""
    if not callable(function):
        raise InvalidType(f"function_={function!r:.200}: it must be callable.")
    try:
        iter(inputs)
    except TypeError:
        raise InvalidType(
            f"inputs={inputs!r:.200}: it must be iterable, one element for each call, such as a list or a generator."
        ) from None
    for name, value in (("grow", grow), ("detach", detach), ("generator", generator), ("spinner", spinner)):
        if not isinstance(value, bool):
            raise InvalidType(f"{name}={value!r}: it must be True or False.")
    if image is not None and not isinstance(image, str):
        raise InvalidType(f"image={image!r}: it must be the name of a container image, or None.")
    if image is not None and not image.strip():
        raise InvalidValue(f"image={image!r}: it must be the name of a container image, or None.")
    return Options(
        func_cpu=count("func_cpu", func_cpu, "an integer of at least 1: CPUs a call"),
        func_ram_bytes=_ram(func_ram),
        func_gpu=_gpu(func_gpu),
        image=None if image is None else images.normalise(image),
        grow=grow,
        max_parallelism=None
        if max_parallelism is None
        else count("max_parallelism", max_parallelism, "None, or an integer of at least 1: calls at once"),
        detach=detach,
        generator=generator,
        spinner=spinner,
        on_error=_on_error(on_error),
        packages=configured.configure().packages + configured.checked_packages(packages),
        variables=configured.configure().env_vars.and_these(configured.checked_variables(env_vars)),
        max_run_s=None if max_minutes is None else 60.0 * amount("max_minutes", max_minutes),
        max_cost_usd=None if max_cost_usd is None else amount("max_cost_usd", max_cost_usd),
    )


def count(name: str, value: Any, allowed: str) -> int:
    """Return an integer of at least 1. Raises InvalidType, InvalidValue, which say what is allowed."""
    if isinstance(value, bool):
        raise InvalidType(f"{name}={value!r}: it must be {allowed}.")
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidType(f"{name}={value!r}: it must be {allowed}.") from None
    if number < 1:
        raise InvalidValue(f"{name}={value!r}: it must be {allowed}.")
    return number


def amount(name: str, value: Any) -> float:
    """Return a number above 0. Raises InvalidType, InvalidValue."""
    text = f"{name}={value!r}: it must be a number above 0."
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidType(text)
    number = float(value)
    if not (number > 0 and math.isfinite(number)):
        raise InvalidValue(text)
    return number


def _ram(value: Any) -> int | None:
    allowed = '"dynamic", or an integer of at least 1: GB a call'
    if isinstance(value, str):
        if value == "dynamic":
            return None
        raise InvalidValue(f"func_ram={value!r}: it must be {allowed}.")
    return count("func_ram", value, allowed) * GB


def _gpu(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidType(f"func_gpu={value!r}: it must be None or one of {', '.join(GPUS)}.")
    try:
        return GPUS[value]
    except KeyError:
        raise InvalidValue(f"func_gpu={value!r}: it must be None or one of {', '.join(GPUS)}.") from None


def state(value: Any) -> JobState:
    """Return the state of a job by its name. Raises InvalidValue."""
    try:
        return JobState(value)
    except ValueError:
        allowed = ", ".join(one.value for one in JobState)
        raise InvalidValue(f"status={value!r}: it must be one of {allowed}.") from None


def _on_error(value: Any) -> str:
    allowed = '"raise" (the first failure stops the job) or "continue" (others run all the same)'
    if not isinstance(value, str):
        raise InvalidType(f"on_error={value!r}: it must be {allowed}.")
    if value not in ("raise", "continue"):
        raise InvalidValue(f"on_error={value!r}: it must be {allowed}.")
    return value


def iterate(inputs: Iterable[Any]) -> Iterable[Any] | None:
    """Return the inputs, or None if there are none: an iterator's first element is not lost by looking."""
    if type(inputs) in (list, tuple, range):  # of others only what they yield counts: tqdm has a len() that raises
        return inputs or None
    iterator = iter(inputs)
    for first in iterator:
        return itertools.chain([first], iterator)
    return None
