from __future__ import annotations

import asyncio
import os
import shlex
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask.config
import pytest
from cryptography import x509
from distributed import Security
from distributed.comm import connect, listen

from burla.clusters import security
from burla.clusters.security import check_private, create_keys, load_security, private_folder
from burla.errors import UnsafeFiles

FILES = ("ca.pem", "cert.pem", "key.pem")
WEAKER = {"require-encryption": False, "tls.min-version": 1.2, "tls.max-version": 1.2, "tls.ciphers": "AES128-SHA"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The folder of a cluster, with keys."""
    folder = tmp_path / "mine"
    create_keys(folder)
    return folder


@pytest.fixture
def keys(cluster: Path) -> Path:
    return cluster / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_keys_and_their_folders_are_for_the_owner_only(tmp_path: Path):
    before = os.umask(0)
    try:
        create_keys(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [mode(tmp_path / path) for path in ("a", "a/b", "a/b/keys")] == [0o700] * 3
    assert {path.name: mode(path) for path in (tmp_path / "a/b/keys").iterdir()} == dict.fromkeys(FILES, 0o600)
    assert os.listdir(tmp_path / "a/b") == ["keys"]


def test_keys_and_files_that_are_there_stay(tmp_path: Path):
    (tmp_path / "log").touch()
    create_keys(tmp_path)
    before = {name: (tmp_path / "keys" / name).read_bytes() for name in FILES}
    create_keys(tmp_path)
    assert {name: (tmp_path / "keys" / name).read_bytes() for name in FILES} == before
    assert sorted(os.listdir(tmp_path)) == ["keys", "log"]


def test_processes_that_create_keys_at_once_end_up_with_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make = security._new_certificates

    def make_while_another_process_does() -> dict[str, bytes]:
        monkeypatch.undo()
        program = (
            f"import pathlib; from burla.clusters import security as s; s.create_keys(pathlib.Path({str(tmp_path)!r}))"
        )
        subprocess.run([sys.executable, "-c", program], check=True)
        others.update({name: (tmp_path / "keys" / name).read_bytes() for name in FILES})
        return make()

    others: dict[str, bytes] = {}
    monkeypatch.setattr(security, "_new_certificates", make_while_another_process_does)
    create_keys(tmp_path)
    assert {name: (tmp_path / "keys" / name).read_bytes() for name in FILES} == others
    assert os.listdir(tmp_path) == ["keys"]


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem"])
def test_a_clock_that_is_behind_and_a_long_lived_cluster_are_fine(keys: Path, name: str):
    cert = x509.load_pem_x509_certificate((keys / name).read_bytes())
    assert cert.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=59)
    assert cert.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)


@pytest.mark.parametrize("name", [".", "keys", *(f"keys/{name}" for name in FILES)])
def test_keys_that_others_can_read_are_refused_with_the_command_that_mends_it(cluster: Path, name: str):
    path = cluster / name
    path.chmod(0o755 if path.is_dir() else 0o644)
    with pytest.raises(UnsafeFiles, match=r"other users can get at it") as caught:
        load_security(cluster)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    subprocess.run(shlex.split(str(caught.value).rpartition("To mend that: ")[2]), check=True)
    assert mode(path) == (0o700 if path.is_dir() else 0o600)
    load_security(cluster)


@as_root
@pytest.mark.parametrize("name", [".", "keys", *(f"keys/{name}" for name in FILES)])
def test_keys_of_another_user_are_refused(cluster: Path, name: str):
    os.chown(cluster / name, 54321, -1)
    with pytest.raises(UnsafeFiles, match=r"belongs to user 54321, not to .*BURLA_HOME.* sudo chown -R") as caught:
        load_security(cluster)
    assert caught.value.path == cluster / name


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_key_is_refused(cluster: Path, keys: Path, tmp_path: Path, name: str):
    (keys / name).rename(tmp_path / name)
    (keys / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeFiles, match="symbolic link"):
        load_security(cluster)


def test_a_cluster_without_keys_is_named(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UnsafeFiles, match=rf"{folder}.* is missing"):
            load_security(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_broken_key_is_named_and_can_be_made_anew(cluster: Path, keys: Path, name: str):
    (keys / name).write_text("")
    with pytest.raises(UnsafeFiles, match=r"cannot be used .* rm -rf"):
        load_security(cluster)
    (keys / name).unlink()
    for use in (load_security, create_keys):
        with pytest.raises(UnsafeFiles, match=rf"{name} is missing.* rm -rf") as caught:
            use(cluster)
    subprocess.run(shlex.split(str(caught.value).rpartition("new keys made: ")[2]), check=True)
    create_keys(cluster)
    load_security(cluster)


def test_the_users_dask_configuration_does_not_weaken_the_connection(cluster: Path):
    weaker = {f"distributed.comm.{key}": value for key, value in WEAKER.items()}
    with dask.config.set(weaker):
        loaded = load_security(cluster)
    context = loaded.get_connection_args("client")["ssl_context"]
    assert (context.minimum_version, loaded.require_encryption) == (ssl.TLSVersion.TLSv1_3, True)
    assert loaded.tls_ciphers is None
    assert loaded.tls_max_version is None


def test_a_private_folder_is_made_with_its_parents_or_kept(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert private_folder(folder) == private_folder(folder) == folder
    assert [mode(folder), mode(folder.parent)] == [0o700, 0o700]


def test_a_folder_that_is_not_private_is_refused(tmp_path: Path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o750)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    (tmp_path / "file").touch(mode=0o600)
    for name, reason in {"open": "mode 0750", "link": "symbolic link", "file": "is a file"}.items():
        with pytest.raises(UnsafeFiles, match=reason):
            private_folder(tmp_path / name)
    check_private(tmp_path / "file")


async def greet(server: Security, connection_args: dict[str, Any], scheme: str = "tls") -> list[str]:
    """Return what a listener with the keys of `server` hears of a client with these arguments."""
    heard: list[str] = []

    async def handle(comm: Any) -> None:
        heard.append(await comm.read())
        await comm.write("welcome")

    async with listen("tls://127.0.0.1:0", handle, **server.get_listen_args("scheduler")) as listener:
        address = listener.contact_address.replace("tls", scheme)
        try:
            comm = await connect(address, timeout=1, **connection_args)
            await comm.write("hello")
            await comm.read()
            comm.abort()
        except OSError:
            assert heard == []
    return heard


def test_dask_processes_with_the_same_keys_talk(cluster: Path):
    loaded = load_security(cluster)
    for role in ("client", "worker", "scheduler"):
        assert asyncio.run(greet(loaded, loaded.get_connection_args(role))) == ["hello"]


def test_a_dask_process_with_keys_of_another_cluster_is_refused(cluster: Path, tmp_path: Path):
    create_keys(tmp_path / "other")
    args = load_security(tmp_path / "other").get_connection_args("client")
    assert asyncio.run(greet(load_security(cluster), args)) == []
    args["ssl_context"].verify_mode = ssl.CERT_NONE  # a client that does not mind whom it talks to
    assert asyncio.run(greet(load_security(cluster), args)) == []


def test_a_dask_process_without_keys_is_refused(cluster: Path, keys: Path):
    anonymous = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    args = {"ssl_context": anonymous, "require_encryption": True}
    assert asyncio.run(greet(load_security(cluster), args)) == []
    anonymous.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    assert asyncio.run(greet(load_security(cluster), args)) == ["hello"]
    assert asyncio.run(greet(load_security(cluster), {}, scheme="tcp")) == []


def test_a_server_with_other_keys_is_refused(cluster: Path, tmp_path: Path):
    create_keys(tmp_path / "other")
    args = load_security(cluster).get_connection_args("client")
    assert asyncio.run(greet(load_security(tmp_path / "other"), args)) == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_certificate_names_this_host_and_passes_the_strictest_checks(keys: Path, host: str):
    strict = ssl.create_default_context(cafile=str(keys / "ca.pem"))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(incoming, outgoing, server_side=True),
        strict.wrap_bio(outgoing, incoming, server_hostname=host),
    ]
    for end in (ends[1], ends[0], ends[1], ends[0]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert ends[0].version() == ends[1].version() == "TLSv1.3"
