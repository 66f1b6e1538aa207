"""`env_vars`: calls get them, and nobody else can read them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import burla
from burla import InvalidType, InvalidValue, configured
from burla.head.vault import Vault
from burla.protocol import BeginLease, CallContext, JobSpec, Prepare, Submit, Variables
from tests.conftest import Home, wait_until

PLANTED = "planted-7f3c91"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configured, "_set", configured.Configuration())


def test_calls_get_configured_variables_and_those_of_their_own_job_besides():
    def call(names: str) -> list[str | None]:
        import os

        return [os.environ.get(name) for name in names.split()]

    burla.configure(env_vars={"BT_ONE": "1", "BT_TWO": "2"})
    assert burla.remote_parallel_map(call, ["BT_ONE BT_TWO"]) == [["1", "2"]]
    job = burla.submit(call, ["BT_ONE BT_TWO BT_THREE"], env_vars={"BT_TWO": "II", "BT_THREE": "3"})
    assert job.results() == [["1", "II", "3"]]
    burla.configure(env_vars={})
    assert burla.remote_parallel_map(call, ["BT_ONE"]) == [[None]]


def test_no_repr_shows_a_value():
    variables = Variables({"TOKEN": PLANTED})
    spec = JobSpec("job", "f", b"", CallContext("/", {}, ()))
    messages = [
        variables,
        Submit(spec, variables=variables),
        BeginLease(spec, variables),
        Prepare("job", 0, spec.context, variables, (), b""),
    ]
    messages += [shown := burla.configure(packages=["polars"], env_vars={"TOKEN": PLANTED}), str(shown)]
    assert str(shown) == "package polars\nvariable TOKEN"
    assert "TOKEN" in repr(variables)
    assert not [one for one in messages if PLANTED in repr(one)]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([PLANTED], InvalidType),
        ({"TOKEN": (PLANTED,)}, InvalidType),
        ({"A=B": PLANTED}, InvalidValue),
        ({"TOKEN": PLANTED + "\0"}, InvalidValue),
    ],
)
def test_what_is_no_variable_is_refused_without_showing_it(wrong: object, error: type[Exception]):
    with pytest.raises(error) as raised:
        burla.configure(env_vars=wrong)  # type: ignore[arg-type]
    assert PLANTED not in str(raised.value)
    assert burla.configure() == configured.Configuration()


@pytest.mark.parametrize("wrong", ["numpy", 3, [3], [""]])
def test_packages_are_a_list_of_requirements(wrong: object):
    with pytest.raises(InvalidType, match="requirements"):
        burla.configure(packages=wrong)  # type: ignore[arg-type]


def test_a_value_is_in_no_file_of_the_cluster_and_survives_the_kill_of_its_head(
    own_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The caller has it in its own environment too, and a call within the call passes it on."""
    monkeypatch.setenv("TOKEN", PLANTED)

    def call(gate: str | None) -> tuple[str, list[str]]:
        import os
        import time

        import burla

        def inner(x: int) -> str:
            import os

            return os.environ["TOKEN"][-6:]

        until = time.monotonic() + 30
        while gate and not os.path.exists(gate) and time.monotonic() < until:
            time.sleep(0.01)
        return os.environ["TOKEN"][-6:], burla.remote_parallel_map(inner, [0])

    job = burla.submit(call, [str(tmp_path / "gate"), None, None], max_parallelism=1, env_vars={"TOKEN": PLANTED})
    wait_until(lambda: job.progress.running == 1, 15, "a call")
    own_home.processes()["head"].send_signal(signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert job.results() == [(PLANTED[-6:], [PLANTED[-6:]])] * 3
    files = [path for path in own_home.path.rglob("*") if path.is_file()]
    assert any(path.name.startswith("store") or "store" in path.parts for path in files), (
        "it is these that are searched"
    )
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert PLANTED not in repr(job)


def test_a_vault_without_its_key_says_so(tmp_path: Path):
    sealed = Vault(tmp_path).seal(Variables({"TOKEN": PLANTED}))
    assert sealed is not None and PLANTED not in sealed
    assert Vault(tmp_path).open(sealed) == Variables({"TOKEN": PLANTED})
    key = tmp_path / "variables.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.unlink()
    with pytest.raises(burla.StoreDamaged, match=r"variables\.key"):
        Vault(tmp_path).open(sealed)
