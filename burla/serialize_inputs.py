"""How inputs become blocks: as one plain pickle where every value is atomic, else value by value.

A generator may yield the same buffer again and again, and change it: a value is pickled before the next one is taken.
"""

from __future__ import annotations

import pickle
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

from burla import config, protocol
from burla.serialize import ATOMIC, Definitions, Unpicklable, dump_value

_SIZED = frozenset({str, bytes})


def pack_inputs(inputs: Iterable[Any], limit_bytes: int = config.INPUT_LIMIT_BYTES) -> Iterator[protocol.Block]:
    """Yield blocks of the inputs, in order, each value pickled before the next one is taken.

    Raises InputNotPicklable, or InputTooBig for a value over `limit_bytes`.
    """
    if type(inputs) in (list, tuple, range):
        return _pack_sequence(inputs, limit_bytes)  # pyright: ignore[reportArgumentType]
    return _pack_values(inputs, 0, limit_bytes, {})


def _pack_sequence(inputs: Sequence[Any], limit_bytes: int) -> Iterator[protocol.Block]:
    budget_bytes = min(protocol.BLOCK_BYTES, limit_bytes)
    definitions: Definitions = {}
    first, length = 0, protocol.BLOCK_INPUTS
    while first < len(inputs):
        chunk = list(inputs[first : first + length])
        sized_bytes = 0 if type(inputs) is range else _sized_bytes(chunk)
        if sized_bytes is None:
            yield from _pack_values(chunk, first, limit_bytes, definitions)
            first += len(chunk)
            length = protocol.BLOCK_INPUTS
            continue
        if sized_bytes > budget_bytes:  # may be far too much to pickle and see
            chunk = chunk[: bisect_right(list(accumulate(map(_weight_bytes, chunk))), budget_bytes) or 1]
        payload = pickle.dumps(chunk, 5)
        while len(payload) > budget_bytes and len(chunk) > 1:
            chunk = chunk[: max(1, min(len(chunk) - 1, len(chunk) * budget_bytes // len(payload)))]
            payload = pickle.dumps(chunk, 5)
        if len(payload) > limit_bytes:
            _dump_input(chunk[0], first, limit_bytes, definitions)
        yield protocol.Block(first, len(chunk), False, payload)
        first += len(chunk)
        grow = 2 if len(payload) < 0.75 * budget_bytes else 1
        length = min(protocol.BLOCK_INPUTS, grow * len(chunk))


def _sized_bytes(chunk: list[Any]) -> int | None:
    """Return the length of all str and bytes in atomic values and tuples of such; None if there is anything else."""
    types = set(map(type, chunk))
    if tuple in types:
        types.discard(tuple)
        if not types <= ATOMIC:
            return None
        chunk = list(chain.from_iterable(value if type(value) is tuple else (value,) for value in chunk))
        types = set(map(type, chunk))
    if not types <= ATOMIC:
        return None
    if types <= _SIZED:
        return sum(map(len, chunk))
    return sum([len(value) for value in chunk if type(value) in _SIZED]) if types & _SIZED else 0


def _weight_bytes(value: Any) -> int:
    kind = type(value)
    if kind is str:
        return 10 + (len(value) if value.isascii() else 4 * len(value))
    if kind is bytes:
        return 10 + len(value)
    if kind is int:
        return 10 + value.bit_length() // 8
    return 10 + sum(map(_weight_bytes, value)) if kind is tuple else 30


def _pack_values(
    values: Iterable[Any], first: int, limit_bytes: int, definitions: Definitions
) -> Iterator[protocol.Block]:
    budget_bytes = min(protocol.BLOCK_BYTES, limit_bytes)
    items: list[Any] = []
    each, size = False, 0
    for index, value in enumerate(values, first):
        kind = type(value)
        weight = budget_bytes + 1
        if kind in ATOMIC or (kind is tuple and ATOMIC.issuperset(map(type, value))):
            weight = _weight_bytes(value)
        plain = weight + 20 <= budget_bytes  # alone, a value has that much around it
        data = None if plain and not each else _dump_input(value, index, limit_bytes, definitions)
        value_bytes = weight if data is None else len(data) + 6
        if items and (size + value_bytes > budget_bytes or len(items) == protocol.BLOCK_INPUTS):
            yield protocol.Block(index - len(items), len(items), each, pickle.dumps(items, 5))
            items, each, size = [], False, 0
            data = None if plain else data
        if data is not None and not each:
            items, each = [pickle.dumps(item, 5) for item in items], True
        items.append(value if data is None else data)
        size += value_bytes
        first = index + 1
    if items:
        yield protocol.Block(first - len(items), len(items), each, pickle.dumps(items, 5))


def _dump_input(value: Any, index: int, limit_bytes: int, definitions: Definitions) -> bytes:
    try:
        data = dump_value(value, definitions)
    except Unpicklable as error:
        from burla import serialize_report

        raise serialize_report.input_not_picklable(value, index, error) from error.__cause__
    if len(data) > limit_bytes:
        from burla import serialize_report

        raise serialize_report.input_too_big(value, index, len(data), limit_bytes)
    return data
