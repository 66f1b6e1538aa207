"""The node's side of its children: the zygote that forks them, clean ones kept ready, messages, death."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import pickle
import secrets
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burla.channel import JOINED_BYTES
from burla.node import shared, zygote
from burla.node.cgroup import CallGroup, Cgroups
from burla.node.output import OutputPipe
from burla.protocol import STDERR, STDOUT, Output, Report

log = logging.getLogger(__name__)

_PACKAGE = str(Path(__file__).resolve().parents[2])
_numbers = itertools.count(1)  # of children; one of another zygote must not be taken for this one's

GRACE_S = 2.0  # between asking a call to end and ending its process
SOCKET_BYTES = 1 << 20
REFILL_S = 0.002  # after a child was taken: before, the fork would delay the call that it is for
FULL_S = 0.005  # the zygote has many requests to read first


class Child:
    """A child process: clean until it is given a job."""

    def __init__(self, number: int, nursery: Nursery):
        self.number = number
        # not to begin as a line ends: what could be a mark waits for the rest of it
        self.secret = b"\0" + secrets.token_bytes(zygote.SECRET_BYTES - 1)
        self.pid: int | None = None
        # its wait status; None: it was ended with the zygote, so by no call of its own
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        # nothing that its calls started lives any more; done too when the zygote is gone, which alone would know
        self.cleared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.peak_bytes = 0  # the most memory that it had, once it has ended
        self.group: CallGroup | None = None  # where the kernel keeps it within its limit
        self._nursery = nursery
        self._control, self._control_theirs = _socket_pair()
        self.nested, self._nested_theirs = _socket_pair()
        memory_fd = shared.create()
        out, self._out_theirs = os.pipe()
        err, self._err_theirs = os.pipe()
        self.for_child = (
            self._control_theirs.fileno(),
            self._nested_theirs.fileno(),
            memory_fd,
            self._out_theirs,
            self._err_theirs,
        )
        self._memory_fd = memory_fd
        self.memory = shared.attach(os.dup(memory_fd))
        self.memory[shared.INDEX] = -1
        self.memory[shared.LIMIT] = shared.NO_LIMIT
        self.on_output: Callable[[Output], None] = lambda output: None
        self.pipes: tuple[OutputPipe, ...] = tuple(
            OutputPipe(fd, stream, self.secret, self.memory, lambda output: self.on_output(output))
            for fd, stream in ((out, STDOUT), (err, STDERR))
        )
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def forked(self) -> None:
        """Close what is the child's own."""
        self._control_theirs.close()
        self._nested_theirs.close()
        os.close(self._memory_fd)
        os.close(self._out_theirs)
        os.close(self._err_theirs)

    def confine(self, cgroups: Cgroups, limit_bytes: int) -> None:
        """Have the kernel keep it within a limit of memory."""
        try:
            self.group = cgroups.group(limit_bytes)
        except OSError as error:
            log.warning("child %d has no cgroup; its memory is watched: %s", self.number, error)
        if self.pid is not None:
            self.started(self.pid)

    def started(self, pid: int) -> None:
        """It has this pid now."""
        self.pid = pid
        if self.group is not None:
            try:
                self.group.enclose(pid)
            except OSError as error:  # it may have ended
                log.warning("child %d is not in its cgroup; its memory is watched: %s", self.number, error)

    async def open(self) -> None:
        """Make the control socket and the output usable from the event loop."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._control, limit=SOCKET_BYTES)
        for pipe in self.pipes:
            pipe.start()

    def send(self, message: Any) -> None:
        """Write a message to the child; what it has no room for yet waits in this process."""
        assert self._writer is not None
        data = pickle.dumps(message, 5)
        header = struct.pack("<Q", len(data))
        if len(data) < JOINED_BYTES:
            self._writer.write(header + data)  # each write wakes the child
        else:
            self._writer.write(header)
            self._writer.write(data)

    async def receive(self) -> Any:
        """Return the child's next message, after all that its calls wrote before it; None: the child is gone."""
        assert self._reader is not None
        try:
            (size,) = struct.unpack("<Q", await self._reader.readexactly(8))
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return None
        message = pickle.loads(data)
        if isinstance(message, Report):
            for pipe in self.pipes:
                pipe.end_calls()  # there is no mark after what was written past Python and read at once
        else:
            self.drain()
        return message

    def drain(self) -> None:
        for pipe in self.pipes:
            pipe.drain()

    def pause_output(self) -> None:
        for pipe in self.pipes:
            pipe.pause()

    def resume_output(self) -> None:
        for pipe in self.pipes:
            pipe.start()

    def retire(self) -> None:
        """Let an idle child end by itself; it is ended if that takes long."""
        if self._writer is not None:
            self._writer.close()
        self._nursery.keep(self._end_after_grace())

    def kill(self) -> None:
        """End the child at once."""
        self._nursery.signal(self, signal.SIGKILL)

    def stop(self) -> None:
        """End the child and the call that it runs: as by Ctrl-C first, surely after `GRACE_S`."""
        self._nursery.signal(self, signal.SIGINT)
        self._nursery.keep(self._end_after_grace())

    async def _end_after_grace(self) -> None:
        done, _ = await asyncio.wait([self.ended], timeout=GRACE_S)
        if not done:
            self._nursery.signal(self, signal.SIGKILL)

    def close(self) -> None:
        """Free what this process holds of a child that ended."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._control.close()
        with contextlib.suppress(OSError):
            self.nested.close()
        if self.group is not None:
            self.group.close()
        for pipe in self.pipes:
            pipe.close()
        self.pipes = ()  # they know this object: without the cycle, the shared memory is freed now


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    ours.setblocking(False)
    return ours, theirs


@dataclass(frozen=True)
class Interpreter:
    """The Python of children; its own modules come before those in the folder `modules`, where ours are."""

    executable: str
    modules: str
    environ: Mapping[str, str]


class Nursery:
    """Keeps the zygote, and as many clean children ready as the node has slots. `interpreter` None: the node's own."""

    def __init__(self, ready: int, interpreter: Interpreter | None = None):
        self.niceness = 0  # of the zygote, so of all children
        self._ready_count = ready
        self._interpreter = interpreter
        self._ready: collections.deque[Child] = collections.deque()
        self._children: dict[int, Child] = {}
        self._uncleared: dict[int, Child] = {}  # they have ended, and may have left something that lives
        self._zygote: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: asyncio.StreamReader | None = None
        self._listening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forking = asyncio.Lock()
        self._closing = False

    async def start(self) -> None:
        """Start the zygote and the first clean children."""
        await self._start_zygote()
        await self._refill()

    async def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair()
        interpreter = self._interpreter
        executable = sys.executable if interpreter is None else interpreter.executable
        modules = _PACKAGE if interpreter is None else interpreter.modules
        # our own package is this one, whatever else is installed where the interpreter is
        later = "" if interpreter is None else "sys.path.append(sys.path.pop(0)); "
        code = (
            f"import sys; sys.path.insert(0, {modules!r}); import burla; {later}"
            f"from burla.node.zygote import main; main({theirs.fileno()}, {self.niceness})"
        )
        self._zygote = subprocess.Popen(
            [executable, "-P", "-c", code],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=None if interpreter is None else interpreter.environ,
        )
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._listening = asyncio.ensure_future(self._listen(ours))

    async def _listen(self, ours: socket.socket) -> None:
        loop, data = asyncio.get_running_loop(), b""
        with ours:
            while True:
                try:
                    got = await loop.sock_recv(ours, 4096)
                except OSError:
                    got = b""
                if not got:
                    break
                data += got
                while len(data) >= zygote.REPLY.size:
                    kind, number, value, peak_bytes = zygote.REPLY.unpack_from(data)
                    data = data[zygote.REPLY.size :]
                    self._heard(kind, number, value, peak_bytes)
        await self._zygote_ended()

    def _heard(self, kind: bytes, number: int, value: int, peak_bytes: int) -> None:
        if kind == zygote.CLEARED:
            self._uncleared.pop(number).cleared.set_result(None)
            return
        child = self._children.get(number)
        if child is None:
            return
        if kind == zygote.STARTED:
            child.started(value)
            return
        del self._children[number]
        self._uncleared[number] = child
        if child in self._ready:  # killed by somebody before it had a job
            self._ready.remove(child)
            child.close()
            self.keep(self._refill())
        child.peak_bytes = peak_bytes
        if not child.ended.done():
            child.ended.set_result(value)

    async def _zygote_ended(self) -> None:
        """The children ended with their parent (its signal at parent's death, else ours); start anew."""
        if self._zygote is not None:
            self._zygote.kill()
            await asyncio.to_thread(self._zygote.wait)
        for child in list(self._children.values()):
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._heard_lost(child)
        for child in self._uncleared.values():
            child.cleared.set_result(None)
        self._uncleared.clear()
        self._ready.clear()
        if not self._closing:
            log.warning("the zygote ended; starting another")
            await self._start_zygote()
            await self._refill()

    def _heard_lost(self, child: Child) -> None:
        self._children.pop(child.number, None)
        if not child.ended.done():
            child.ended.set_result(None)
        child.cleared.set_result(None)
        if child in self._ready:
            child.close()

    async def clean_child(self) -> Child:
        """Return a child that has run nothing yet; another is started in its place."""
        async with self._forking:
            child = self._ready.popleft() if self._ready else await self._fork()
        asyncio.get_running_loop().call_later(REFILL_S, lambda: self.keep(self._refill()))
        return child

    async def _refill(self) -> None:
        async with self._forking:
            while len(self._ready) < self._ready_count and not self._closing:
                self._ready.append(await self._fork())

    async def _fork(self) -> Child:
        child = Child(next(_numbers), self)
        self._children[child.number] = child
        request = zygote.REQUEST.pack(zygote.FORK, child.number, 0, child.secret)
        assert self._socket is not None
        while True:
            try:
                socket.send_fds(self._socket, [request], list(child.for_child))
                break
            except BlockingIOError:
                await asyncio.sleep(FULL_S)
            except OSError:
                log.warning("the zygote is gone at a fork")  # _zygote_ended resolves the child's end
                break
        child.forked()
        await child.open()
        return child

    def signal(self, child: Child, number: int) -> None:
        """Send a signal to a child's process group, if it still lives."""
        if child.number in self._children and self._socket is not None:
            with contextlib.suppress(OSError):  # the zygote is gone, and its children with it
                self._socket.send(zygote.REQUEST.pack(zygote.SIGNAL, child.number, number, b""))

    def keep(self, work: Any) -> None:
        """Run something in the background, as long as the nursery lasts."""
        if self._closing:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """End all children: the zygote does it when its socket closes."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._listening is not None:
            self._listening.cancel()
        if self._socket is not None:
            self._socket.close()
        if self._zygote is not None:
            try:
                self._zygote.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()
        for child in self._children.values():
            child.close()
        self._children.clear()
