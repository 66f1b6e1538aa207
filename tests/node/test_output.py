"""OutputPipe over a real pipe and real shared memory; the test takes the part of the child."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla.node import shared
from burla.node.output import LINE_BYTES, OutputPipe
from burla.protocol import STDERR, STDOUT, Output

SECRET = b"\x01\x02\x01\x02\x01\x03secret-16"[:16]
NONE = -1


class Pipe:
    """A pipe whose write end we hold as the child would."""

    def __init__(self, stream: int = STDOUT):
        read, self.fd = os.pipe()
        self.memory = shared.attach(shared.create())
        self.memory[shared.INDEX] = NONE
        self.got: list[Output] = []
        self.node = OutputPipe(read, stream, SECRET, self.memory, self.got.append)

    def begin(self, index: int) -> None:
        self.memory[shared.INDEX] = index

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)

    def end(self, index: int) -> None:
        """Mark the end of a call that wrote something."""
        self.write(mark(index))

    def read(self) -> list[tuple[int, bytes]]:
        """What the node has made of all that was written since."""
        self.node.drain()
        got = [(one.index, one.data) for one in self.got]
        self.got.clear()
        return got

    def close(self) -> list[tuple[int, bytes]]:
        """The child ends; return what comes then."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.node.close()
        return self.read()


def mark(index: int) -> bytes:
    return SECRET + struct.pack("<q", index)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def joined(got: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """All that each call wrote."""
    whole: dict[int, bytes] = {}
    for index, data in got:
        whole[index] = whole.get(index, b"") + data
    return whole


# lines and marks ------------------------------------------------------------------------------------------------------


def test_whole_lines_of_a_running_call_come_at_once(pipe: Pipe):
    pipe.begin(7)
    pipe.write(b"one\ntwo\nthr")
    assert pipe.read() == [(7, b"one\ntwo\n")]
    pipe.write(b"ee\n")
    assert pipe.read() == [(7, b"three\n")]


@pytest.mark.parametrize("stream", [STDOUT, STDERR])
def test_output_names_its_stream(stream: int):
    pipe = Pipe(stream)
    pipe.begin(0)
    pipe.write(b"x\n")
    pipe.node.drain()
    assert pipe.got == [Output(0, stream, b"x\n")]
    pipe.close()


def test_an_unfinished_line_comes_when_its_call_ends(pipe: Pipe):
    pipe.begin(1)
    pipe.write(b"no newline")
    assert pipe.read() == []
    pipe.end(1)
    assert pipe.read() == [(1, b"no newline")]


def test_an_unfinished_line_comes_when_the_child_dies(pipe: Pipe):
    pipe.begin(1)
    pipe.write(b"line\nlast words")
    assert pipe.read() == [(1, b"line\n")]
    assert pipe.close() == [(1, b"last words")]


def test_calls_of_one_time_box_are_told_apart_by_their_marks_alone(pipe: Pipe):
    """They all were over before the node read: only the marks say who wrote what."""
    for index in range(5):
        pipe.begin(index)
        pipe.write(b"of %d\nrest %d" % (index, index))
        pipe.end(index)
    pipe.begin(NONE)
    assert joined(pipe.read()) == {index: b"of %d\nrest %d" % (index, index) for index in range(5)}


def test_a_mark_is_found_wherever_the_reads_cut_it(pipe: Pipe):
    whole = b"first" + mark(1) + b"second\n" + mark(2)
    for cut in range(1, len(whole)):
        pipe.begin(1 if cut <= len(b"first" + mark(1)) else 2)
        pipe.write(whole[:cut])
        got = pipe.read()
        pipe.begin(2)
        pipe.write(whole[cut:])
        assert joined(got + pipe.read()) == {1: b"first", 2: b"second\n"}, f"cut at {cut}"


def test_a_mark_is_found_byte_by_byte(pipe: Pipe):
    pipe.begin(3)
    for byte in b"a\nb" + mark(3):
        pipe.write(bytes([byte]))
        pipe.node.drain()
    assert joined(pipe.read()) == {3: b"a\nb"}
    assert not pipe.node._line


def test_what_only_looks_like_the_beginning_of_a_mark_is_output(pipe: Pipe):
    pipe.begin(0)
    for size in range(1, len(SECRET)):
        pipe.write(SECRET[:size])
        begun = pipe.read()
        pipe.write(b"\n")
        assert begun + pipe.read() == [(0, SECRET[:size] + b"\n")]
    pipe.write(SECRET[:4] + mark(0))
    assert pipe.read() == [(0, SECRET[:4])]


def test_the_beginning_of_a_mark_comes_out_when_the_child_dies(pipe: Pipe):
    pipe.begin(0)
    pipe.write(b"x" + SECRET[:5])
    assert pipe.close() == [(0, b"x" + SECRET[:5])]


def test_output_past_python_between_calls_goes_to_the_last_call_that_wrote(pipe: Pipe):
    pipe.begin(4)
    pipe.write(b"mine\n")
    pipe.end(4)
    pipe.begin(NONE)
    pipe.write(b"of a thread that lives on\n")
    assert joined(pipe.read()) == {4: b"mine\nof a thread that lives on\n"}


def test_a_line_is_never_broken_because_the_next_call_has_begun(pipe: Pipe):
    pipe.begin(0)
    pipe.write(b"be")
    pipe.node.drain()
    pipe.begin(1)
    pipe.write(b"gun\n")
    assert [data for _, data in pipe.read()] == [b"begun\n"]


# amounts --------------------------------------------------------------------------------------------------------------


def test_a_line_of_megabytes_comes_in_one_piece(pipe: Pipe):
    pipe.begin(2)
    line = os.urandom(5_000_000).replace(b"\n", b"+") + b"\n"

    async def scenario() -> None:
        writing = threading.Thread(target=lambda: write_all(pipe.fd, line + b"next\n"))
        pipe.node.start()
        writing.start()
        await wait_for(lambda: sum(len(one.data) for one in pipe.got) == len(line) + 5)
        pipe.node.pause()
        writing.join()

    asyncio.run(scenario())
    assert b"".join(one.data for one in pipe.got) == line + b"next\n"
    assert pipe.got[0].data.startswith(line), "no part of a line comes alone"


def test_a_line_without_end_does_not_fill_memory(pipe: Pipe):
    pipe.begin(2)
    for _ in range(LINE_BYTES // 1_000_000 + 3):
        os.write(pipe.fd, bytes(500_000))
        pipe.node.drain()
        os.write(pipe.fd, bytes(500_000))
        pipe.node.drain()
    assert LINE_BYTES <= sum(len(one.data) for one in pipe.got) <= LINE_BYTES + 2_000_000
    assert len(pipe.node._line) < 4_000_000


def test_hundred_thousand_lines_all_arrive_in_order(pipe: Pipe):
    text = b"".join(b"line %d\n" % number for number in range(100_000))

    async def scenario() -> None:
        writing = threading.Thread(target=lambda: write_all(pipe.fd, text))
        pipe.node.start()
        writing.start()
        await wait_for(lambda: sum(len(one.data) for one in pipe.got) == len(text))
        pipe.node.pause()
        writing.join()

    pipe.begin(0)
    asyncio.run(scenario())
    assert b"".join(one.data for one in pipe.got) == text
    assert all(one.data.endswith(b"\n") for one in pipe.got)


def test_a_paused_pipe_stops_its_writer_and_loses_nothing(pipe: Pipe):
    text = b"x" * 99 + b"\n"
    copies = 60_000  # more than a pipe holds

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        pipe.node.start()
        pipe.node.pause()
        writing = loop.run_in_executor(None, write_all, pipe.fd, text * copies)
        done, _ = await asyncio.wait([writing], timeout=0.5)
        assert not done and not pipe.got, "nothing is read, so the writer waits"
        pipe.node.start()
        await writing
        await wait_for(lambda: sum(len(one.data) for one in pipe.got) == len(text) * copies)
        pipe.node.pause()

    pipe.begin(0)
    asyncio.run(scenario())
    assert b"".join(one.data for one in pipe.got) == text * copies


def test_draining_ends_although_the_call_writes_without_end():
    pipe = Pipe()
    taken: list[int] = []

    def write_more(output: Output) -> None:
        taken.append(len(output.data))
        assert sum(taken) < 20_000_000, "it goes on for ever"
        pipe.write(bytes(50_000) + b"\n")

    pipe.node = OutputPipe(os.dup(pipe.node._fd), STDOUT, SECRET, pipe.memory, write_more)
    pipe.begin(0)
    pipe.write(b"first\n")
    pipe.node.drain()
    assert 1_000_000 < sum(taken) < 3_000_000, "what a pipe holds"


def test_closing_takes_what_is_left_and_gives_the_descriptor_back(pipe: Pipe):
    pipe.begin(5)
    pipe.write(b"left\nover")
    before = len(os.listdir("/dev/fd"))
    pipe.node.close()
    pipe.node.close()
    assert [(one.index, one.data) for one in pipe.got] == [(5, b"left\n"), (5, b"over")]
    assert pipe.node.ended and len(os.listdir("/dev/fd")) == before - 1


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from([b"", b"a", b"\n", b"bc\n", SECRET[:3], b"d\ne"]), max_size=4), max_size=8),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_every_byte_goes_to_the_call_that_wrote_it(calls: list[list[bytes]], cuts: list[int]):
    """Wherever the reads cut what calls write through Python."""
    pipe = Pipe()
    try:
        stream = [(index, byte) for index, parts in enumerate(calls) for byte in call_bytes(index, parts)]
        got: list[tuple[int, bytes]] = []
        at = turn = 0
        while at < len(stream):
            size = cuts[turn % len(cuts)]
            turn += 1
            chunk = stream[at : at + size]
            pipe.begin(chunk[-1][0])
            pipe.write(bytes(byte for _, byte in chunk))
            got += pipe.read()
            at += size
        got += pipe.close()
        written = {index: b"".join(parts) for index, parts in enumerate(calls) if b"".join(parts)}
        assert joined(got) == written
    finally:
        pipe.close()


def call_bytes(index: int, parts: list[bytes]) -> bytes:
    written = b"".join(parts)
    return written + mark(index) if written else b""


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[: 1 << 20]) :]


async def wait_for(condition, timeout_s: float = 30) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), timeout_s)
