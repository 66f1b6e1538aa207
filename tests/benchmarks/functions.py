"""What is mapped. A module of its own, because who runs calls in fresh processes imports it there each time."""

from __future__ import annotations

import time
from typing import Any

NAP_S = 0.010
SPINS = 100_000  # about 5 ms of CPU; the same work for everybody, whatever that takes here
MB = 1_000_000


def noop(x: Any) -> Any:
    return x


def nap(x: Any) -> Any:
    time.sleep(NAP_S)
    return x


def spin(x: int) -> int:
    total = 0
    for number in range(SPINS):
        total += number
    return x


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def say(x: int) -> int:
    print("line", x)
    return x


def size(value: bytes) -> int:
    return len(value)


def megabyte(x: int) -> bytes:
    return bytes([x % 256]) * MB


def weigh(weight: bytes, x: int) -> int:
    return len(weight) + x
