"""What calls write appears here, on the same stream, while they run; and nothing else does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from burla import remote_parallel_map
from tests.conftest import Home, Scripts


def writers() -> dict[str, Callable[[str], None]]:
    """Return ways of writing a line to stdout."""

    def python(text: str) -> None:
        print(text)

    def pieces(text: str) -> None:
        for letter in text:
            print(letter, end="", flush=True)
        print()

    def stream(text: str) -> None:
        import sys

        sys.stdout.writelines([text, "\n"])

    def original(text: str) -> None:
        import sys

        print(text, file=sys.__stdout__)

    def raw(text: str) -> None:
        import sys

        sys.stdout.buffer.write(text.encode() + b"\n")
        sys.stdout.buffer.flush()

    def descriptor(text: str) -> None:
        import os

        os.write(1, text.encode() + b"\n")

    def c_printf(text: str) -> None:
        import ctypes

        ctypes.CDLL(None).printf(b"%s\n", text.encode())

    def c_puts(text: str) -> None:
        import ctypes

        ctypes.CDLL(None).puts(text.encode())

    def program(text: str) -> None:
        import subprocess

        subprocess.run(["echo", text], check=True)

    def shell(text: str) -> None:
        import os

        os.system(f"echo '{text}'")

    def fork(text: str) -> None:
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=print, args=(text,))
        process.start()
        process.join()

    def thread(text: str) -> None:
        import threading

        thread = threading.Thread(target=print, args=(text,))
        thread.start()
        thread.join()

    def logger(text: str) -> None:
        import logging
        import sys

        log = logging.Logger("mine")
        log.addHandler(logging.StreamHandler(sys.stdout))
        log.info(text)

    def opened(text: str) -> None:
        with open("/dev/stdout", "w") as file:
            print(text, file=file)

    return {function.__name__: function for function in list(locals().values())}


def error_writers() -> dict[str, Callable[[str], None]]:
    """Return ways of writing a line to stderr."""

    def python(text: str) -> None:
        import sys

        print(text, file=sys.stderr)

    def original(text: str) -> None:
        import sys

        sys.__stderr__.write(text + "\n")  # type: ignore[union-attr]

    def raw(text: str) -> None:
        import sys

        sys.stderr.buffer.write(text.encode() + b"\n")
        sys.stderr.buffer.flush()

    def descriptor(text: str) -> None:
        import os

        os.write(2, text.encode() + b"\n")

    def c_perror(text: str) -> None:
        import ctypes

        libc = ctypes.CDLL(None)
        libc.dprintf(2, b"%s\n", text.encode())

    def program(text: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", f"echo '{text}' >&2"], check=True)

    def logger(text: str) -> None:
        import logging

        logging.warning(text)

    def warning(text: str) -> None:
        import warnings

        warnings.showwarning = lambda message, *rest: print(message, file=__import__("sys").stderr)
        warnings.warn(text, stacklevel=1)

    return {function.__name__: function for function in list(locals().values())}


@pytest.mark.parametrize("way", writers())
def test_every_way_to_write_to_stdout_appears_on_stdout(way: str, capfd: pytest.CaptureFixture[str]):
    remote_parallel_map(writers()[way], ["a line of ñ ☃ 🎈 and more"])
    assert capfd.readouterr() == ("a line of ñ ☃ 🎈 and more\n", "")


@pytest.mark.parametrize("way", error_writers())
def test_every_way_to_write_to_stderr_appears_on_stderr(way: str, capfd: pytest.CaptureFixture[str]):
    remote_parallel_map(error_writers()[way], ["a line of ñ ☃ 🎈 and more"])
    out, err = capfd.readouterr()
    assert (out, err.removeprefix("WARNING:root:")) == ("", "a line of ñ ☃ 🎈 and more\n")


@pytest.mark.parametrize("stream", [1, 2])
def test_every_way_is_seen_while_the_call_still_runs(stream: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each call waits after its line; only seeing that line here lets it go on."""
    folder = str(tmp_path)
    ways = writers() if stream == 1 else error_writers()

    def work(way: str) -> None:
        import os
        import time

        ways[way](f"line of {way}")
        until = time.monotonic() + 60
        while not os.path.exists(f"{folder}/{way}"):
            assert time.monotonic() < until, f"the line written by {way} was not seen while its call ran"
            time.sleep(0.005)

    class Screen:
        def write(self, text: str) -> int:
            for way in re.findall(r"line of (\w+)\n", text):
                (tmp_path / way).touch()
            return len(text)

        def flush(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout" if stream == 1 else "sys.stderr", Screen())
        remote_parallel_map(work, ways, max_parallelism=1)
    assert {path.name for path in tmp_path.iterdir()} == set(ways)


def test_all_ways_in_one_call_keep_their_order(capfd: pytest.CaptureFixture[str]):
    ways = writers()

    def work(x: int) -> None:
        for _ in range(3):
            for name, write in ways.items():
                write(name)

    remote_parallel_map(work, [0])
    assert capfd.readouterr().out.split() == list(ways) * 3


def test_what_is_not_flushed_or_has_no_newline_appears_when_its_call_ends(capfd: pytest.CaptureFixture[str]):
    def work(way: str) -> None:
        import ctypes
        import os
        import sys

        if way == "print":
            print("[print", end="]")
        elif way == "raw":
            sys.stdout.buffer.write(b"[raw]")
        elif way == "original":
            sys.__stdout__.write("[original]")  # type: ignore[union-attr]
        elif way == "C":
            ctypes.CDLL(None).printf(b"[C]")
        else:
            os.write(1, b"[descriptor]")

    ways = ["print", "raw", "original", "C", "descriptor"]
    for way in ways:
        remote_parallel_map(work, [way])
        assert capfd.readouterr() == (f"[{way}]", "")
    remote_parallel_map(work, ways * 20, max_parallelism=1)
    out = capfd.readouterr().out
    assert sorted(re.findall(r"\[\w+\]", out)) == sorted(f"[{way}]" for way in ways * 20)
    assert len(out) == 20 * len("".join(f"[{way}]" for way in ways))


@pytest.mark.parametrize("count", [1, 200])
def test_lines_of_calls_at_once_stay_whole_and_in_order(count: int, capfd: pytest.CaptureFixture[str]):
    """Also when they are written in pieces, and long."""

    def work(x: int) -> None:
        import os
        import sys

        for i in range(20):
            os.write(1, f"<{x} {i} ".encode())
            os.write(1, b"-" * 3000)
            print(" middle", end="", flush=True)
            print(" end>")
            print(f"<{x} {i} error>", file=sys.stderr)

    remote_parallel_map(work, range(count))
    out, err = capfd.readouterr()
    lines = [re.fullmatch(r"<(\d+) (\d+) -{3000} middle end>", line) for line in out.splitlines()]
    assert all(lines) and len(lines) == 20 * count
    errors = [re.fullmatch(r"<(\d+) (\d+) error>", line) for line in err.splitlines()]
    assert all(errors) and len(errors) == 20 * count
    for found in (lines, errors):
        of_call: dict[str, list[int]] = {}
        for match in found:
            assert match
            of_call.setdefault(match[1], []).append(int(match[2]))
        assert len(of_call) == count and all(numbers == list(range(20)) for numbers in of_call.values())


def test_lines_of_megabytes_stay_whole(capfd: pytest.CaptureFixture[str]):
    def work(x: int) -> None:
        print(str(x) * (1_000_000 * (x + 1)))
        print(f"é{x}" * 700_000)

    remote_parallel_map(work, range(4))
    lines = capfd.readouterr().out.split("\n")
    expected = [line for x in range(4) for line in (str(x) * (1_000_000 * (x + 1)), f"é{x}" * 700_000)]
    assert sorted(lines) == sorted([*expected, ""])


@pytest.mark.parametrize("calls", [5, 100_000])
def test_100_000_lines_all_arrive(calls: int, capfd: pytest.CaptureFixture[str]):
    lines = 100_000 // calls

    def work(x: int) -> None:
        for i in range(lines):
            print(x, i)

    remote_parallel_map(work, range(calls))
    out, err = capfd.readouterr()
    assert err == ""
    arrived = [(int(x), int(i)) for x, i in (line.split() for line in out.splitlines())]
    assert sorted(arrived) == [(x, i) for x in range(calls) for i in range(lines)]
    for call in range(min(calls, 5)):
        assert [i for x, i in arrived if x == call] == list(range(lines))


def test_output_of_a_call_stands_before_its_result_in_a_generator(capfd: pytest.CaptureFixture[str]):
    def work(x: int) -> int:
        import time

        print("call", x)
        time.sleep(0.01)
        return x

    seen = ""
    for x in remote_parallel_map(work, range(10), max_parallelism=1, generator=True):
        seen += capfd.readouterr().out
        assert f"call {x}\n" in seen


def test_what_a_call_wrote_before_it_raised_appears(capfd: pytest.CaptureFixture[str]):
    def work(x: int) -> None:
        import os

        print("line")
        print("no newline", end="")
        os.write(2, b"error")
        raise LookupError

    with pytest.raises(LookupError):
        remote_parallel_map(work, [0])
    assert capfd.readouterr() == ("line\nno newline", "error")


def test_a_call_that_closes_or_replaces_its_stdout_takes_it_from_no_other(capfd: pytest.CaptureFixture[str]):
    def work(x: int) -> int:
        import io
        import sys

        print("call", x)
        if x % 3 == 0:
            sys.stdout.close()
        elif x % 3 == 1:
            sys.stdout = io.StringIO()
            print("not to be seen")
        return x

    assert remote_parallel_map(work, range(6), max_parallelism=1) == list(range(6))
    assert capfd.readouterr().out == "".join(f"call {x}\n" for x in range(6))


def test_output_goes_to_what_stands_for_stdout_here(capsys: pytest.CaptureFixture[str]):
    remote_parallel_map(print, ["é ☃"])
    assert capsys.readouterr() == ("é ☃\n", "")


# as a user sees it ----------------------------------------------------------------------------------------------------

ODD = ["plain", "", "  spaces  ", "tab\tand\rreturn", "\x1b[31mred\x1b[0m", "nul\0", "ñ☃🎈", "a\n\nb", "\r\n"]
WRITING = """
    import sys
    from burla import remote_parallel_map

    def work(text):
        sys.stdout.write(text)
        sys.stdout.write("|\\n")

    def silent(x):
        return x
"""


def run_for_bytes(scripts: Scripts, source: str, *arguments: str) -> tuple[bytes, bytes]:
    process = scripts.start(source, *arguments)
    assert process.stdout and process.stderr
    out, err = process.stdout.buffer.read(), process.stderr.buffer.read()  # type: ignore[attr-defined]
    assert process.wait(60) == 0, err
    return out, err


@pytest.mark.parametrize("spinner", ["", ", spinner=False"])
def test_a_script_prints_exactly_what_its_calls_wrote(scripts: Scripts, spinner: str):
    out, err = run_for_bytes(
        scripts,
        WRITING
        + f"""
    print("before")
    remote_parallel_map(work, {ODD!r}, max_parallelism=1{spinner})
    print("after")
    remote_parallel_map(silent, range(1000){spinner})
    """,
    )
    assert out == ("before\n" + "".join(f"{text}|\n" for text in ODD) + "after\n").encode()
    assert err == b""


def test_the_first_call_of_all_prints_no_more(scripts: Scripts, own_home: Home):
    """It starts the cluster, and says so only where there is a terminal."""
    out, err = run_for_bytes(scripts, WRITING + "\n    remote_parallel_map(work, ['x'])")
    assert (out, err) == (b"x|\n", b"")


def test_bytes_that_are_no_text_pass_as_they_are(scripts: Scripts):
    out, err = run_for_bytes(
        scripts,
        """
        from burla import remote_parallel_map

        def work(x):
            import os
            os.write(1, b"latin \\xe9 \\xff\\n" + bytes(range(256)) + b"\\n")
            os.write(2, b"\\xfe")

        remote_parallel_map(work, [0])
        """,
    )
    assert out == b"latin \xe9 \xff\n" + bytes(range(256)) + b"\n"
    assert err == b"\xfe"


def test_a_reader_that_goes_away_ends_the_script(scripts: Scripts):
    read, write = os.pipe()
    process = scripts.start(
        """
        from burla import remote_parallel_map
        remote_parallel_map(lambda x: print("line", x), range(200_000))
        """,
        stdout=write,
    )
    os.close(write)
    assert os.read(read, 5) == b"line "
    os.close(read)
    _, err = process.communicate(timeout=60)
    assert process.returncode and "BrokenPipeError" in err
