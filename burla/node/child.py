"""A child: runs calls of one job, one at a time. Imports almost nothing; the user's code decides what else it loads.

The node writes `Prepare`, then one `Run` after another to the control socket; each `Run` is answered by a `Report`,
when `TIME_BOX_S` is over and the call that runs then is done. Descriptors 1 and 2 are pipes to the node. After a call
that wrote something the child writes a mark (a secret of this child, then the input's index) into that pipe, so that
the node knows whose output it was without a message per call.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import fcntl
import functools
import io
import os
import pickle
import signal
import struct
import sys
import termios
import threading
import time
import types
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from burla import protocol, serialize
from burla.errors import BurlaError
from burla.node import elsewhere, shared, stdio
from burla.protocol import (
    STDERR,
    STDOUT,
    TIME_BOX_S,
    CallContext,
    Early,
    Failure,
    Piece,
    Prepare,
    Report,
    Results,
    Run,
    Variables,
)

# from here on, asking the kernel whether C code or a subprocess wrote costs nothing to speak of
SLOW_CALL_NS = 1_000_000
LONG_CALL_NS = int(TIME_BOX_S * 1e9)  # a call that runs for longer does not hold back the results of those before it
REPORT_BYTES = 1_000_000  # a report is sent early when it holds this much


class Stopped(KeyboardInterrupt):
    """The node ends this call: its job is over. To the call it looks like Ctrl-C, so its clean-up runs."""


class Stream(io.TextIOWrapper):
    """sys.stdout or sys.stderr of calls: whole lines go to the pipe at once, and it knows whether it was written to."""

    def __init__(self, fd: int):
        super().__init__(
            io.BufferedWriter(io.FileIO(fd, "w", closefd=False), 65536),
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        self.written = False

    def write(self, text: str, /) -> int:
        self.written = True
        return super().write(text)

    def close(self) -> None:
        """Write what is left; the next call needs the stream."""
        self.flush()


class Surroundings:
    """Working directory, environment and standard streams, put back after a call that changed them.

    The functions of `os` through which Python changes the first two are wrapped to note that they were used: comparing
    them after each of a million calls would cost more than the calls.
    """

    def __init__(self, streams: tuple[Stream, Stream]):
        self._streams = streams
        self._environ: dict[str, str] = {}
        self._cwd = -1
        self.changed = self.forked = False
        os.register_at_fork(after_in_child=self._note_fork)
        for name in ("chdir", "fchdir", "putenv", "unsetenv"):
            setattr(os, name, self._noting(getattr(os, name)))

    def become(self, prepare: Prepare) -> None:
        """Make them those of a job. Raises OSError: there is no such working directory."""
        os.environ.clear()
        os.environ.update(prepare.context.environ)
        os.environ.update(prepare.environ.values)
        os.chdir(prepare.context.cwd)
        own = [entry for entry in sys.path if entry not in prepare.context.sys_path]
        sys.path[:] = [*prepare.context.sys_path, *own]  # on another machine the caller's folders may be missing
        if prepare.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, prepare.cpus)
        self._environ = dict(os.environ)
        if self._cwd >= 0:
            os.close(self._cwd)
        self._cwd = os.open(".", os.O_RDONLY)  # found again even if it is renamed
        self.changed = False

    def _note_fork(self) -> None:
        self.changed = self.forked = True

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            self.changed = True
            return function(*args)

        return noting

    def restore_streams(self) -> None:
        sys.stdout, sys.stderr = self._streams

    def restore(self) -> None:
        os.environ.clear()
        os.environ.update(self._environ)
        os.fchdir(self._cwd)
        self.changed = False


class Marks:
    """Tells the node, in the pipes themselves, which call wrote what stands before."""

    def __init__(self, secret: bytes, streams: tuple[Stream, Stream]):
        self._secret = secret
        self._streams = streams
        self._pipes = os.dup(STDOUT), os.dup(STDERR)  # a call may redirect 1 and 2
        self._count = array.array("i", [0])

    def _unread(self, pipe: int) -> bool:
        fcntl.ioctl(pipe, termios.FIONREAD, self._count)
        return self._count[0] > 0

    def after(self, index: int) -> None:
        """Mark what call `index` wrote, if it did: through Python surely, past Python if nobody has read it yet."""
        stdio.flush()
        for stream, pipe in zip(self._streams, self._pipes, strict=True):
            stream.flush()  # what was written to its `buffer` too
            if stream.written or self._unread(pipe):
                os.write(pipe, self._secret + struct.pack("<q", index))
                stream.written = False


class Caller:
    """Runs calls and collects what becomes of them."""

    def __init__(self, secret: bytes, memory: memoryview, send: Callable[[Any], None]):
        self._send = send
        self._streams = streams = Stream(STDOUT), Stream(STDERR)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = streams
        self._surroundings = Surroundings(streams)
        self._marks = Marks(secret, streams)
        self._memory = memory
        self._pickled = b""
        self._elsewhere = False
        self._function: Callable[..., Any] | None = None
        self._loop: asyncio.Runner | None = None
        self._block: list[Any] = []
        self._definitions: serialize.Definitions = {}  # of classes in results
        self._results: list[Results] = []  # of this Run
        self._packer = serialize.ResultPacker()
        # Another thread may take results while the user's function runs: it says that it does, then looks whether it
        # may; who comes back from the function says so, then looks whether it does. A lock would cost each call more.
        self._calling = self._taking = False
        self._taken = threading.Lock()
        self._reporting = False
        self._running = threading.Event()

    def prepare(self, prepare: Prepare) -> None:
        """Become a child of a job. Raises OSError: there is no such working directory."""
        self._surroundings.become(prepare)
        self._pickled, self._function = prepare.function, None
        self._elsewhere = prepare.elsewhere
        self._block, self._definitions = [], {}

    def rehearse(self) -> None:
        """Do once all that the first call will: memory shared with the zygote is copied when it is first written."""
        context = CallContext("/", dict(os.environ), tuple(sys.path))
        self.prepare(pickle.loads(pickle.dumps(Prepare("", 0, context, Variables({}), (), pickle.dumps(abs, 5)), 5)))
        pickle.dumps(self.run((Piece(0, False, pickle.dumps([0, 0], 5), 0, 2),)), 5)

    def run(self, pieces: tuple[Piece, ...]) -> Report:
        """Run calls until the time box or the limit ends; never raises what a call raises."""
        memory, surroundings, now = self._memory, self._surroundings, time.monotonic_ns
        out, err = self._streams
        began = since = now()
        end = began + int(TIME_BOX_S * 1e9)
        position, full = 0, False
        results = self._results = []
        failures: list[Failure] = []
        if sum(piece.stop - piece.start for piece in pieces) > 1:
            self._expect_long_calls()
        for piece in pieces:
            if piece.payload is not None:
                self._block = serialize.load_block(piece.payload)
            values, each, first = self._block, piece.each, piece.first
            packer = self._packer = serialize.ResultPacker(piece.start, self._definitions)
            for index in range(piece.start, piece.stop):
                memory[shared.POSITION] = position
                full = position >= memory[shared.LIMIT] or since > end or packer.size_bytes > REPORT_BYTES
                if full:
                    break
                memory[shared.STARTED_NS] = since
                memory[shared.INDEX] = index
                value = None
                try:
                    value = serialize.load_value(values[index - first]) if each else values[index - first]
                    function = self._load() if self._function is None else self._function
                    self._calling = True
                    try:
                        result = function(*value) if type(value) is tuple else function(value)
                        if type(result) is types.CoroutineType:
                            result = self._await(result)
                    finally:
                        self._calling = False
                        if self._taking:
                            self._taken.acquire()
                            self._taken.release()
                    packer.add(result)
                    result = None
                except Stopped:
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever a call raises belongs to the caller
                    failures.append(self._failure(error, index, value))
                    _pack(packer, results)
                    packer.first = index + 1
                    end = 0  # the job stops: report it now, and run no more
                if surroundings.changed:
                    if surroundings.forked:
                        os._exit(0)  # a call forked, and the copy came back from it too
                    surroundings.restore()
                position += 1
                until = now()
                if out.written or err.written or until - since > SLOW_CALL_NS:
                    self._marks.after(index)
                since = until
                if sys.stdout is not out or sys.stderr is not err:
                    surroundings.restore_streams()
            _pack(packer, results)
            if full:
                break
        self._marks.after(memory[shared.INDEX])
        memory[shared.INDEX] = -1
        self._running.clear()
        return Report(tuple(results), tuple(failures), position, (time.monotonic_ns() - began) / 1e9)

    def _expect_long_calls(self) -> None:
        """From now on a thread looks whether one of many calls takes long; where each is long, none is needed."""
        self._running.set()
        if not self._reporting:
            self._reporting = True
            # the thread is ours, and no reason to warn a call that forks (Python 3.12 does, on stderr)
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            threading.Thread(target=self._report_early, name="burla-results", daemon=True).start()

    def _report_early(self) -> None:
        while True:
            self._running.wait()
            time.sleep(TIME_BOX_S)
            if time.monotonic_ns() - self._memory[shared.STARTED_NS] > LONG_CALL_NS:
                with self._taken:
                    self._taking = True
                    try:
                        self._take_early()
                    finally:
                        self._taking = False

    def _take_early(self) -> None:
        if self._calling:
            _pack(self._packer, self._results)
            if self._results:
                self._send(Early(tuple(self._results)))
                self._results.clear()

    def _load(self) -> Callable[..., Any]:
        self._function = serialize.load_function(self._pickled)
        self._pickled = b""
        return self._function

    def _await(self, coroutine: Any) -> Any:
        # one loop for all calls: what a call keeps open (sessions, pools) stays usable in the next
        if self._loop is None:
            self._loop = asyncio.Runner()
        return self._loop.run(coroutine)

    def _failure(self, error: BaseException, index: int, value: Any) -> Failure:
        function = self._function
        if self._elsewhere:
            elsewhere.mark(error)
        if type(error) is TypeError and function is not None and _raised_here(error):
            error = serialize.argument_mismatch(function, value, index) or error
        machinery = (__file__, asyncio.runners.__file__, *getattr(function, "machinery_files", ()))
        return Failure(index, serialize.dump_exception(error, index, strip_files=machinery))


def _raised_here(error: BaseException) -> bool:
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def _pack(packer: serialize.ResultPacker, results: list[Results]) -> None:
    if packer:
        start = packer.first
        each, payload = packer.pack()
        results.append(Results(start, packer.first, each, payload))


def child_main(control_fd: int, nested_fd: int, memory_fd: int, secret: bytes) -> None:
    """Serve the node until it closes the control socket. Descriptors 0, 1 and 2 are already in place."""
    memory = shared.attach(memory_fd)
    stream = os.fdopen(control_fd, "r+b", buffering=0)
    reader = io.BufferedReader(stream, 1 << 20)  # pyright: ignore[reportArgumentType]
    main = types.ModuleType("__main__")  # the user's functions bring their own globals
    sys.modules["__main__"] = main
    sys.argv = [""]
    signal.signal(signal.SIGINT, _stop)
    try:
        caller, broken = Caller(secret, memory, functools.partial(_send, stream)), None
        caller.rehearse()
        prepare = _receive(reader)
        if prepare is None:
            return
        if prepare.absent:
            sys.meta_path.append(elsewhere.Absent(prepare.absent))
        protocol.nested = protocol.Nested(nested_fd, prepare.job, prepare.depth, os.getpid(), prepare.inherited)
        try:
            caller.prepare(prepare)
        except OSError as error:
            broken = _unprepared(prepare, error)
        while (run := _receive(reader)) is not None:
            assert isinstance(run, Run)
            if broken is None:
                _send(stream, caller.run(run.pieces))
            else:
                index = run.pieces[0].start
                failure = Failure(index, serialize.dump_exception(broken, index, strip_files=(__file__,)))
                _send(stream, Report((), (failure,), 1, 0.0))
    except Stopped:
        pass
    finally:
        _end()


def _unprepared(prepare: Prepare, error: OSError) -> BurlaError:
    return BurlaError(
        f"the call could not be given its working directory {prepare.context.cwd!r}: {error}. "
        "Change to a folder that exists on the node."
    )


def _stop(number: int, frame: object) -> None:
    raise Stopped


def _receive(reader: BinaryIO) -> Any:
    header = reader.read(8)
    if len(header) < 8:
        return None  # the node is gone, or needs this child no longer
    return pickle.loads(reader.read(struct.unpack("<Q", header)[0]))


def _send(stream: BinaryIO, message: Any) -> None:
    data = pickle.dumps(message, 5)
    view = memoryview(struct.pack("<Q", len(data)) + data)
    while view:
        view = view[stream.write(view) :]


def _end() -> None:
    """Let the user's exit handlers run, then go without waiting for threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threading.current_thread() is threading.main_thread():
        atexit._run_exitfuncs()
    os._exit(0)
