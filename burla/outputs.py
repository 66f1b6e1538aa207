"""Many short outputs as one event: of a million calls that each print a line, none is an event of its own. Pure."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence

from burla.protocol import Event, Output, Outputs

_HEAD = struct.Struct("<I")  # how many; then indices, sizes and streams of all, then their data
_INDEX, _SIZE = "q", "I"


def pack(outputs: Sequence[Output]) -> Output | Outputs:
    """Return outputs, at least one, as one event."""
    if len(outputs) == 1:
        return outputs[0]
    indices = array(_INDEX, [one.index for one in outputs])
    sizes = array(_SIZE, [len(one.data) for one in outputs])
    streams = bytes([one.stream for one in outputs])
    data = [_HEAD.pack(len(outputs)), indices.tobytes(), sizes.tobytes(), streams, *(one.data for one in outputs)]
    return Outputs(min(indices), max(indices) + 1, b"".join(data))


def unpack(event: Event) -> Iterator[Output]:
    """Yield the outputs of an event, in their order; of one that is not of outputs, none."""
    if isinstance(event, Output):
        yield event
    elif isinstance(event, Outputs):
        packed = event.packed
        (count,) = _HEAD.unpack_from(packed)
        indices, sizes = array(_INDEX), array(_SIZE)
        at = _HEAD.size
        for numbers in (indices, sizes):
            numbers.frombytes(packed[at : at + count * numbers.itemsize])
            at += count * numbers.itemsize
        streams = packed[at : at + count]
        at += count
        for index, size, stream in zip(indices, sizes, streams, strict=True):
            yield Output(index, stream, packed[at : at + size])
            at += size


def about(event: Event, index: int) -> Event | None:
    """Return what of an event is about one input; None: nothing."""
    match event:
        case Outputs():
            mine = [one for one in unpack(event) if one.index == index]
            return pack(mine) if mine else None
        case _:
            return event
