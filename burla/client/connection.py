"""A client's connection to a head: one stream, kept up by a thread of its own, found again after a break.

Everything asynchronous of a client lives in that thread; `ask` and `run` are the edge to the user's threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from burla import protocol
from burla.channel import Channel, ChannelClosed, CommTransport, StreamTransport, Transport
from burla.clusters import local
from burla.clusters.rpc import ask, connect
from burla.clusters.security import FOLDER, check_keys, load_security
from burla.clusters.supervisor import Ready
from burla.config import CLIENT_LEASE_S
from burla.errors import BurlaError, ClusterError, ClusterLost, UnknownJob
from burla.protocol import HEAD_KEY, PROTOCOL_VERSION, STREAM_OP, Beat, Delete, Goodbye, Hello, Welcome

log = logging.getLogger(__name__)

ANSWER_S = 5.0
CONNECT_S = 10.0
BEAT_S = 5.0
GOODBYE_S = 1.0
AGAIN_S = 0.2
POLL_S = 0.05
_T = TypeVar("_T")


class Target(Protocol):
    """Where a head is. `open` returns a new transport to it; `revive` does what can be done where none answers.

    `key` tells targets apart. `revive` raises ClusterLost if nothing can be done.
    """

    @property
    def key(self) -> str: ...
    async def open(self) -> Transport: ...
    async def revive(self) -> None: ...


class DaskTarget:
    """A head in a Dask scheduler that somebody else runs. `security`: as Dask has it; None: of the Dask config."""

    def __init__(self, address: str, security: Any):
        self.address = address
        self.security = security

    def scheduler_here(self) -> Any:
        """Return the scheduler if it runs in this process; None: elsewhere."""
        distributed = sys.modules.get("distributed")
        schedulers = () if distributed is None else list(distributed.Scheduler._instances)
        return next((one for one in schedulers if one.address == self.address), None)

    @property
    def key(self) -> str:
        return self.address

    async def open(self) -> Transport:
        comm = await connect(self.address, self.security, CONNECT_S)
        await comm.write({"op": STREAM_OP, "reply": False})
        return CommTransport(comm)

    async def revive(self) -> None:
        """Raise ClusterLost if another scheduler answers there, or it has lost our head: its jobs are lost too."""
        try:
            found = await ask(self.address, self.security, "get_metadata", ANSWER_S, keys=[HEAD_KEY], default=None)
        except OSError:
            return  # who runs it may yet bring it back
        if found is None:
            raise _started_again(self)


class LocalTarget:
    """The head of the local cluster, which may have another address after a crash."""

    def __init__(self) -> None:
        self._folder = local.folder()  # of now: a host name, or BURLA_HOME, may change
        check_keys(self._folder / FOLDER)

    @property
    def key(self) -> str:
        return str(self._folder)

    async def open(self) -> Transport:
        until = time.monotonic() + CONNECT_S
        reason = "the local cluster has ended"
        while True:
            ready = local.find(self._folder)
            if ready is not None:
                try:
                    return await self._reach(ready)
                except OSError as error:
                    reason = f"the head of the local cluster does not answer: {error}"
            if self.lost() or time.monotonic() > until:
                raise ChannelClosed(reason)
            await asyncio.sleep(POLL_S)  # the head is about to come back

    async def _reach(self, ready: Ready) -> Transport:
        if ready.socket:  # in a folder of this user alone, so it needs no keys; nor does this process need Dask
            return await StreamTransport.open(ready.socket)
        return await DaskTarget(ready.address, load_security(self._folder)).open()

    def lost(self) -> bool:
        """Whether no supervisor lives, which would start the head again."""
        return not local.is_up(self._folder)

    async def revive(self) -> None:
        """Start the cluster again if it has crashed as a whole: its store knows the jobs."""
        if self.lost() and self._folder == local.folder():
            await asyncio.to_thread(lambda: local.wait(local.start()))


class NestedTarget:
    """The head of the call that we are in, through its node: a child holds no keys."""

    def __init__(self, nested: protocol.Nested):
        if nested.pid != os.getpid():
            raise ClusterLost("a process that a call has forked cannot make calls itself: make them in the call")
        self._fd: int | None = nested.fd

    @property
    def key(self) -> str:
        return "nested"

    async def open(self) -> Transport:
        if self._fd is None:
            raise ChannelClosed("the node is gone")
        fd, self._fd = self._fd, None
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
        return StreamTransport(reader, writer)

    async def revive(self) -> None:
        raise ClusterLost("the node of this call has gone away")


class Connection:
    """See the module. Raises OSError if there is nobody at the target."""

    def __init__(self, target: Target):
        self.target = target
        self._welcome: Welcome | None = None
        self._session = secrets.token_hex(8)
        self._channel: Channel | None = None
        self._connecting: asyncio.Task[Channel] | None = None
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="burla-client", daemon=True)
        self._thread.start()
        try:
            self.run(self._connected())
        except BaseException:
            self.close()
            raise

    @property
    def welcome(self) -> Welcome:
        """What the head said when this connection was made, or made anew."""
        assert self._welcome is not None
        return self._welcome

    def check_same(self, other: Connection) -> None:
        """Raise ClusterLost if another one, to the same target, is to a scheduler that came after this one's."""
        if self.welcome.scheduler != other.welcome.scheduler:
            raise _started_again(self.target)

    def found_again(self) -> bool:
        """Return whether the stream is up, after a break made anew: jobs of other threads may wait on it."""
        if not self.alive:
            try:
                self.run(self._connected())
            except (OSError, ClusterError):
                return False
        return not self.welcome.closing

    @property
    def alive(self) -> bool:
        """Whether this process made it, and its stream is up."""
        return self._pid == os.getpid() and self._channel is not None and self._channel.closed is None

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the connection's thread, and wait for it here."""
        try:
            return self.begin(work).result()
        except concurrent.futures.CancelledError:
            raise ClusterLost("this process has left the cluster") from None

    def begin(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Run a coroutine in the connection's thread.

        Raises ClusterLost if the connection was closed here, or belongs to the process that this one was forked from.
        """
        try:
            self.check_process()
        except ClusterLost:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def check_process(self) -> None:
        """Raise ClusterLost if this process has no such connection any more."""
        if self._pid != os.getpid():
            raise ClusterLost("this job is of the process that this one was forked from; make a call of your own here")
        if self._loop.is_closed():
            raise ClusterLost("this process has left the cluster")

    def ask(self, message: Any) -> Any:
        """Ask the head once. Raises ClusterLost, or the error with which it refused."""
        return self.run(self.ask_once(message))

    async def ask_once(self, message: Any) -> Any:
        try:
            return await (await self._connected()).ask(message)
        except OSError as error:
            raise ClusterLost(f"the cluster went away: {error}") from error

    async def ask_again(self, message: Any) -> Any:
        """Ask the head something that may be asked twice; find it again after a break."""
        until = self._loop.time() + CLIENT_LEASE_S
        again = False
        while True:
            try:
                return await (await self._connected()).ask(message)
            except UnknownJob:
                if again and isinstance(message, Delete):
                    return None  # it was deleted before the break
                raise
            except OSError as error:
                again = True
                if self._loop.time() > until:
                    raise ClusterLost(f"the cluster went away: {error}") from error
                log.info("looking for the cluster again: %s", error)
                await self.target.revive()
                await asyncio.sleep(AGAIN_S)

    async def tell(self, message: Any) -> None:
        """Tell the head something; one that is gone needs to know nothing."""
        if self._channel is not None:
            self._channel.post(message)

    async def _connected(self) -> Channel:
        if self._channel is not None and self._channel.closed is None:
            return self._channel
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Channel:
        channel = Channel(await self.target.open())
        self._serving = asyncio.ensure_future(channel.run())
        welcome = await channel.ask(Hello(self._session))
        if self._welcome is not None and welcome.scheduler != self._welcome.scheduler:
            channel.close()
            raise _started_again(self.target)
        self._welcome = welcome
        if self.welcome.version != PROTOCOL_VERSION:
            channel.close()
            raise ClusterError(
                f"the cluster speaks version {self.welcome.version} of burla's messages, this process "
                f"{PROTOCOL_VERSION}. Install the same version of burla on both."
            )
        channel.spawn(self._beat(channel))
        self._channel = channel
        return channel

    async def _beat(self, channel: Channel) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            channel.post(Beat())

    def close(self) -> None:
        """End the stream and the thread."""
        if self._pid != os.getpid() or self._loop.is_closed():
            return
        if self.alive:
            with contextlib.suppress(BurlaError, TimeoutError):  # what it would end is ended already, or soon
                self.begin(self.ask_once(Goodbye())).result(GOODBYE_S)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(timeout=5)
        with contextlib.suppress(RuntimeError):  # the thread did not end in time: it is a daemon
            self._loop.close()

    async def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:  # else the threads that wait for them would wait for ever
            await asyncio.wait(others, timeout=1)
        self._loop.call_soon(self._loop.stop)


def _started_again(target: Target) -> ClusterLost:
    return ClusterLost(
        f"the scheduler {target.key} was started again, and had kept its jobs in its own process: they are lost"
    )
