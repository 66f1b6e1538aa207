"""One ordered stream of messages between two processes, with replies matched by number.

The messages do not know their transport: a Dask comm between client or node and head, a socket between node and child.
A frame is the pickle of (number, kind, message). Both sides may ask.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from burla.errors import BurlaError

log = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 20  # of a stream
JOINED_BYTES = 1 << 16  # what is smaller together goes at once
WAITING_FRAMES = 16  # written later than asked for; beyond this, who sends has to wait
_TELL, _ASK, _REPLY, _REFUSE = range(4)
Handler = Callable[[Any], Awaitable[Any]]


class ChannelClosed(ConnectionError):
    """The other side is gone, or this side closed the channel. `clean`: its process ended or closed in order."""

    def __init__(self, reason: str, clean: bool = True):
        super().__init__(reason)
        self.clean = clean


class Transport(Protocol):
    """Carries frames in order; `read` and `write` raise ChannelClosed."""

    async def read(self) -> bytes: ...
    async def write(self, frames: list[bytes]) -> None: ...
    def abort(self) -> None: ...


class CommTransport:
    """A Dask comm (`distributed.comm.Comm`)."""

    def __init__(self, comm: Any):
        self._comm = comm

    async def read(self) -> bytes:
        try:
            return await self._comm.read()
        except OSError as error:
            raise ChannelClosed(str(error), clean=not _by_network(error)) from error

    async def write(self, frames: list[bytes]) -> None:
        try:
            for frame in frames:
                await self._comm.write(frame)
        except OSError as error:
            raise ChannelClosed(str(error), clean=not _by_network(error)) from error

    def abort(self) -> None:
        self._comm.abort()


def _by_network(error: BaseException | None) -> bool:
    """Whether the connection broke on the way: a process that ends has its connections closed by its kernel."""
    while error is not None:
        if isinstance(error, TimeoutError) or "timed out" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


class StreamTransport:
    """A pair of asyncio streams; a frame is its length in 8 bytes, then itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, path: str) -> StreamTransport:
        """Connect to a Unix socket. Raises OSError if nobody listens there."""
        return cls(*await asyncio.open_unix_connection(path, limit=BUFFER_BYTES))

    async def read(self) -> bytes:
        try:
            (size,) = struct.unpack("<Q", await self._reader.readexactly(8))
            return await self._reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ChannelClosed(str(error)) from error

    async def write(self, frames: list[bytes]) -> None:
        parts = [part for frame in frames for part in (struct.pack("<Q", len(frame)), frame)]
        if sum(map(len, parts)) < JOINED_BYTES:
            parts = [b"".join(parts)]  # each write wakes the other side
        try:
            for part in parts:
                self._writer.write(part)
            await self._writer.drain()
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def abort(self) -> None:
        self._writer.transport.abort()


class QueueTransport:
    """One end of a pair within an event loop; see `pair`."""

    def __init__(self, incoming: asyncio.Queue[bytes | None], outgoing: asyncio.Queue[bytes | None]):
        self._incoming, self._outgoing = incoming, outgoing

    async def read(self) -> bytes:
        frame = await self._incoming.get()
        if frame is None:
            self.abort()
            raise ChannelClosed("closed on the other side")
        return frame

    async def write(self, frames: list[bytes]) -> None:
        for frame in frames:
            await self._outgoing.put(frame)

    def abort(self) -> None:
        self._outgoing.put_nowait(None)
        self._incoming.put_nowait(None)


def pair() -> tuple[QueueTransport, QueueTransport]:
    """Return the two ends of a stream within this event loop."""
    there: asyncio.Queue[bytes | None] = asyncio.Queue()
    back: asyncio.Queue[bytes | None] = asyncio.Queue()
    return QueueTransport(back, there), QueueTransport(there, back)


def pack(message: Any) -> bytes:
    """Return a message as `Channel.post_packed` sends it."""
    return pickle.dumps((0, _TELL, message), 5)


class Channel:
    """Asks, tells and answers over one transport.

    `handler` is awaited for each message from the other side, in a task of its own, started in order of arrival. What
    it returns is the reply, and a BurlaError that it raises is raised at the asking side.
    """

    def __init__(self, transport: Transport, handler: Handler | None = None):
        self._transport = transport
        self._handler = handler
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = asyncio.Event()  # what is not written yet is not too much
        self._tasks: set[asyncio.Task[Any]] = set()
        self.closed: ChannelClosed | None = None

    async def run(self) -> ChannelClosed:
        """Serve the channel until it ends, and return why it ended."""
        writing = asyncio.ensure_future(self._write())
        try:
            while True:
                number, kind, message = pickle.loads(await self._transport.read())
                if kind in (_TELL, _ASK):
                    self.spawn(self._serve(number, kind, message))
                    continue
                waiting = self._waiting.pop(number, None)
                if waiting is None or waiting.done():
                    continue  # who asked has given up
                if kind == _REPLY:
                    waiting.set_result(message)
                else:
                    waiting.set_exception(message)
        except ChannelClosed as error:
            self._end(error)
            return error
        except asyncio.CancelledError:
            self._end(ChannelClosed("closed on this side"))
            raise
        except Exception as error:  # what came is not of our protocol version, or no message at all
            log.exception("a channel ends")
            reason = ChannelClosed(f"the other side sent what is not understood here: {error!r}")
            self._end(reason)
            return reason
        finally:
            writing.cancel()
            self._transport.abort()

    def spawn(self, work: Awaitable[Any]) -> None:
        """Run something as long as the channel lasts."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ask(self, message: Any) -> Any:
        """Send a message and return its reply. Raises ChannelClosed, or the BurlaError that the other side raised."""
        if self.closed:
            raise self.closed
        number = next(self._numbers)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(number, _ASK, message)
            return await reply
        finally:
            self._waiting.pop(number, None)

    async def tell(self, message: Any) -> None:
        """Send a message that has no reply. Raises ChannelClosed."""
        if self.closed:
            raise self.closed
        await self._send(0, _TELL, message)

    def post(self, message: Any) -> None:
        """Send a message that has no reply, without waiting for room; lost if the channel is closed."""
        self.post_packed(pack(message))

    def post_packed(self, data: bytes) -> None:
        """Do the same with a message that was packed once for many."""
        if not self.closed:
            self._out.put_nowait(data)

    def close(self) -> None:
        """End the channel from this side."""
        self._end(ChannelClosed("closed on this side"))
        self._transport.abort()

    async def _send(self, number: int, kind: int, message: Any) -> None:
        self._out.put_nowait(pickle.dumps((number, kind, message), 5))
        while self._out.qsize() > WAITING_FRAMES and not self.closed:
            self._room.clear()
            await self._room.wait()

    async def _serve(self, number: int, kind: int, message: Any) -> None:
        try:
            if self._handler is None:
                log.error("nobody handles %s here", type(message).__name__)
                raise BurlaError(f"nobody handles {type(message).__name__} here")
            reply, answer = await self._handler(message), _REPLY
        except BurlaError as error:
            reply, answer = error, _REFUSE
        except ChannelClosed:
            return
        except Exception as error:
            log.exception("handling %s", type(message).__name__)
            reply = BurlaError(f"burla failed at {type(message).__name__}: {error!r}. Please report this.")
            answer = _REFUSE
        if kind == _ASK and not self.closed:
            await self._send(number, answer, reply)

    async def _write(self) -> None:
        try:
            while True:
                frames = [await self._out.get()]
                size = len(frames[0])
                while size < JOINED_BYTES and not self._out.empty():
                    frames.append(self._out.get_nowait())
                    size += len(frames[-1])
                await self._transport.write(frames)
                self._room.set()
        except ChannelClosed:
            self._transport.abort()  # the reader says why

    def _end(self, reason: ChannelClosed) -> None:
        if self.closed is None:
            self.closed = reason
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self.closed)
        self._room.set()
        for task in list(self._tasks):
            task.cancel()
