"""The zygote: a clean, single-threaded process that forks children in a few milliseconds, and is their parent.

It never runs the user's code, so it always answers: when its node goes, it ends all children; when a child ends, it
ends what that child left behind (its process group, and the orphans it is the reaper of).

    node ──► fork: number, secret, 5 descriptors │ signal: number, signal
    node ◄── started: number, pid │ ended: number, wait status, most memory that it had
             cleared: number; nothing that it started lives any more
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path

from burla.node import child as child_module
from burla.node import stdio

SECRET_BYTES = 16
REQUEST = struct.Struct(f"<cQq{SECRET_BYTES}s")  # b"F" or b"S", number, signal, secret
REPLY = struct.Struct("<cQqQ")  # b"S", b"E" or b"C", number, pid or wait status, bytes
FORK, SIGNAL, STARTED, ENDED, CLEARED = b"F", b"S", b"S", b"E", b"C"
SESSION_TRIES, SESSION_AGAIN_S = 50, 0.05
UNBORN_STATUS = 71 << 8  # as of a process that exits with 71, EX_OSERR
NOBODY = 0  # no child has this number
CHILD_VARIABLE = "BURLA_CHILD"  # tells whose subprocess an orphan was
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Zygote:
    """The loop over requests of the node and deaths of children."""

    def __init__(self, node: socket.socket, niceness: int = 0):
        self._node = node
        self._niceness = niceness
        self._pids: dict[int, int] = {}  # number → pid
        self._ended: set[int] = set()  # children whose processes may not all be dead
        self._dying: dict[
            int, int
        ] = {}  # pid of an orphan that was ended → whose it was; asked later, it does not tell
        self._wake, wake_write = socket.socketpair()
        self._wake.setblocking(False)
        wake_write.setblocking(False)
        self._wake_write = wake_write
        signal.set_wakeup_fd(wake_write.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until the node is gone; then no child is left."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            while True:
                ready, _, _ = select.select([self._node, self._wake], [], [])
                if self._wake in ready:
                    self._wake.recv(4096)
                    self._reap()
                if self._node in ready and not self._serve():
                    return
        except (BrokenPipeError, ConnectionResetError):
            return  # the node is gone
        finally:
            for pid in self._pids.values():
                _kill_group(pid, signal.SIGKILL)

    def _serve(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._node, REQUEST.size, 5)
        if not data:
            return False
        while len(data) < REQUEST.size:
            data += self._node.recv(REQUEST.size - len(data))
        kind, number, signal_number, secret = REQUEST.unpack(data)
        if kind == FORK:
            self._fork(number, secret, fds)
        elif number in self._pids:
            _kill_group(self._pids[number], signal_number)
        return True

    def _fork(self, number: int, secret: bytes, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError:  # no room for a process: this child ends unborn, the others go on
            for fd in fds:
                os.close(fd)
            self._node.sendall(REPLY.pack(ENDED, number, UNBORN_STATUS, 0) + REPLY.pack(CLEARED, number, 0, 0))
            return
        if pid == 0:
            try:
                self._become_child(number, secret, fds)
            finally:
                os._exit(70)
        for fd in fds:
            os.close(fd)
        self._pids[number] = pid
        self._node.sendall(REPLY.pack(STARTED, number, pid, 0))

    def _become_child(self, number: int, secret: bytes, fds: list[int]) -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # no terminal, a process group of its own
        if self._niceness:
            _weigh_session(self._niceness)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._node.close()
        self._wake.close()
        self._wake_write.close()
        control, nested, memory, out, err = fds
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        for fd in (control, nested, memory):
            os.set_inheritable(fd, False)
        if sys.platform == "linux":  # short of memory, the kernel takes a call, not the node
            with contextlib.suppress(PermissionError):
                Path("/proc/self/oom_score_adj").write_text("500")
        child_module.child_main(control, nested, memory, secret)

    def _reap(self) -> None:
        for number, pid in list(self._pids.items()):
            if (
                sys.platform == "linux"
            ):  # look first: as long as the pid is not given back, its group is surely the child's
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                _kill_group(pid, signal.SIGKILL)
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                if sys.platform != "linux":
                    _kill_group(pid, signal.SIGKILL)
                del self._pids[number]
                self._ended.add(number)
                self._node.sendall(REPLY.pack(ENDED, number, status, usage.ru_maxrss * MAXRSS_BYTES))
        if sys.platform == "linux":
            while self._end_orphans():  # what those that ended had started was adopted meanwhile
                pass
        self._tell_cleared()

    def _end_orphans(self) -> bool:
        """End adopted processes whose child is gone; collect those that ended, and return whether there were any."""
        known = set(self._pids.values())
        try:
            pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        except FileNotFoundError:
            return False  # a kernel without it: what leaves its child's process group stays
        collected = False
        for text in pids:  # none is missed: only this process takes any off the list
            pid = int(text)
            if pid in known:
                continue
            with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self._dying.pop(pid, None)
                    collected = True
                elif pid not in self._dying and (owner := _owner(pid)) not in self._pids:
                    self._dying[pid] = owner
                    os.kill(pid, signal.SIGKILL)  # its end wakes us again, to collect it
        return collected

    def _tell_cleared(self) -> None:
        """Tell of children that have left nothing alive."""
        dying = set(self._dying.values())
        if NOBODY in dying:
            return  # whosever it was
        for number in self._ended - dying:
            self._ended.remove(number)
            self._node.sendall(REPLY.pack(CLEARED, number, 0, 0))


def _owner(pid: int) -> int:
    """Return the number of the child in whose environment a process was started, or NOBODY."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return NOBODY
    prefix = f"{CHILD_VARIABLE}=".encode()
    numbers = [entry[len(prefix) :] for entry in environ if entry.startswith(prefix)]
    return int(numbers[0]) if numbers and numbers[0].isdigit() else NOBODY


def _weigh_session(niceness: int) -> None:
    """Have Linux weigh this session by its niceness too: it weighs those against each other before processes."""
    for _ in range(SESSION_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:  # it takes one change of a plain user in a tenth of a second
            time.sleep(SESSION_AGAIN_S)
        except OSError:  # a kernel without it weighs processes alone
            return
        else:
            return


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)  # in the moment before it has its own group


def main(fd: int, niceness: int) -> None:
    """Run the zygote on a socket to its node."""
    if niceness:
        os.nice(niceness)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node = socket.socket(fileno=fd)
    node.set_inheritable(False)
    stdio.write_lines_at_once()
    Zygote(node, niceness).run()
