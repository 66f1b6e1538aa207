"""What a signal to the client does: calls stop with all that they started, and the next job works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from burla import remote_parallel_map
from tests.conftest import Home, Ledger, Scripts, cluster_processes, lives, process_kind, wait_until

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
STOPPED_S = 5  # promised: from the signal to the end of the calls
GONE_S = 15  # promised: from the end of a killed client to the end of its calls

# one line a call in the ledger: "running PID", and whatever else the call has to tell
LEDGER = """
import os, signal, subprocess, sys, time
from burla import remote_parallel_map

LEDGER = sys.argv[1]

def note(*words, path=LEDGER):
    import os
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)
"""
SLEEPERS = (
    LEDGER
    + """
def call(x):
    note("running", os.getpid())
    time.sleep(300)
"""
)


def pids(ledger: Ledger, word: str = "running") -> list[int]:
    """Return the pids that calls have noted after a word."""
    return [int(entry.split()[1]) for entry in ledger.entries() if entry.split()[0] == word]


def ended(numbers: list[int]) -> bool:
    """Whether none of these processes lives; each must have been noted, so that this can fail."""
    assert numbers
    return not any(map(lives, numbers))


def wait_for_calls(ledger: Ledger, count: int = 2, word: str = "running") -> list[int]:
    wait_until(lambda: len(pids(ledger, word)) >= count, 30, f"{count} times {word!r} in the ledger")
    return pids(ledger, word)


def test_each_signal_stops_the_calls_and_leaves_the_process_as_it_was(scripts: Scripts, ledger: Ledger):
    """One client, interrupted by each signal in turn: KeyboardInterrupt, own handlers, and the next job works."""
    script = scripts.start(
        LEDGER
        + """
def call(x):
    note("running", os.getpid())
    try:
        time.sleep(300)
    finally:
        note("cleaned", os.getpid())

def own(number, frame):
    print("own handler:", signal.Signals(number).name, flush=True)

for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    for one in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, one), own)
    try:
        remote_parallel_map(call, range(6))
    except KeyboardInterrupt as error:
        print("KeyboardInterrupt", flush=True)
    os.kill(os.getpid(), getattr(signal, name))
    print(remote_parallel_map(lambda x: x + 1, range(3)), flush=True)
""",
        str(ledger.path),
    )
    for count, name in enumerate(SIGNALS, 1):
        calls = wait_for_calls(ledger, 2 * count)
        script.send_signal(getattr(signal, name))
        sent = time.monotonic()
        assert script.stdout.readline() == "KeyboardInterrupt\n", name
        assert time.monotonic() - sent < STOPPED_S
        wait_until(partial(ended, calls), sent + STOPPED_S - time.monotonic(), "the end of the calls")
        assert set(calls) <= set(pids(ledger, "cleaned")), "the calls' `finally` blocks ran"
        assert script.stdout.readline() == f"own handler: {name}\n"
        assert script.stdout.readline() == "[1, 2, 3]\n"
    assert script.wait(30) == 0
    assert len(pids(ledger)) == 6, "no call started after the signal"
    assert script.stderr.read() == ""


@pytest.mark.local
def test_nothing_but_the_idle_cluster_is_left(scripts: Scripts, ledger: Ledger):
    script = scripts.start(SLEEPERS + "remote_parallel_map(call, range(6))", str(ledger.path))
    calls = wait_for_calls(ledger)
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) != 0

    def idle() -> bool:
        kinds = sorted(process_kind(process) for process in cluster_processes(os.environ))
        return kinds == ["child", "child", "head", "node", "supervisor", "zygote"]

    wait_until(idle, 15, "an idle cluster")
    assert not {process.pid for process in cluster_processes(os.environ)} & set(calls)


@pytest.mark.parametrize("ignores", ["signal.signal(signal.SIGINT, signal.SIG_IGN)", "catching = True"])
def test_a_call_that_ignores_the_interrupt_is_ended_anyway(scripts: Scripts, ledger: Ledger, ignores: str):
    script = scripts.start(
        LEDGER
        + f"""
def call(x):
    catching = False
    {ignores}
    note("running", os.getpid())
    while True:
        try:
            time.sleep(300)
        except KeyboardInterrupt:
            note("asked", os.getpid())
            if not catching:
                raise
remote_parallel_map(call, range(2))
""",
        str(ledger.path),
    )
    calls = wait_for_calls(ledger)
    script.send_signal(signal.SIGINT)
    wait_until(lambda: ended(calls), STOPPED_S, "the end of the calls")
    assert bool(pids(ledger, "asked")) == ("catching" in ignores)
    assert "KeyboardInterrupt" in script.communicate(timeout=30)[1]


SUBPROCESSES = """
def start(*command, **options):
    process = subprocess.Popen(command, **options)
    note("subprocess", process.pid)

def call(x):
    start("sleep", "301")
    start("sleep", "302", start_new_session=True)
    start("sleep", "303", start_new_session=True, env={})
    start(sys.executable, "-c", "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(304)")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(305)
        os._exit(0)
    note("subprocess", pid)
    note("running", os.getpid())
"""


def test_subprocesses_of_stopped_calls_end_too(scripts: Scripts, ledger: Ledger):
    """Also those in sessions of their own, with an empty environment, or deaf to the interrupt."""
    source = LEDGER + SUBPROCESSES + "    time.sleep(300)\nremote_parallel_map(call, range(2))"
    script = scripts.start(source, str(ledger.path))
    calls = wait_for_calls(ledger)
    subprocesses = pids(ledger, "subprocess")
    assert len(subprocesses) == 10 and not ended(subprocesses)
    script.send_signal(signal.SIGINT)
    wait_until(lambda: ended(calls + subprocesses), STOPPED_S, "the end of all subprocesses")


def test_subprocesses_that_calls_left_behind_end_with_the_job(scripts: Scripts, ledger: Ledger):
    source = LEDGER + SUBPROCESSES + "    return x\nprint(remote_parallel_map(call, range(2)))"
    assert scripts.run(source, str(ledger.path)).stdout == "[0, 1]\n"
    wait_until(lambda: ended(pids(ledger, "subprocess")), STOPPED_S, "the end of all subprocesses")


def test_a_process_that_a_call_put_into_the_background_lives_as_long_as_the_call(tmp_path: Path):
    def call(path: str) -> bool:
        import subprocess
        import sys
        import time
        from pathlib import Path

        code = f"import time; time.sleep(1); open({path!r}, 'w').close()"
        subprocess.run(["sh", "-c", '"$0" -c "$1" &', sys.executable, code], check=True)
        for _ in range(5):  # others that end meanwhile
            subprocess.run(["sh", "-c", "sleep 0.05 &"], check=True)
        until = time.monotonic() + 10
        while not Path(path).exists() and time.monotonic() < until:
            time.sleep(0.05)
        return Path(path).exists()

    assert remote_parallel_map(call, [str(tmp_path / "written")]) == [True]


def test_a_killed_client_has_its_calls_stopped(scripts: Scripts, ledger: Ledger):
    source = LEDGER + SUBPROCESSES + "    time.sleep(300)\nremote_parallel_map(call, range(6))"
    script = scripts.start(source, str(ledger.path))
    calls = wait_for_calls(ledger)
    script.kill()
    wait_until(lambda: ended(calls + pids(ledger, "subprocess")), GONE_S, "the end of the calls")
    assert pids(ledger) == calls, "no other call started meanwhile"


def test_a_signal_while_inputs_are_made_is_raised_and_nothing_runs(scripts: Scripts, ledger: Ledger):
    script = scripts.start(
        SLEEPERS
        + """
def inputs():
    yield 1
    print("waiting", flush=True)
    time.sleep(300)
try:
    remote_parallel_map(call, inputs())
except KeyboardInterrupt:
    print("KeyboardInterrupt", remote_parallel_map(abs, [-1]))
""",
        str(ledger.path),
    )
    assert script.stdout.readline() == "waiting\n"
    script.send_signal(signal.SIGTERM)
    assert script.communicate(timeout=30)[0] == "KeyboardInterrupt [1]\n"
    assert ledger.entries() == []


@pytest.mark.parametrize("generator", [False, True])
def test_a_signal_while_results_are_unpickled_is_raised(scripts: Scripts, ledger: Ledger, generator: bool):
    script = scripts.start(
        LEDGER
        + f"""
def slow():
    print("unpickling", flush=True)
    time.sleep(300)

class Slow:
    def __reduce__(self):
        return slow, ()

def call(x):
    note("running", os.getpid())
    if x:
        time.sleep(300)
    return Slow()
try:
    results = remote_parallel_map(call, range(2), generator={generator})
    next(results)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
    sys.stdin.read()
""",
        str(ledger.path),
        stdin=subprocess.PIPE,
    )
    assert script.stdout.readline() == "unpickling\n"
    calls = wait_for_calls(ledger)
    script.send_signal(signal.SIGTERM)
    assert script.stdout.readline() == "KeyboardInterrupt\n"
    wait_until(lambda: ended(calls), STOPPED_S, "the end of the calls")


def test_a_signal_during_the_start_of_the_cluster_leaves_a_cluster_that_works(own_home: Home, scripts: Scripts):
    script = scripts.start(
        """
        from burla import remote_parallel_map
        try:
            print(remote_parallel_map(abs, [-1]))
        except KeyboardInterrupt:
            print("KeyboardInterrupt", remote_parallel_map(abs, [-2]))
        """
    )
    wait_until(own_home.processes, 30, "a process of the cluster")
    script.send_signal(signal.SIGTERM)
    assert script.communicate(timeout=60)[0] == "KeyboardInterrupt [2]\n"


def test_handlers_are_the_users_again_after_success_and_failure_and_between_results():
    def fails(x: int) -> int:
        raise ValueError(x)

    def own(number: int, frame: object) -> None:
        pass

    numbers = [getattr(signal, name) for name in SIGNALS]
    before = {number: signal.signal(number, own) for number in numbers}
    try:
        assert remote_parallel_map(abs, [-1]) == [1]
        assert [signal.getsignal(number) for number in numbers] == [own] * 3
        with pytest.raises(ValueError, match="1"):
            remote_parallel_map(fails, [1])
        assert [signal.getsignal(number) for number in numbers] == [own] * 3
        results = remote_parallel_map(abs, [-1, -2], generator=True)
        assert next(results) in (1, 2)
        assert [signal.getsignal(number) for number in numbers] == [own] * 3
        results.close()
        assert [signal.getsignal(number) for number in numbers] == [own] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored(scripts: Scripts, ledger: Ledger):
    script = scripts.start(
        LEDGER
        + """
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does

def call(x):
    note("running", os.getpid())
    while not os.path.exists(x):
        time.sleep(0.02)
    return x
print(remote_parallel_map(call, sys.argv[2:]))
""",
        str(ledger.path),
        str(ledger.path.parent / "go"),
    )
    wait_for_calls(ledger, 1)
    script.send_signal(signal.SIGHUP)
    (ledger.path.parent / "go").touch()
    out, err = script.communicate(timeout=30)
    assert (out.count("go"), err, script.returncode) == (1, "", 0)


# a client that is away for a while ------------------------------------------------------------------------------------


class Wire:
    """A TCP relay between the clients and the head of a local cluster, which can be cut."""

    def __init__(self, home: Home):
        (self._ready,) = home.path.glob("clusters/*/ready.json")
        self._text = self._ready.read_text()
        match = re.search(r"tls://127\.0\.0\.1:(\d+)", self._text)
        assert match is not None
        self._head = int(match[1])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self.flows = threading.Event()
        self.flows.set()
        port = self._listener.getsockname()[1]
        text = self._text.replace(match[0], f"tls://127.0.0.1:{port}")
        self._ready.write_text(re.sub(r'"socket": "[^"]*"', '"socket": ""', text))  # no other way
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        return len(self._pairs) // 2

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            theirs = socket.create_connection(("127.0.0.1", self._head))
            self._pairs += [ours, theirs]
            for one, other in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.flows.wait()
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End the connections; new ones are possible."""
        for one in self._pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.flows.set()
        self.cut()
        self._ready.write_text(self._text)


@pytest.fixture
def wire(own_home: Home) -> Iterator[Wire]:
    from burla.client import current

    assert remote_parallel_map(abs, [-1]) == [1]
    current.forget()
    wire = Wire(own_home)
    yield wire
    current.forget()
    wire.close()


def test_a_client_whose_connection_breaks_again_and_again_misses_nothing(wire: Wire, capfd: pytest.CaptureFixture[str]):
    def call(x: int) -> int:
        import time

        time.sleep(0.02)
        print(x)
        return x

    results = remote_parallel_map(call, range(200), generator=True)
    seen: list[int] = []
    for result in results:
        seen.append(result)
        if len(seen) % 50 == 0:
            wire.cut()
    assert sorted(seen) == list(range(200))
    assert wire.connections >= 3
    assert sorted(map(int, capfd.readouterr().out.split())) == list(range(200))


AWAY_S = 10  # longer than the client's beats are apart, and than a client that has closed its connection may be away
COUNTING = (
    LEDGER
    + """
def call(x):
    note("running", os.getpid())
    time.sleep(0.1)
    print(x)
    return x
print("results", sum(remote_parallel_map(call, range(200))))
"""
)


@pytest.mark.slow
def test_a_suspended_client_catches_up(scripts: Scripts, ledger: Ledger):
    script = scripts.start(COUNTING, str(ledger.path))
    wait_for_calls(ledger)
    script.send_signal(signal.SIGSTOP)
    wait_for_calls(ledger, 100)  # the calls go on
    time.sleep(AWAY_S)
    script.send_signal(signal.SIGCONT)
    out, err = script.communicate(timeout=60)
    assert err == ""
    assert sorted(out.splitlines()) == sorted([*map(str, range(200)), f"results {sum(range(200))}"])
    assert len(ledger.entries()) == 200


@pytest.mark.slow
def test_a_client_that_is_cut_off_for_a_while_catches_up(wire: Wire, scripts: Scripts, ledger: Ledger):
    script = scripts.start(COUNTING, str(ledger.path))
    wait_for_calls(ledger)
    wire.flows.clear()
    wait_for_calls(ledger, 100)
    time.sleep(AWAY_S)
    wire.flows.set()
    out, err = script.communicate(timeout=60)
    assert err == ""
    assert sorted(out.splitlines()) == sorted([*map(str, range(200)), f"results {sum(range(200))}"])
    assert len(ledger.entries()) == 200


@pytest.mark.local
def test_the_terminals_interrupt_does_not_reach_the_cluster(scripts: Scripts, ledger: Ledger, tmp_path: Path):
    """Ctrl-C sends SIGINT to the whole foreground process group; the cluster is in a session of its own."""
    before = {process.pid for process in cluster_processes(os.environ) if process_kind(process) != "child"}
    script = scripts.start(SLEEPERS + "remote_parallel_map(call, range(6))", str(ledger.path), process_group=0)
    wait_for_calls(ledger)
    os.killpg(script.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in script.communicate(timeout=30)[1]
    after = {process.pid for process in cluster_processes(os.environ) if process_kind(process) != "child"}
    assert before <= after and len(after) == 4
