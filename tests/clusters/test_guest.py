"""burla as a guest on somebody else's Dask cluster: how it comes, what it leaves to others, how it goes."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

import burla
from burla import ClusterBusy, ClusterError, ClusterLost, remote_parallel_map
from burla.clusters import carrier
from burla.clusters.package import package
from tests.conftest import Ledger, Scripts, wait_until
from tests.dask_clusters import HandStarted, hand_started, local_cluster
from tests.jupyter.conftest import Kernel

SOURCE = Path(burla.__file__).parents[1]


@pytest.fixture
def own_cluster(tmp_path: Path, python_without_burla: str) -> Iterator[HandStarted]:
    """A cluster for this test alone."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with hand_started(folder, python_without_burla) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "gate"
    yield path
    path.touch()


def waiting(gate: Path) -> Callable[[Any], Any]:
    """Return a function for calls that waits for a file."""
    path = str(gate)

    def call(x: Any) -> Any:
        import os
        import time

        until = time.monotonic() + 60
        while not os.path.exists(path) and time.monotonic() < until:
            time.sleep(0.01)
        return x

    return call


def parents() -> Callable[[], tuple[int, ...]]:
    """Return a function for calls that returns the pids above theirs: of a zygote, a node, …"""

    def above() -> tuple[int, ...]:
        import psutil

        return tuple(process.pid for process in psutil.Process().parents())

    return above


def leases(client: Client) -> list[str]:
    """Return the tasks of ours that Dask shows, one for each job and worker."""
    processing = client.processing()
    assert processing is not None
    return [str(key) for keys in processing.values() for key in keys if "burla" in str(key)]


# it comes -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_of_ours_is_installed_where_it_runs_not_even_for_workers_that_come_later(own_cluster: HandStarted):
    def where(x: int) -> tuple[str, tuple[int, ...]]:
        import os
        import time

        import burla

        time.sleep(0.05)
        return os.path.realpath(burla.__file__), above()

    above = parents()

    def with_burla() -> list[str]:
        import os
        import sys

        return [entry for entry in sys.path if os.path.isdir(f"{entry}/burla")]

    late = own_cluster.add_worker()
    with own_cluster.client() as client, burla.use(own_cluster.address):
        late_too = own_cluster.add_worker("--no-nanny")
        client.wait_for_workers(4, timeout=30)
        status = burla.cluster_status
        wait_until(lambda: len(status().status.nodes) == 4, 15, "nodes")  # pyright: ignore[reportOptionalMemberAccess]
        found = remote_parallel_map(where, range(20))
        folders = client.run(with_burla)
    assert late.poll() is None and late_too.poll() is None
    workers = {worker.pid for worker in own_cluster.workers}
    assert {pid for _, pids in found for pid in pids} >= workers
    (file,) = {file for file, _ in found}
    assert file == f"{tempfile.gettempdir()}/burla-{package().key}-{os.geteuid()}/burla/__init__.py"
    assert list(folders.values()) == [[str(Path(file).parents[1])]] * 4


def test_a_cell_of_a_notebook_runs_there(in_use: HandStarted, monkeypatch: pytest.MonkeyPatch):
    """The cell's body is code of `burla_jupyter`, which has to be there too."""
    monkeypatch.setenv("BURLA_CLUSTER", in_use.address)
    kernel = Kernel()
    try:
        kernel.run("%load_ext burla_jupyter")
        seen = kernel.run(
            "%%burla --no-spinner\nimport psutil\nprint('there')\n"
            "where = [one.pid for one in psutil.Process().parents()]\n6 * 7"
        )
        assert (seen.text, seen.stdout, seen.error) == ("42", "there\n", "")
        above = kernel.run("where").text
        assert {process.pid for process in in_use.workers} & set(json.loads(above))
        assert in_use.address in kernel.run("%burla status").text
        assert "BURLA_CLUSTER" in kernel.run("%burla use").text
        kernel.run("%burla use local")
        assert re.search(r"local .* burla\.use$", kernel.run("%burla clusters").text)
    finally:
        kernel.close()


@pytest.mark.slow
def test_processes_that_come_at_once_bring_one_head(own_cluster: HandStarted, scripts: Scripts):
    source = "import sys, burla; burla.use(sys.argv[1]); print(burla.remote_parallel_map(abs, [-1, -2]))"
    started = [scripts.start(source, own_cluster.address, name=f"script{number}.py") for number in range(5)]
    for script in started:
        assert script.communicate(timeout=60) == ("[1, 2]\n", "")
    with own_cluster.client() as client:
        plugins = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins))
    assert [name for name in plugins if "burla" in name] == ["burla-head"]
    assert own_cluster.log.count("Starting Worker plugin burla-node") == 2


@pytest.mark.slow
def test_a_scheduler_that_takes_no_plugins_is_a_clear_error(own_cluster: HandStarted):
    def forbid(dask_scheduler: Any) -> None:
        async def refuse(**arguments: Any) -> None:
            raise PermissionError("plugins are not allowed here")

        dask_scheduler.handlers["register_scheduler_plugin"] = refuse

    with own_cluster.client() as client:
        client.run_on_scheduler(forbid)
    with pytest.raises(ClusterError, match=r"does not take burla's plugin: PermissionError: plugins are not allowed"):
        burla.use(own_cluster.address)


@pytest.mark.parametrize(
    ("what", "value", "told"),
    [
        ("host", {"python": "3.9.1.final.0"}, r"runs Python 3\.9, this process 3\.\d+\."),
        ("packages", {"distributed": "2023.5.1"}, r"runs distributed 2023\.5\.1: burla needs"),
    ],
)
@pytest.mark.slow
def test_another_python_or_an_old_dask_is_refused_before_anything_is_sent(
    own_cluster: HandStarted, what: str, value: dict[str, str], told: str
):
    def pretend(dask_worker: Any) -> None:
        found = dask_worker.versions()
        dask_worker.handlers["versions"] = lambda: found | {what: found[what] | value}

    with own_cluster.client() as client:
        (one, _) = client.scheduler_info()["workers"]
        client.run(pretend, workers=[one])
        with pytest.raises(ClusterError, match=rf"worker {one} {told}"):
            burla.use(own_cluster.address)
        assert "burla-head" not in client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins))


# the package, unpacked ------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_package_is_unpacked_once_for_this_user_alone(temporary: Path):
    folder = carrier._unpack("key", package().archive)
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "burla" / "head" / "guest.py").is_file()
    there = (folder / "burla" / "api.py").stat().st_ino
    assert carrier._unpack("key", package().archive) == folder
    assert (folder / "burla" / "api.py").stat().st_ino == there
    (folder / "burla" / "errors.py").unlink()  # as what clears old files away does
    assert carrier._unpack("key", package().archive) == folder and (folder / "burla" / "errors.py").is_file()
    assert list(temporary.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["open", "link"])
def test_a_folder_that_somebody_else_could_have_made_is_not_used(temporary: Path, kind: str):
    folder = temporary / f"burla-key-{os.geteuid()}"
    if kind == "open":
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "theirs").touch()
    else:
        (temporary / "theirs").mkdir(mode=0o700)
        folder.symlink_to(temporary / "theirs")
    used = carrier._unpack("key", package().archive)
    assert used != folder and used.stat().st_mode & 0o777 == 0o700 and (used / "burla" / "api.py").is_file()
    assert [path.name for path in folder.iterdir()] == (["theirs"] if kind == "open" else [])


# beside others --------------------------------------------------------------------------------------------------------


def test_tasks_of_others_run_while_jobs_hold_every_slot(in_use: HandStarted, gate: Path):
    """Workers of one thread each, and two leases on each: neither Dask's scheduler nor a worker counts them."""
    with in_use.client() as client:
        jobs = [burla.submit(waiting(gate), [1, 2], detach=False) for _ in range(2)]
        wait_until(lambda: len(leases(client)) >= 2, 15, "the tasks of the leases")
        assert client.gather(client.map(lambda x: x + 1, range(40), pure=False)) == list(range(1, 41))
        gate.touch()
        assert [job.results() for job in jobs] == [[1, 2]] * 2


@pytest.mark.slow
def test_calls_leave_a_cpu_to_the_tasks_of_others(own_cluster: HandStarted, gate: Path, ledger: Ledger):
    """On one CPU that both want: what a call gets is a fraction of what a task gets."""
    cpu, write = min(os.sched_getaffinity(0)), ledger.writer()

    def burn(x: int, path: str = str(gate)) -> int:
        import os
        import time

        os.sched_setaffinity(0, {cpu})  # a slot may have been given another
        write(os.getpid())
        until = time.monotonic() + 60
        while not os.path.exists(path) and time.monotonic() < until:
            pass
        return x

    def task(pid: int) -> tuple[float, float]:
        import time

        import psutil

        other, before = psutil.Process(pid), time.thread_time()
        theirs = sum(other.cpu_times()[:2])
        while time.thread_time() - before < 1:
            pass
        return time.thread_time() - before, sum(other.cpu_times()[:2]) - theirs

    with own_cluster.client() as client:
        client.run(os.sched_setaffinity, 0, {cpu})
        with burla.use(own_cluster.address):
            job = burla.submit(burn, [0], detach=False)
            wait_until(ledger.entries, 15, "the call")
            used, by_the_call = client.submit(task, int(ledger.entries()[0])).result()
            gate.touch()
            assert job.results() == [0]
    assert by_the_call < 0.5 * used


@pytest.mark.slow
def test_after_a_job_the_cluster_is_as_it_was(own_cluster: HandStarted, gate: Path):
    def state(dask_scheduler: Any) -> dict[str, Any]:
        return {
            "tasks": sorted(map(str, dask_scheduler.tasks)),
            "clients": len(dask_scheduler.clients),
            "resources": dict(dask_scheduler.resources),
            "used": [dict(worker.used_resources) for worker in dask_scheduler.workers.values()],
            "idle": not any(worker.processing for worker in dask_scheduler.workers.values()),
        }

    with own_cluster.client() as client:
        before = client.run_on_scheduler(state)
        with burla.use(own_cluster.address):
            job = burla.submit(waiting(gate), [1, 2])
            wait_until(lambda: len(leases(client)) == 2, 15, "the tasks of the leases")
            during = client.run_on_scheduler(state)
            assert during["resources"] == before["resources"] and during["used"] == before["used"]
            gate.touch()
            assert job.results() == [1, 2]
            wait_until(lambda: client.run_on_scheduler(state) == before, 15, "a cluster as it was")


@pytest.mark.slow
def test_somebodys_restart_of_the_workers_costs_a_job_nothing(own_cluster: HandStarted, ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import time

        write(x)
        time.sleep(0.1)
        return x

    with own_cluster.client() as client, burla.use(own_cluster.address):
        job = burla.submit(call, range(60))
        wait_until(lambda: len(leases(client)) == 2, 15, "the tasks of the leases")
        client.restart(timeout=30, wait_for_workers=False)  # the worker without a nanny does not come back
        wait_until(lambda: len(leases(client)) == 1, 30, "the task of the lease on the worker that came back")
        assert job.results() == list(range(60))
        assert len(ledger.entries()) <= 64, "only what ran then ran again"
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)), 15, "no task")
        found = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.task_metadata["burla-head"]["key"])
        assert found == package().key


# it goes --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that runs another version of burla."""
    folder = tmp_path / "other"
    for name in ("burla", "burla_jupyter"):
        shutil.copytree(SOURCE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "burla" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9.'))
    return os.environ | {"PYTHONPATH": str(folder)}


def look() -> Any:
    """Return a function that tells which burla a process of the cluster runs, and what its modules and path know."""

    def loaded() -> tuple[str, list[str], list[str]]:
        import sys

        ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in ("burla", "burla_jupyter")]
        folders = {str(module.__file__).rpartition("/burla/")[0] for module in ours if module.__file__}
        return sys.modules["burla"].__version__, sorted(folders), [entry for entry in sys.path if "/burla-" in entry]

    return loaded


@pytest.mark.slow
def test_an_idle_version_is_replaced_wholly_and_the_jobs_that_it_ended_stay(
    own_cluster: HandStarted, scripts: Scripts, other_version: dict[str, str]
):
    begin = """
    import sys, burla
    burla.use(sys.argv[1])
    def call(x):
        import burla
        return burla.__version__, burla.remote_parallel_map(abs, [-x])
    job = burla.submit(call, range(2))
    print(job.id, job.results())
    """
    done = scripts.run(begin, own_cluster.address, env=other_version)
    job_id, _, results = done.stdout.partition(" ")
    theirs = f"9.{burla.__version__}"
    assert (results, done.stderr) == (f"{[(theirs, [0]), (theirs, [1])]}\n", "")
    with own_cluster.client() as client:
        before = [client.run_on_scheduler(look()), *client.run(look()).values()]
        assert {version for version, _, _ in before} == {theirs}
        with burla.use(own_cluster.address):
            assert burla.attach(job_id).results() == [(theirs, [0]), (theirs, [1])]
            assert remote_parallel_map(lambda x: __import__("burla").__version__, [0, 1]) == [burla.__version__] * 2
        after = [client.run_on_scheduler(look()), *client.run(look()).values()]
        ours = f"{tempfile.gettempdir()}/burla-{package().key}-{os.geteuid()}"
        assert after == [(burla.__version__, [ours], [ours])] * 3
        handlers = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.handlers))
    assert [name for name in handlers if "burla" in name] == ["burla", "burla_leave"]


@pytest.mark.slow
def test_a_version_in_use_is_not_replaced_and_both_are_named(
    own_cluster: HandStarted, scripts: Scripts, other_version: dict[str, str], gate: Path, tmp_path: Path
):
    begin = """
    import sys, time, os, burla
    burla.use(sys.argv[1])
    def call(x, path=sys.argv[2]):
        while not os.path.exists(path):
            time.sleep(0.01)
        return x
    job = burla.submit(call, [1])
    print(job.id, flush=True)
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.01)
    """
    leave = tmp_path / "leave"
    script = scripts.start(begin, own_cluster.address, str(gate), str(leave), env=other_version)
    assert script.stdout is not None
    script.stdout.readline()
    both = rf"burla 9\.{burla.__version__} \(\w+\) is in use .* runs {burla.__version__} \({package().key}\)"
    with pytest.raises(ClusterBusy, match="call runs, clients that use it: 1") as raised:
        burla.use(own_cluster.address)
    raised.match(both)
    gate.touch()
    wait_until(lambda: "call runs" not in str(_refusal(own_cluster.address)), 15, "the end of the job")
    assert "clients that use it: 1" in str(_refusal(own_cluster.address))
    leave.touch()
    script.wait(30)
    wait_until(lambda: _refusal(own_cluster.address) is None, 15, "its replacement")


def _refusal(address: str) -> ClusterBusy | None:
    try:
        with burla.use(address):
            return None
    except ClusterBusy as error:
        return error


@pytest.mark.slow
def test_a_process_that_runs_a_burla_of_its_own_keeps_it(
    scripts: Scripts, other_version: dict[str, str], tmp_path: Path
):
    """The scheduler of a LocalCluster is in its user's process, who goes on with their version."""
    with local_cluster(processes=True) as cluster:
        with burla.use(cluster):
            assert remote_parallel_map(abs, [-1]) == [1]
        burla.client.current.forget()  # as when the process had made no call
        done = scripts.run("import sys, burla; burla.use(sys.argv[1])", cluster.scheduler_address, env=other_version)
        assert f"runs burla {burla.__version__} of its own" in done.stderr
        with burla.use(cluster):
            assert remote_parallel_map(abs, [-1]) == [1]


# the scheduler goes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["gone", "started again"])
@pytest.mark.slow
def test_when_the_scheduler_dies_its_jobs_are_lost_and_that_is_said(
    own_cluster: HandStarted, gate: Path, monkeypatch: pytest.MonkeyPatch, again: bool
):
    monkeypatch.setattr("burla.client.connection.CLIENT_LEASE_S", 120.0 if again else 1.0)
    monkeypatch.setattr("burla.client.connection.CONNECT_S", 1.0)
    monkeypatch.setattr("burla.clusters.borrowed.ANSWER_S", 10.0 if again else 1.0)
    assert own_cluster.scheduler is not None
    with burla.use(own_cluster.address):
        job = burla.submit(waiting(gate), [1])
        own_cluster.scheduler.kill()
        own_cluster.scheduler.wait()
        if again:
            own_cluster.start_scheduler(int(own_cluster.address.rpartition(":")[2]))
        with pytest.raises(ClusterLost, match="was started again" if again else "no Dask scheduler answers"):
            job.results()
        if again:
            own_cluster.add_worker()
            assert remote_parallel_map(abs, [-1]) == [1], "and the next call brings burla there anew"


def test_a_detached_job_says_if_it_ends_with_this_process(capfd: pytest.CaptureFixture[str]):
    with local_cluster(processes=False) as cluster, burla.use(cluster):
        results = remote_parallel_map(abs, [-1], detach=True, generator=True)
        job = burla.current_job()
        assert list(results) == [1] and job is not None
        assert capfd.readouterr().err == (
            f"burla: job {job.id} is detached: it goes on until this process ends, in which the scheduler "
            f"{cluster.scheduler_address} runs. To come back: burla.attach({job.id!r})\n"
        )
