"""Which inputs of a new job are those of an old one: position by position, by a hash of what they hold.

The hash is of a pickle that is the same in every process: without memo, so that it does not matter which equal objects
are one; sets in the order of their elements' hashes; classes and importable functions by name, others by their code.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from burla import serialize
from burla.errors import StoreDamaged
from burla.protocol import Block, Payload, Resume
from burla.ranges import Ranges

HASH_BYTES = 32
MOST_BYTES, MOST_OBJECTS = 1_000_000_000, 1_000_000  # without memo, what is referred to often is written often
_EXACT = frozenset({int, str, bytes, bool, type(None)})  # equal ones are the same


class Comparison:
    """Compares the blocks of a new job with those of an old one, while they pass.

    `pages` returns blocks of the old job from an input on; `fetch` the bytes of their payloads.
    """

    def __init__(
        self,
        job_id: str,
        total: int,
        pages: Callable[[int], tuple[Block, ...]],
        fetch: Callable[[Payload], bytes],
    ):
        self.job_id = job_id
        self._total = total
        self._pages = pages
        self._fetch = fetch
        self._page: tuple[Block, ...] = ()
        self._old: _Items | None = None
        self._unreadable = 0  # inputs before this one are not asked for
        self._same = Ranges()

    def watch(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the blocks of the new job, and compare each."""
        for block in blocks:
            self._compare(block)
            yield block

    def resume(self) -> Resume:
        """Return the inputs that are the same in both."""
        return Resume(self.job_id, tuple(self._same))

    def _compare(self, block: Block) -> None:
        assert isinstance(block.payload, bytes)  # it is compared before it is sent
        new: _Items | None = None
        index = block.first
        while index < block.first + block.count and index < self._total:
            old = self._old_at(index)
            if old is None:
                index += 1
            elif old.block.first == block.first == index and old.data == block.payload and old.same_form(block):
                self._same.add(index, index + block.count)
                index += block.count
            else:
                new = new or _Items(block, block.payload)
                if _same(old, new, index):
                    self._same.add(index, index + 1)
                index += 1

    def _old_at(self, index: int) -> _Items | None:
        """Return the old block that holds an input, None if it cannot be read any more."""
        if self._old is not None and self._old.holds(index):
            return self._old
        if index < self._unreadable:
            return None
        try:
            block = next((one for one in self._page if one.first <= index < one.first + one.count), None)
            if block is None:
                self._page = self._pages(index)
                block = next(one for one in self._page if one.first <= index < one.first + one.count)
            self._old = _Items(block, self._fetch(block.payload))
        except StoreDamaged as error:
            self._unreadable = max(index + 1, error.facts.get("stop") or 0)
            return None
        return self._old


class _Items:
    """The values of a block, loaded when they are asked for."""

    def __init__(self, block: Block, data: bytes):
        self.block = block
        self.data = data
        self._items: list[Any] | None = None

    def holds(self, index: int) -> bool:
        return self.block.first <= index < self.block.first + self.block.count

    def same_form(self, other: Block) -> bool:
        return (self.block.count, self.block.each) == (other.count, other.each)

    def at(self, index: int) -> Any:
        """Return a value; with `each`, its pickle."""
        if self._items is None:
            self._items = serialize.load_block(self.data)
        return self._items[index - self.block.first]

    def hash_at(self, index: int) -> bytes:
        item = self.at(index)
        return content_hash(serialize.load_value(item) if self.block.each else item)


def _same(old: _Items, new: _Items, index: int) -> bool:
    try:
        one, other = old.at(index), new.at(index)
        if old.block.each == new.block.each and type(one) is type(other) and type(one) in _EXACT and one == other:
            return True  # the same value, or the same pickle
        return old.hash_at(index) == new.hash_at(index)
    except Exception:  # noqa: BLE001 - of a class that is gone or has changed: whatever it raises, it is not the same
        return False


def content_hash(value: Any) -> bytes:
    """Return a hash of what a value holds. Raises what pickling it raises."""
    try:
        return _hash(value, fast=True)
    except (ValueError, RecursionError, _TooLong):  # it contains itself, or one thing very often
        return _hash(value, fast=False)


def _hash(value: Any, fast: bool) -> bytes:
    sink = _Sink(MOST_BYTES if fast else None)
    _Canonical(sink, fast).dump(value)
    return sink.digest.digest()


class _TooLong(Exception):
    """Written without memo, a value is too long."""


class _Sink:
    def __init__(self, limit_bytes: int | None):
        self.digest = hashlib.blake2b(digest_size=HASH_BYTES)
        self._left_bytes = limit_bytes

    def write(self, data: Any) -> None:
        if self._left_bytes is not None:
            self._left_bytes -= memoryview(data).nbytes
            if self._left_bytes < 0:
                raise _TooLong
        self.digest.update(data)


class _Canonical(serialize.Pickler):
    def __init__(self, sink: _Sink, fast: bool):
        super().__init__(sink)
        self.fast = fast
        self._objects = 0

    def persistent_id(self, obj: Any) -> Any:
        """Return what is written in place of an object, None for the object itself."""
        self._objects += 1
        if self.fast and self._objects > MOST_OBJECTS:
            raise _TooLong
        if isinstance(obj, (set, frozenset)):
            return "set", type(obj), sorted(map(content_hash, obj)), getattr(obj, "__dict__", None)
        if isinstance(obj, type):
            return "class", obj.__module__, obj.__qualname__
        if isinstance(obj, types.FunctionType):
            named = "function", obj.__module__, obj.__qualname__
            return named if serialize.is_importable(obj) else (*named, *_parts(obj))
        if isinstance(obj, types.CodeType):
            return "code", obj.co_code, obj.co_consts, obj.co_names, obj.co_varnames, obj.co_freevars
        return None


def _parts(function: types.FunctionType) -> tuple[Any, ...]:
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return function.__code__, function.__defaults__, function.__kwdefaults__, cells
