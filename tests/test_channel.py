"""The channel over a real pair of sockets: both ends in one event loop, bytes through the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from burla.channel import WAITING_FRAMES, Channel, ChannelClosed, Handler, StreamTransport
from burla.errors import BurlaError, NoNodes

LONG_S = 20


async def echo(message: Any) -> Any:
    return message


async def open_end(end: socket.socket, handler: Handler | None = None) -> Channel:
    end.setblocking(False)
    return Channel(StreamTransport(*await asyncio.open_connection(sock=end)), handler)


@contextlib.asynccontextmanager
async def channels(
    ours: Handler | None = None, theirs: Handler | None = None
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends of one channel that are being served."""
    here, there = socket.socketpair()
    both = await open_end(here, ours), await open_end(there, theirs)
    running = [asyncio.ensure_future(channel.run()) for channel in both]
    try:
        yield both
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), LONG_S)

    asyncio.run(limited())


async def frames_that_wait(channel: Channel) -> int:
    """How many messages this side may tell before it has to wait for the other."""
    told = 0
    with contextlib.suppress(TimeoutError):
        while told < 1000:
            await asyncio.wait_for(channel.tell(bytes(1_000_000)), 0.5)
            told += 1
    return told


def test_messages_arrive_in_the_order_they_were_sent():
    async def scenario() -> None:
        got: list[Any] = []

        async def note(message: Any) -> None:
            got.append(message)

        async with channels(theirs=note) as (here, _):
            sent = []
            for number in range(300):
                message = (number, bytes(number * 97 % 70_000))
                sent.append(message)
                match number % 3:
                    case 0:
                        await here.tell(message)
                    case 1:
                        here.post(message)
                    case _:
                        await here.ask(message)
            assert got == sent

    run(scenario)


def test_each_question_gets_its_own_reply_whatever_the_order_of_the_answers():
    async def scenario() -> None:
        async def later_first(number: int) -> int:
            await asyncio.sleep(0.002 * (20 - number))
            return number * number

        async with channels(theirs=later_first) as (here, _):
            assert await asyncio.gather(*map(here.ask, range(20))) == [number * number for number in range(20)]

    run(scenario)


def test_both_sides_may_ask_at_once_and_from_within_an_answer():
    async def scenario() -> None:
        both: tuple[Channel, Channel]

        async def countdown(number: int, side: int) -> list[int]:
            return [number, *(await both[side].ask(number - 1) if number else [])]

        async with channels(lambda number: countdown(number, 0), lambda number: countdown(number, 1)) as both:
            answers = await asyncio.gather(both[0].ask(9), both[1].ask(8))
            assert answers == [list(range(9, -1, -1)), list(range(8, -1, -1))]

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000])
def test_messages_of_any_size_come_back_equal(size: int):
    async def scenario() -> None:
        message = os.urandom(size)
        async with channels(theirs=echo) as (here, _):
            assert await here.ask(message) == message

    run(scenario)


def test_frames_that_arrive_byte_by_byte_are_put_together():
    async def scenario() -> None:
        got: list[Any] = []

        async def note(message: Any) -> None:
            got.append(message)

        here, there = socket.socketpair()
        running = asyncio.ensure_future((await open_end(here, note)).run())
        for message in ("one", ["two", 2], None):
            frame = pickle.dumps((0, 0, message))
            for byte in struct.pack("<Q", len(frame)) + frame:
                there.send(bytes([byte]))
                await asyncio.sleep(0)
        there.close()
        await running
        assert got == ["one", ["two", 2], None]

    run(scenario)


def test_an_error_of_burla_is_raised_at_the_asking_side_with_its_facts():
    async def scenario() -> None:
        async def refuse(message: Any) -> None:
            raise NoNodes("none came", waited_s=3.5)

        async with channels(theirs=refuse) as (here, _):
            with pytest.raises(NoNodes, match="none came") as info:
                await here.ask("anything")
            assert info.value.waited_s == 3.5

    run(scenario)


def test_a_mistake_of_the_handler_is_an_answer_too_and_the_channel_goes_on():
    async def scenario() -> None:
        async def divide(number: int) -> float:
            return 1 / number

        async with channels(theirs=divide) as (here, _):
            with pytest.raises(BurlaError, match=r"burla failed at int: ZeroDivisionError.*report"):
                await here.ask(0)
            await here.tell(0)  # nobody waits for it, nobody is told
            assert await here.ask(4) == 0.25

    run(scenario)


def test_a_reply_for_who_has_given_up_is_dropped():
    async def scenario() -> None:
        may = asyncio.Event()

        async def slow(message: str) -> str:
            if message == "slow":
                await may.wait()
            return message

        async with channels(theirs=slow) as (here, _):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(here.ask("slow"), 0.05)
            may.set()
            assert await here.ask("quick") == "quick"
            assert here.closed is None

    run(scenario)


def test_the_end_of_the_other_side_is_told_to_all_who_wait_and_to_who_comes_later():
    async def scenario() -> None:
        never = asyncio.Event()
        async with channels(theirs=lambda message: never.wait()) as (here, there):
            asked = [asyncio.ensure_future(here.ask(number)) for number in range(3)]
            await asyncio.sleep(0.05)
            there.close()
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(result) for result in results] == [ChannelClosed] * 3
            assert here.closed is not None and here.closed.clean
            for call in (here.ask, here.tell):
                with pytest.raises(ChannelClosed):
                    await call("too late")
            here.post("lost, and no error")

    run(scenario)


def test_closing_this_side_ends_its_own_waiting_questions_and_its_run():
    async def scenario() -> None:
        never = asyncio.Event()
        here, there = socket.socketpair()
        with there:
            channel = await open_end(here)
            running = asyncio.ensure_future(channel.run())
            asked = asyncio.ensure_future(channel.ask("anything"))
            await asyncio.sleep(0.05)
            channel.close()
            with pytest.raises(ChannelClosed, match="on this side"):
                await asked
            await running
            assert not never.is_set() and there.recv(1 << 20) and there.recv(1) == b"", "the other side hears of it"

    run(scenario)


def test_answers_under_way_are_cancelled_when_the_channel_ends():
    async def scenario() -> None:
        ended = asyncio.Event()

        async def long(message: Any) -> None:
            try:
                await asyncio.sleep(LONG_S)
            finally:
                ended.set()

        async with channels(theirs=long) as (here, _):
            await here.tell("begin")
            await asyncio.sleep(0.05)
            here.close()
            await ended.wait()

    run(scenario)


def test_cancelling_run_ends_the_channel():
    async def scenario() -> None:
        async with channels(theirs=echo) as (here, there):
            await here.ask("works")
        assert here.closed is not None and there.closed is not None

    run(scenario)


def test_who_sends_waits_when_the_other_side_does_not_read():
    async def scenario() -> None:
        here, there = socket.socketpair()
        channel = await open_end(here)
        running = asyncio.ensure_future(channel.run())
        told = await frames_that_wait(channel)
        assert told <= WAITING_FRAMES + 4, "what waits is bounded"
        waits = asyncio.ensure_future(channel.tell("last"))
        there.setblocking(False)
        loop, read = asyncio.get_running_loop(), b""
        while pickle.dumps((0, 0, "last"), 5) not in read:
            read = read[-100:] + await loop.sock_recv(there, 1 << 20)
        await waits
        there.close()
        await running

    run(scenario)


def test_who_waits_for_room_is_released_by_the_end():
    async def scenario() -> None:
        here, there = socket.socketpair()
        channel = await open_end(here)
        running = asyncio.ensure_future(channel.run())
        await frames_that_wait(channel)
        asked = asyncio.ensure_future(channel.ask("stuck"))
        await asyncio.sleep(0)
        there.close()
        with pytest.raises(ChannelClosed):
            await asked
        await running

    run(scenario)


def test_post_never_waits():
    async def scenario() -> None:
        got: list[int] = []

        async def count(message: bytes) -> int:
            got.append(len(message))
            return len(got)

        async with channels(theirs=count) as (here, _):
            for _ in range(5 * WAITING_FRAMES):
                here.post(bytes(100_000))
            assert got == []
            assert await here.ask(b"") == 5 * WAITING_FRAMES + 1

    run(scenario)
