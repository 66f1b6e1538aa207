"""func_gpu on a node with four simulated GPUs: NVML is a library of ours, what reads it and shares them out is not."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import burla
from burla import InvalidValue, NoCompatibleNodes, remote_parallel_map
from tests.conftest import Ledger, home, wait_until
from tests.nvml import Simulated, simulate

pytestmark = pytest.mark.local

UUIDS = [f"GPU-{at}-{'0' * 30}" for at in range(4)]
CPUS = 8


@pytest.fixture(scope="module", autouse=True)
def four_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster of eight slots whose node finds four GPUs, and an image."""
    gpus = [Simulated("NVIDIA A100-SXM4-40GB", uuid, 40 * 2**30, mig=0) for uuid in UUIDS]
    environ = simulate(tmp_path_factory.mktemp("nvml"), gpus)
    if environ is None:
        pytest.skip("there is no C compiler")
    with pytest.MonkeyPatch.context() as patch, home(patch):
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setenv("BURLA_LOCAL_CPUS", str(CPUS))
        patch.setenv("BURLA_IMAGE", "docker.io/library/python:3.11")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        yield


def taking(ledger: Ledger, crash: bool = False, stubborn: bool = False, slow_end: bool = False) -> Callable[[int], str]:
    """Return a function that writes down which GPU its call has, and whether another living process has it too.

    A process locks the GPUs that it sees for as long as it lives. `crash`: every third call ends its process;
    `stubborn`: calls go on for ever, whatever they are told; `slow_end`: their processes take long to end.
    """
    write, folder = ledger.writer(), str(ledger.path.parent)

    def call(x: int) -> str:
        import atexit
        import fcntl
        import signal
        import sys
        import time

        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        locked = sys.__dict__.setdefault("locked_gpus", {})
        if gpu not in locked:
            locked[gpu] = os.open(f"{folder}/{gpu}", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(locked[gpu], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                write(f"shared {gpu}")
            atexit.register(time.sleep, 0.3 if slow_end else 0)
        write(f"+ {gpu}")
        until = time.monotonic() + (60 if stubborn else 0.03)
        while time.monotonic() < until:
            try:
                time.sleep(until - time.monotonic())
            except KeyboardInterrupt:
                if not stubborn:
                    raise
        write(f"- {gpu}")
        if crash and x % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return gpu

    return call


def shared(ledger: Ledger) -> list[str]:
    return [entry for entry in ledger.entries() if entry.startswith("shared")]


def test_two_jobs_at_once_use_all_gpus_and_never_two_calls_one(ledger: Ledger):
    call = taking(ledger)
    results: dict[str, list[str]] = {}

    def run(kind: str) -> None:
        results[kind] = remote_parallel_map(call, range(60), func_gpu=kind)

    threads = [threading.Thread(target=run, args=(kind,)) for kind in ("A100", "any")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(gpus) for gpus in results.values()] == [60, 60]
    assert not shared(ledger)
    assert set(results["A100"]) | set(results["any"]) == set(UUIDS)
    at_once = itertools.accumulate(1 if entry[0] == "+" else -1 for entry in ledger.entries())
    assert max(at_once) == 4, "all of them at once"


def test_a_gpu_of_a_call_that_crashed_is_given_on_when_its_process_is_dead(ledger: Ledger):
    done: list[str] = []
    other = taking(ledger)
    thread = threading.Thread(target=lambda: done.extend(remote_parallel_map(other, range(100), func_gpu="A100")))
    thread.start()
    job = burla.submit(taking(ledger, crash=True), range(12), func_gpu="A100", on_error="continue", detach=False)
    job.wait()
    thread.join(60)
    assert job.progress.failed == 4 and len(done) == 100
    assert not shared(ledger)


def test_after_a_cancel_a_gpu_is_free_only_when_the_call_is_dead(ledger: Ledger):
    """The calls ignore Ctrl-C, so they live a second longer than their job."""
    job = burla.submit(taking(ledger, stubborn=True), range(4), func_gpu="any", detach=False)
    wait_until(lambda: len(ledger.entries()) == 4, what="four calls on four GPUs")
    cancelling = threading.Thread(target=job.cancel)
    cancelling.start()
    assert set(remote_parallel_map(taking(ledger), range(40), func_gpu="any")) <= set(UUIDS)
    cancelling.join(60)
    assert not shared(ledger)


def test_a_gpu_of_a_slot_that_is_given_up_is_free_only_when_its_process_is_dead(ledger: Ledger):
    """One job shrinks when the other comes, and grows again when that is done."""
    call = taking(ledger, slow_end=True)
    results = remote_parallel_map(call, range(200), func_gpu="any", generator=True)
    seen = [next(results) for _ in range(8)]
    for _ in range(3):
        assert len(remote_parallel_map(call, range(8), func_gpu="A100")) == 8
    seen += results
    assert len(seen) == 200 and not shared(ledger)


def test_a_gpu_is_given_on_when_what_the_call_has_started_is_dead_too(ledger: Ledger):
    """A chain of processes, each in a session of its own: each is found only when the one before it has ended."""
    write, folder = ledger.writer(), str(ledger.path.parent)

    def call(x: int) -> None:
        import fcntl
        import os
        import signal
        import sys
        import time

        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        locked = sys.__dict__.setdefault("locked_gpus", {})
        if gpu not in locked:
            locked[gpu] = os.open(f"{folder}/{gpu}", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(locked[gpu], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                write(f"shared by {x}")
        if x > 0:
            time.sleep(0.2)  # the others keep theirs meanwhile, so that the next process gets the same
            return
        reading, writing = os.pipe()
        if os.fork():
            os.read(reading, 1)
            os.kill(os.getpid(), signal.SIGKILL)
        os.dup2(writing, 0)
        os.dup2(locked[gpu], 1)
        os.closerange(2, 4096)  # nobody hears of the call's end from who holds these
        for _ in range(60):
            os.setsid()
            if os.fork():
                break
        else:
            os.write(0, b".")
        time.sleep(60)
        os._exit(0)

    job = burla.submit(call, range(40), func_gpu="any", on_error="continue", detach=False)
    job.wait()
    assert job.progress.failed == 1 and not shared(ledger)


def test_a_call_sees_its_gpu_before_anything_is_imported_and_so_do_its_processes(tmp_path: Path):
    (tmp_path / "looks_at_import.py").write_text(
        "import os\nseen = os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER']\n"
    )

    def look(folder: str) -> tuple[Any, str]:
        import subprocess
        import sys

        sys.path.insert(0, folder)
        import looks_at_import  # pyright: ignore[reportMissingImports]

        code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        return looks_at_import.seen, subprocess.check_output([sys.executable, "-c", code], text=True).strip()

    (((gpu, order), of_process),) = remote_parallel_map(look, [str(tmp_path)], func_gpu="A100")
    assert gpu in UUIDS and order == "PCI_BUS_ID" and of_process == gpu


def test_a_call_that_asks_for_no_gpu_sees_none(monkeypatch: pytest.MonkeyPatch):
    def visible(x: int) -> str | None:

        return os.environ.get("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert remote_parallel_map(visible, range(2)) == [""] * 2


def test_a_child_keeps_its_gpu_for_all_its_calls():
    def which(x: int) -> tuple[int, str]:

        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    seen = set(remote_parallel_map(which, range(500), func_gpu="A100"))
    assert len({pid for pid, _ in seen}) == len(seen)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"func_gpu": "H100"}, "func_gpu='H100_80G'"),
        ({"func_gpu": "T4"}, "func_gpu='T4'"),
        ({"image": "python:3.12"}, "image='python:3.12'"),
        ({"func_gpu": "any", "func_cpu": CPUS + 1}, "func_cpu=9, func_gpu='any'"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named_with_what_is(options: dict[str, Any], asked: str):
    with pytest.raises(NoCompatibleNodes) as caught:
        remote_parallel_map(abs, [1], **options)
    assert caught.value.asked.endswith(asked)
    assert f"1 node: {CPUS} CPUs, " in str(caught.value)
    assert "GB RAM, 4 A100_40G, image python:3.11" in str(caught.value)


def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidValue, match=r"one of A100, A100_40G, .*, V100, any\."):
        remote_parallel_map(abs, [1], func_gpu="a100")


@pytest.mark.parametrize("image", ["python:3.11", "docker.io/library/python:3.11", None])
def test_calls_run_where_their_image_is_however_it_is_spelled(image: str | None):
    assert remote_parallel_map(abs, [-1], image=image) == [1]


def test_the_status_shows_gpus_and_image():
    from burla.cluster_state import cluster_status

    remote_parallel_map(abs, [1])
    assert "GB RAM, 4 A100_40G, image python:3.11\n" in str(cluster_status())
