"""Where a call may be made: scripts, `python -c`, stdin, a REPL, threads, processes, event loops, notebooks, calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from burla import remote_parallel_map
from tests.conftest import Ledger, Scripts, cluster_processes, process_kind, wait_until

PROGRAM = """
from burla import remote_parallel_map
def double(x):
    print("call", x)
    return Wrapped(2 * x)
class Wrapped:
    def __init__(self, x):
        self.x = x
print([one.x for one in remote_parallel_map(double, [1, 2, 3])])
"""


def right(out: str) -> bool:
    return sorted(out.splitlines()) == ["[2, 4, 6]", "call 1", "call 2", "call 3"]


def test_a_script_without_a_main_guard(scripts: Scripts):
    done = scripts.run(PROGRAM)
    assert right(done.stdout) and done.stderr == ""


def test_python_c():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert right(done.stdout) and done.stderr == ""


def test_a_program_on_stdin():
    """Calls have a stdin of their own, which is at its end: they do not eat the program."""
    program = PROGRAM + "\nimport sys\nprint(remote_parallel_map(lambda x: sys.stdin.read(), [0]))\n"
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    assert right(done.stdout.replace("['']\n", "")) and "['']\n" in done.stdout and done.stderr == ""


def test_a_module_run_with_python_m(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert right(done.stdout) and done.stderr == ""


# an interactive session -----------------------------------------------------------------------------------------------

# opens its terminal as its controlling one, which makes Ctrl-C a signal
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A Python session on a pseudo-terminal."""

    def __init__(self, *arguments: str):
        self._fd, theirs = os.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\x00\xa0\x00\x00\x00\x00\x00")
        environ = os.environ | {"TERM": "dumb", "PYTHON_BASIC_REPL": "1", "PYTHONSTARTUP": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_A_TERMINAL, sys.executable, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environ,
        )
        os.close(theirs)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read_until(self, pattern: str, timeout_s: float = 30) -> str:
        """Return what the terminal shows from the last reading on, as soon as a pattern is in it."""
        until = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < until, f"{pattern!r} did not come: {self.text!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text += os.read(self._fd, 65536).decode(errors="replace").replace("\r\n", "\n")
        shown, self.text = self.text[: found.end()], self.text[found.end() :]
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def repl() -> Iterator[Terminal]:
    terminal = Terminal("-q", "-i")
    yield terminal
    terminal.close()


def test_an_interactive_session_and_its_ctrl_c(repl: Terminal, ledger: Ledger):
    repl.read_until(">>> ")
    repl.type("from burla import remote_parallel_map\n")
    repl.read_until(">>> ")
    repl.type("def double(x):\n    print('call', x)\n    return 2 * x\n\n")
    repl.read_until(">>> ")
    repl.type("remote_parallel_map(double, [1, 2, 3], spinner=False)\n")
    shown = repl.read_until(r"\[2, 4, 6\]\n>>> ")
    assert all(f"call {x}\n" in shown for x in (1, 2, 3))
    before = {process.pid for process in cluster_processes(os.environ) if process_kind(process) != "child"}

    repl.type(f"def waits(x):\n    open({str(ledger.path)!r}, 'a').write('x\\n')\n    import time; time.sleep(300)\n\n")
    repl.read_until(">>> ")
    repl.type("remote_parallel_map(waits, [1])\n")
    wait_until(ledger.entries, what="a call")
    repl.type("\x03")
    assert "KeyboardInterrupt" in repl.read_until(r"KeyboardInterrupt[^\n]*\n>>> ")
    repl.type("remote_parallel_map(double, [21], spinner=False)\n")
    repl.read_until(r"\[42\]\n>>> ")
    after = {process.pid for process in cluster_processes(os.environ) if process_kind(process) != "child"}
    assert before <= after, "the cluster is the same"


# at the same time -----------------------------------------------------------------------------------------------------


def test_threads_of_one_process_call_at_the_same_time(ledger: Ledger):
    """Jobs of two calls each, all of which must run at once for the first of each to end: no job waits for another."""
    write, path = ledger.writer(), ledger.path

    def job(tag: int) -> list[tuple[int, int]]:
        def call(x: int) -> tuple[int, int]:
            import time
            from pathlib import Path

            write(tag)
            until = time.monotonic() + 30
            while len(set(Path(path).read_text().split())) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            return tag, x

        return remote_parallel_map(call, range(10), max_parallelism=1)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(job, range(4)))
    assert results == [[(tag, x) for x in range(10)] for tag in range(4)]


def test_a_thread_that_fails_does_not_disturb_another():
    def job(tag: int) -> list[int]:
        def call(x: int) -> int:
            import time

            time.sleep(0.02)
            if tag and x == 3:
                raise ValueError(f"tag {tag}")
            return x

        return remote_parallel_map(call, range(20))

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        good, bad = threads.submit(job, 0), threads.submit(job, 1)
        assert good.result() == list(range(20))
        with pytest.raises(ValueError, match="tag 1"):
            bad.result()


def test_two_processes_at_once_are_never_mixed(scripts: Scripts):
    source = """
        import os, sys, time
        from burla import remote_parallel_map
        tag = sys.argv[1]
        def call(x):
            time.sleep(0.002)
            print(tag, "out")
            print(tag, "err", file=sys.stderr)
            os.environ["TAG"] = tag
            return tag, x, os.getpid()
        results = remote_parallel_map(call, range(300), spinner=False)
        assert [(one[0], one[1]) for one in results] == [(tag, x) for x in range(300)]
        print(*{one[2] for one in results})
        """
    both = {tag: scripts.start(source, tag, name=f"{tag}.py") for tag in ("left", "right")}
    pids = {}
    for tag, script in both.items():
        out, err = script.communicate(timeout=60)
        *lines, last = out.splitlines()
        assert lines == [f"{tag} out"] * 300
        assert err.splitlines() == [f"{tag} err"] * 300
        pids[tag] = set(last.split())
    assert not pids["left"] & pids["right"], "no child serves two jobs"


def test_a_running_event_loop(scripts: Scripts):
    """A call blocks the loop that it is made in, as any function does; in a thread it does not."""
    done = scripts.run(
        """
        import asyncio, time
        from burla import remote_parallel_map

        async def double(x):
            await asyncio.sleep(0.01)
            return 2 * x

        async def main():
            print(remote_parallel_map(double, [1, 2]))
            print(list(remote_parallel_map(double, [3], generator=True)))
            print(await asyncio.gather(*(asyncio.to_thread(remote_parallel_map, double, [x]) for x in (4, 5))))
            beats = 0
            job = asyncio.ensure_future(asyncio.to_thread(remote_parallel_map, lambda x: time.sleep(0.5), [1]))
            while not job.done():
                await asyncio.sleep(0.01)
                beats += 1
            print(beats > 10)

        asyncio.run(main())
        """
    )
    assert done.stdout == "[2, 4]\n[6]\n[[8], [10]]\nTrue\n" and done.stderr == ""


# notebooks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """A Jupyter kernel that runs one cell after another."""
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=60, kernel_name="python3")
    with client.setup_kernel():
        yield client


def run_cell(client: NotebookClient, source: str) -> list[nbformat.NotebookNode]:
    """Return the outputs of a new cell."""
    cell = nbformat.v4.new_code_cell(source)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    return cell.outputs


def text_of(outputs: list[nbformat.NotebookNode], stream: str) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == stream)


def test_a_notebook_runs_functions_of_its_cells_and_shows_their_prints(kernel: NotebookClient):
    run_cell(kernel, "import sys\nfrom burla import remote_parallel_map\nfactor = 2\ndef scale(x): return factor * x")
    outputs = run_cell(
        kernel,
        """
def call(x):
    print("call", x)
    print("warn", x, file=sys.stderr)
    return scale(x)
remote_parallel_map(call, range(3), spinner=False)
""",
    )
    assert sorted(text_of(outputs, "stdout").splitlines()) == ["call 0", "call 1", "call 2"]
    assert sorted(text_of(outputs, "stderr").splitlines()) == ["warn 0", "warn 1", "warn 2"]
    (result,) = (output for output in outputs if output.output_type == "execute_result")
    assert result.data["text/plain"] == "[0, 2, 4]"
    run_cell(kernel, "factor = 10")
    assert run_cell(kernel, "remote_parallel_map(call, [4], spinner=False)[0]")[-1].data["text/plain"] == "40"


def test_an_exception_in_a_notebook_is_that_of_the_call(kernel: NotebookClient):
    run_cell(kernel, "class Mine(Exception): pass\ndef bad(x):\n    raise Mine(x)")
    with pytest.raises(CellExecutionError) as raised:
        run_cell(kernel, "from burla import remote_parallel_map\nremote_parallel_map(bad, [7])")
    assert (raised.value.ename, raised.value.evalue) == ("Mine", "7")
    caught = "try:\n    remote_parallel_map(bad, [7])\nexcept Mine as error:\n    print(error.burla_input_index)"
    assert text_of(run_cell(kernel, caught), "stdout") == "0\n"


def test_a_notebook_can_await_beside_a_job(kernel: NotebookClient):
    outputs = run_cell(
        kernel,
        "import asyncio\nfrom burla import remote_parallel_map\n"
        "print(await asyncio.gather(asyncio.to_thread(remote_parallel_map, abs, [-1]), asyncio.sleep(0.01, 'slept')))\n"
        "async def twice(x): return 2 * x\nprint(remote_parallel_map(twice, [3]))",
    )
    assert text_of(outputs, "stdout") == "[[1], 'slept']\n[6]\n"


def test_an_interrupted_cell_stops_its_calls(kernel: NotebookClient, ledger: Ledger):
    source = f"""
import os, time
from burla import remote_parallel_map
def call(x):
    with open({str(ledger.path)!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep(300)
remote_parallel_map(call, range(3))
"""
    cell = nbformat.v4.new_code_cell(source)
    kernel.nb.cells.append(cell)

    async def interrupt() -> None:
        until = time.monotonic() + 30
        while len(ledger.entries()) < 2 and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await asyncio.ensure_future(_interrupt_kernel(kernel))

    async def both() -> None:
        executing = asyncio.ensure_future(kernel.async_execute_cell(cell, len(kernel.nb.cells) - 1))
        await interrupt()
        with pytest.raises(CellExecutionError) as raised:
            await executing
        assert raised.value.ename == "KeyboardInterrupt"

    from nbclient.util import run_sync

    run_sync(both)()
    wait_until(lambda: not any(map(psutil.pid_exists, map(int, ledger.entries()))), 5, "the end of the calls")
    assert len(ledger.entries()) == 2
    assert run_cell(kernel, "remote_parallel_map(abs, [-1])[0]")[-1].data["text/plain"] == "1"


async def _interrupt_kernel(client: NotebookClient) -> None:
    assert client.km is not None
    result = client.km.interrupt_kernel()
    if asyncio.iscoroutine(result) or asyncio.isfuture(result):
        await result


# calls within calls ---------------------------------------------------------------------------------------------------


def test_nested_calls_make_progress_on_a_full_cluster():
    """Two levels below, with every slot of the cluster taken by a call that waits."""

    def outer(x: int) -> int:
        from burla import remote_parallel_map

        def middle(y: int) -> int:
            from burla import remote_parallel_map

            return sum(remote_parallel_map(lambda z: z + 1, [y, y]))

        return sum(remote_parallel_map(middle, [x, x, x]))

    assert remote_parallel_map(outer, range(4)) == [3 * 2 * (x + 1) for x in range(4)]


def test_what_nested_calls_print_arrives_here(scripts: Scripts):
    done = scripts.run(
        """
        import sys
        from burla import remote_parallel_map
        def inner(y):
            print("inner", y)
            print("warn", y, file=sys.stderr)
        def outer(x):
            remote_parallel_map(inner, [10 * x, 10 * x + 1])
            print("outer", x)
        remote_parallel_map(outer, [1, 2])
        """
    )
    assert sorted(done.stdout.splitlines()) == ["inner 10", "inner 11", "inner 20", "inner 21", "outer 1", "outer 2"]
    assert sorted(done.stderr.splitlines()) == ["warn 10", "warn 11", "warn 20", "warn 21"]


def test_an_exception_of_a_nested_call_can_be_caught_in_the_call_or_here():
    def outer(catch: bool) -> object:
        from burla import remote_parallel_map

        def inner(y: int) -> int:
            if y == 2:
                raise KeyError("inner", y)
            return y

        try:
            return remote_parallel_map(inner, [0, 1, 2])
        except KeyError as error:
            if not catch:
                raise
            return error.args, error.burla_input_index  # pyright: ignore[reportAttributeAccessIssue]

    assert remote_parallel_map(outer, [True]) == [(("inner", 2), 2)]
    with pytest.raises(KeyError) as raised:
        remote_parallel_map(outer, [True, False])
    assert raised.value.args == ("inner", 2)
    assert raised.value.burla_input_index == 1, "of the call that was made here"


def test_results_of_nested_generators_come_while_others_run():
    def outer(x: int) -> list[int]:
        import time

        from burla import remote_parallel_map

        results = remote_parallel_map(lambda s: time.sleep(s) or s, [0, 300], generator=True)
        first = next(results)
        results.close()
        return [first]

    assert remote_parallel_map(outer, [1]) == [[0]]


@pytest.mark.parametrize("how", ["the client is interrupted", "another call of the parent's job fails"])
def test_a_stopped_call_stops_what_it_started(scripts: Scripts, ledger: Ledger, how: str):
    script = scripts.start(
        """
        import os, signal, sys, time
        from burla import remote_parallel_map
        def note(path=sys.argv[1]):
            with open(path, "a") as file:
                file.write(f"{os.getpid()}\\n")
            return open(path).read().count("\\n")
        def innermost(x):
            note()
            time.sleep(300)
        def inner(x):
            note()
            remote_parallel_map(innermost, [1])
        def outer(x, fails=sys.argv[2] == "fails", path=sys.argv[1]):
            while x == 1 and fails:
                if os.path.exists(path) and open(path).read().count("\\n") == 3:
                    raise ValueError
                time.sleep(0.02)
            note()
            if fails:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # it will not say itself that its job is to end
            remote_parallel_map(inner, [1])
        remote_parallel_map(outer, [0, 1] if sys.argv[2] == "fails" else [0])
        """,
        str(ledger.path),
        "fails" if "fails" in how else "",
    )
    wait_until(lambda: len(ledger.entries()) == 3, 30, "a call, its call, and the call of that")
    calls = list(map(int, ledger.entries()))
    if "fails" not in how:
        script.send_signal(signal.SIGINT)
    wait_until(lambda: not any(map(psutil.pid_exists, calls)), 5, "the end of all three")
    assert ("ValueError" if "fails" in how else "KeyboardInterrupt") in script.communicate(timeout=30)[1]


def test_a_call_that_dies_stops_what_it_started(ledger: Ledger):
    """Before it is tried again, which here finds the nested call of the first try gone."""
    write, path = ledger.writer(), str(ledger.path)

    def outer(x: int) -> bool:
        import os
        import time
        from pathlib import Path

        import psutil

        from burla import remote_parallel_map

        def inner(y: int) -> None:
            write(os.getpid())
            time.sleep(300)

        if not os.path.exists(path):
            results = remote_parallel_map(inner, [1], generator=True)
            while not os.path.exists(path):
                time.sleep(0.02)
            os.kill(os.getpid(), 9)
            results.close()
        (before,) = map(int, Path(path).read_text().split())
        until = time.monotonic() + 5
        while psutil.pid_exists(before) and time.monotonic() < until:
            time.sleep(0.02)
        return psutil.pid_exists(before)

    assert remote_parallel_map(outer, [1]) == [False]


# forks ----------------------------------------------------------------------------------------------------------------


def test_a_forked_process_calls_on_its_own(scripts: Scripts):
    done = scripts.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, by Python 3.12
        import multiprocessing, os
        from burla import remote_parallel_map
        print(remote_parallel_map(abs, [-1]), flush=True)
        pid = os.fork()
        if pid == 0:
            print(remote_parallel_map(abs, [-2]), flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(remote_parallel_map(abs, [-3]), flush=True)

        def job(x):
            return remote_parallel_map(abs, [x])
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(job, [-4, -5]), flush=True)
        print(remote_parallel_map(abs, [-6]))
        """
    )
    assert done.stdout == "[1]\n[2]\n[3]\n[[4], [5]]\n[6]\n" and done.stderr == ""


def test_a_process_that_is_forked_in_mid_job_does_not_disturb_the_job(scripts: Scripts):
    done = scripts.run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, by Python 3.12
        import os
        import time
        from burla import ClusterLost, remote_parallel_map
        results = remote_parallel_map(lambda x: time.sleep(0.1) or x, range(20), generator=True)
        seen = [next(results)]
        pid = os.fork()
        if pid == 0:
            try:
                next(results)  # of the last batch that came
                list(results)
            except ClusterLost as error:
                assert "forked" in str(error)
                raise SystemExit(remote_parallel_map(abs, [-7])[0])  # with all exit handlers
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print(sorted([*seen, *results]) == list(range(20)))
        """
    )
    assert done.stdout == "True\n" and done.stderr == ""


def test_calls_can_use_multiprocessing():
    def call(method: str) -> list[object]:
        import concurrent.futures
        import multiprocessing

        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            mapped = pool.map(abs, [-1, -2, -3])
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            return [mapped, list(pool.map(abs, [-4, -5]))]

    expected = [[1, 2, 3], [4, 5]]
    assert remote_parallel_map(call, ["fork", "spawn", "forkserver"]) == [expected] * 3


def test_a_process_forked_by_a_call_is_refused_and_the_call_goes_on():
    """Two processes that speak on one socket to the node would take each other's replies."""

    def call(x: int) -> object:
        import multiprocessing

        from burla import ClusterLost, remote_parallel_map

        def forked(queue: multiprocessing.Queue) -> None:
            try:
                queue.put(remote_parallel_map(abs, [-1]))
            except ClusterLost as error:
                queue.put(str(error))

        before = remote_parallel_map(abs, [-x])
        queue = multiprocessing.Queue()
        process = multiprocessing.get_context("fork").Process(target=forked, args=(queue,))
        process.start()
        return before, queue.get(timeout=10), remote_parallel_map(abs, [-x])

    ((before, refused, after),) = remote_parallel_map(call, [3])
    assert (before, after) == ([3], [3]) and "forked" in refused


def test_a_call_that_forks_and_returns_in_both_processes_counts_once(ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import os

        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            write(x)
        return x

    assert remote_parallel_map(call, range(6)) == list(range(6))
    assert sorted(ledger.entries()) == sorted(map(str, range(6)))
