"""Which cluster is in use: all that `burla.use` takes, and what comes first of all that can choose one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, SpecCluster

import burla
from burla import ClusterError, ClusterLost, InvalidValue, UnknownCluster, remote_parallel_map
from burla.clusters import registry
from tests.conftest import Home, Scripts
from tests.dask_clusters import HandStarted, hand_started, local_cluster


def address() -> str:
    """Return where the next call goes; the local cluster is not started."""
    used = [one for one in burla.clusters() if one.in_use]
    assert len(used) == 1
    return used[0].address or used[0].name


def cli(*arguments: str, **environ: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "burla.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environ)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, python_without_burla: str) -> Iterator[HandStarted]:
    with hand_started(tmp_path_factory.mktemp("secure"), python_without_burla, tls=True) as made:
        yield made


@pytest.fixture
def clean(own_home: Home) -> Home:
    """A BURLA_HOME in which nothing is known."""
    return own_home


# objects --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_local_cluster_object_or_its_client_is_used_until_the_block_ends(processes: bool, clean: Home):
    def call(x: int) -> int:
        print("call", x)
        return x * 2

    with local_cluster(processes) as cluster, Client(cluster, set_as_default=False) as client:
        for target in (cluster, client):
            with burla.use(target):
                assert address() == cluster.scheduler_address
                assert remote_parallel_map(call, range(4)) == [0, 2, 4, 6]
                assert len(burla.cluster_status().status.nodes) == 2  # pyright: ignore[reportOptionalMemberAccess]
            assert address() == "local"
        assert client.submit(len, "plain Dask").result() == 10
    for closed, status in ((cluster, "closed"), (client, "closed")):
        with pytest.raises(InvalidValue, match=f"it is {status}"):
            burla.use(closed)
    assert address() == "local"


def test_a_cluster_object_of_any_class_with_an_address_and_security_is_used(secure: HandStarted, clean: Home):
    """As those of Dask Gateway, Kubernetes and SLURM are: what is used of them is what Dask's own Client uses."""

    class Elsewhere:
        scheduler_address = secure.address
        security: Any = registry.entry(secure.address, *secure.keys.values()).security()
        status = "running"

    with burla.use(Elsewhere()):
        assert remote_parallel_map(abs, [-1, -2]) == [1, 2]


def test_an_asynchronous_cluster_is_used_from_a_thread_and_refused_where_it_would_wait_for_itself(clean: Home):
    async def main() -> None:
        async with LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", asynchronous=True
        ) as cluster:
            with pytest.raises(ClusterError, match=r"asyncio\.to_thread"):
                burla.use(cluster)
            used = await asyncio.to_thread(burla.use, cluster)
            with used:
                with pytest.raises(ClusterError, match=r"asyncio\.to_thread"):
                    remote_parallel_map(abs, [-1])
                assert await asyncio.to_thread(remote_parallel_map, abs, [-1]) == [1]
                async with Client(cluster, asynchronous=True, set_as_default=False) as client:
                    assert await client.submit(abs, -2) == 2

    asyncio.run(main())


def test_what_has_no_scheduler_yet_is_refused(clean: Home):
    async def main() -> None:
        cluster = SpecCluster(asynchronous=True)
        with pytest.raises(InvalidValue, match=r"its scheduler is not running"):
            burla.use(cluster)
        client = Client("tcp://127.0.0.1:1", asynchronous=True, set_as_default=False)
        with pytest.raises(InvalidValue, match=r"no connection yet"):
            burla.use(client)
        await client.close()

    asyncio.run(main())


# addresses, and what opens them ---------------------------------------------------------------------------------------


def test_tls_files_open_a_cluster_and_without_them_it_is_closed(secure: HandStarted, clean: Home):
    with burla.use(secure.address, **secure.keys):
        assert remote_parallel_map(abs, range(-4, 0)) == [4, 3, 2, 1]
    with pytest.raises(OSError, match=secure.address.rpartition(":")[2]):
        burla.use(secure.address.replace("tls:", "tcp:"))
    with pytest.raises(InvalidValue, match=r"tls_client_key='/nowhere': there is no such file"):
        burla.use(secure.address, **secure.keys | {"tls_client_key": "/nowhere"})
    with pytest.raises(InvalidValue, match="go with an address"):
        burla.use("local", **secure.keys)
    assert address() == "local"


def test_without_tls_files_those_of_the_dask_config_count(secure: HandStarted, scripts: Scripts, clean: Home):
    environ = {
        f"DASK_DISTRIBUTED__COMM__TLS__{option}": path
        for option, path in zip(("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"), secure.keys.values(), strict=True)
    }
    done = scripts.run(
        "import sys, burla; burla.use(sys.argv[1]); print(burla.remote_parallel_map(abs, [-1]))",
        secure.address,
        env=os.environ | environ,
    )
    assert (done.stdout, done.stderr) == ("[1]\n", "")


# names, and who chooses -----------------------------------------------------------------------------------------------


def test_a_block_comes_before_use_before_the_variable_before_the_command_before_the_local_cluster(
    cluster: HandStarted, secure: HandStarted, clean: Home, monkeypatch: pytest.MonkeyPatch
):
    def chosen() -> tuple[str, str]:
        (used,) = (one for one in burla.clusters() if one.in_use)
        return used.name or used.address, used.in_use

    assert chosen() == ("local", "nothing else is chosen")
    files = [f"--{name.replace('_', '-')}={path}" for name, path in secure.keys.items()]
    code, out, err = cli("use", secure.address, "--name", "lab", *files)
    assert (code, out, err) == (0, f"lab ({secure.address}): burla use\n", "")
    assert chosen() == ("lab", "burla use")
    monkeypatch.setenv("BURLA_CLUSTER", cluster.address)
    assert chosen() == (cluster.address, "BURLA_CLUSTER")
    assert cli("use") == (0, f"{cluster.address}: BURLA_CLUSTER\n", "")
    try:
        burla.use("lab")
        assert chosen() == ("lab", "burla.use")
        with burla.use("local"):
            assert chosen() == ("local", "burla.use")
            with burla.use(cluster.address):
                assert chosen() == (cluster.address, "burla.use")
            assert chosen() == ("local", "burla.use")
        assert chosen() == ("lab", "burla.use")
    finally:
        burla.use(None)
    monkeypatch.setenv("BURLA_CLUSTER", "lab")
    assert remote_parallel_map(abs, [-1]) == [1] and chosen() == ("lab", "BURLA_CLUSTER")
    monkeypatch.delenv("BURLA_CLUSTER")
    code, out, err = cli("use", "local", BURLA_CLUSTER="lab")
    assert (code, err) == (0, "burla: the variable BURLA_CLUSTER comes first: unset it\n")
    assert chosen() == ("local", "nothing else is chosen")


@pytest.mark.parametrize("module", ["dask.utils", "dask.widgets", "distributed.core"])
def test_a_signal_while_dask_is_imported_does_not_spoil_the_next_job(
    cluster: HandStarted, scripts: Scripts, module: str
):
    script = scripts.run(
        """
        import os, signal, sys, threading, time
        from burla import remote_parallel_map

        def interrupt():
            while sys.argv[1] not in sys.modules:
                time.sleep(0.0001)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=interrupt).start()
        try:
            print(remote_parallel_map(abs, [-1]))
        except KeyboardInterrupt:
            print("KeyboardInterrupt", remote_parallel_map(abs, [-2]))
        """,
        module,
        env=os.environ | {"BURLA_CLUSTER": cluster.address},
    )
    assert (script.stdout, script.stderr) == ("KeyboardInterrupt [2]\n", "")


def test_a_block_that_fails_puts_back_what_was_there_too(cluster: HandStarted, clean: Home):
    with pytest.raises(KeyError), burla.use(cluster.address):
        raise KeyError
    assert address() == "local"


def test_a_switch_leaves_the_jobs_of_the_former_cluster_alone(in_use: HandStarted, tmp_path: Path, clean: Home):
    gate = str(tmp_path / "gate")

    def call(x: int) -> int:
        import os
        import time

        until = time.monotonic() + 30
        while not os.path.exists(gate) and time.monotonic() < until:
            time.sleep(0.01)
        return x

    job = burla.submit(call, [1, 2], detach=False)
    with burla.use("local"):
        (tmp_path / "gate").touch()
        assert job.results() == [1, 2]


def test_what_a_call_uses_is_its_own_cluster_whatever_it_chooses(in_use: HandStarted):
    def call(x: int) -> list[int]:
        import burla

        with burla.use("local"):
            return burla.remote_parallel_map(abs, [-x])

    assert remote_parallel_map(call, [1]) == [[1]]


def test_unknown_names_and_unsuitable_ones_say_what_there_is(cluster: HandStarted, clean: Home):
    registry.save(registry.Entry(cluster.address, "office"))
    with pytest.raises(UnknownCluster, match=r"no cluster 'ofice'; known are: local, office\."):
        burla.use("ofice")
    assert cli("use", "ofice")[0] == 3
    assert cli("use", "office", "--name", "x")[0] == 2
    for name in ("local", "../up", "a b", ""):
        with pytest.raises(InvalidValue, match="it must be of letters"):
            registry.save(registry.Entry(cluster.address, name))
    assert address() == "local"


def test_what_is_kept_is_for_this_user_alone_and_what_cannot_be_read_says_so(clean: Home):
    registry.save(registry.Entry("tcp://127.0.0.1:1", "office"))
    registry.keep(registry.Entry("tcp://127.0.0.1:1", "office"))
    folder = clean.path / "clusters" / "office"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "cluster.json")] == [0o700, 0o600]
    (clean.path / "use.json").write_text("{")
    with pytest.raises(InvalidValue, match=r"use\.json cannot be read"):
        burla.clusters()
    (clean.path / "use.json").unlink()
    assert [one.name for one in burla.clusters()] == ["local", "office"]


def test_clusters_are_listed_with_whether_they_are_up(cluster: HandStarted, clean: Home):
    registry.save(registry.Entry(cluster.address, "office"))
    registry.save(registry.Entry("tcp://127.0.0.1:1", "gone"))
    with burla.use("office"):
        listed = burla.clusters()
        assert [(one.name, one.kind, one.up, one.in_use) for one in listed] == [
            ("local", "local", False, ""),
            ("gone", "dask", False, ""),
            ("office", "dask", True, "burla.use"),
        ]
        assert repr(listed).splitlines()[0].split() == ["name", "address", "kind", "up", "in", "use"]
        assert f'<td style="text-align:left;padding:2px 8px">{cluster.address}</td>' in listed._repr_html_()
    code, out, err = cli("clusters", "--json", BURLA_CLUSTER="gone")
    assert (code, err) == (0, "")
    assert [(one["name"], one["up"], one["in_use"]) for one in json.loads(out)][1] == ("gone", False, "BURLA_CLUSTER")


def test_a_call_on_a_cluster_that_is_down_is_cluster_lost(clean: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("burla.clusters.borrowed.ANSWER_S", 1.0)
    monkeypatch.setenv("BURLA_CLUSTER", "tcp://127.0.0.1:1")
    with pytest.raises(ClusterLost, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        remote_parallel_map(abs, [-1])
