"""What others on this machine can reach: every listening socket of every process that we start."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from burla.clusters import local, security
from tests.conftest import Ledger, Scripts, cluster_processes, process_kind, wait_until

ACCEPTS = 0x10000  # the flag of a listening Unix socket in /proc/net/unix
SILENT_S = 1.0


@dataclass(frozen=True)
class Listening:
    """Sockets that take connections or datagrams, by the kind of the process that has them."""

    tcp: dict[tuple[str, int], str]
    udp: dict[tuple[str, int], str]
    unix: dict[str, str]


def listening(processes: dict[int, str]) -> Listening:
    tcp, udp, unix = {}, {}, {}
    accepting = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & ACCEPTS:
            accepting[fields[6]] = fields[7] if len(fields) > 7 else "unnamed"
    for pid, kind in processes.items():
        process = psutil.Process(pid)
        for connection in process.net_connections("inet"):
            if connection.type == socket.SOCK_DGRAM:
                udp[connection.laddr[:2]] = kind
            elif connection.status == psutil.CONN_LISTEN:
                tcp[connection.laddr[:2]] = kind
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                inode = os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]")
            except FileNotFoundError:
                continue  # the descriptor with which this very listing was made
            if inode in accepting:
                unix[accepting[inode]] = kind
    return Listening(tcp, udp, unix)


@pytest.fixture(scope="module")
def while_a_job_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, str]]:
    """Client, supervisor, head, node, zygote, children and the calls of a nested job, all of them at work."""
    folder = tmp_path_factory.mktemp("sockets")
    scripts, ledger = Scripts(folder), Ledger(folder / "ledger")
    client = scripts.start(
        """
        import sys, time
        from burla import remote_parallel_map
        def inner(x, ledger=sys.argv[1]):
            open(ledger, "a").write("running\\n")
            time.sleep(300)
        def outer(x):
            remote_parallel_map(inner, [x])
        remote_parallel_map(outer, range(2))
        """,
        str(ledger.path),
    )
    wait_until(lambda: len(ledger.entries()) == 2, 30, "two nested calls")
    time.sleep(1.5)  # the job lasts longer than a moment: the head has its own client by now
    processes = {process.pid: process_kind(process) for process in cluster_processes(os.environ)}
    assert set(processes.values()) == {"supervisor", "head", "node", "zygote", "child"}
    assert len(processes) >= 8
    yield processes | {client.pid: "client", os.getpid(): "this process"}
    client.terminate()
    client.communicate(timeout=30)


@pytest.fixture(scope="module")
def ports(while_a_job_runs: dict[int, str]) -> list[int]:
    return [port for _, port in listening(while_a_job_runs).tcp]


def test_head_and_node_listen_on_loopback_and_nobody_else_anywhere(while_a_job_runs: dict[int, str]):
    found = listening(while_a_job_runs)
    assert sorted(found.tcp.values()) == ["head", "node"]
    assert {host for host, _ in found.tcp} == {"127.0.0.1"}
    assert found.udp == {} and found.unix == {str(local.folder() / "head.sock"): "head"}
    assert stat.S_IMODE((local.folder() / "head.sock").stat().st_mode) == 0o600


def test_the_list_of_sockets_shows_what_is_there(tmp_path: Path):
    """Of a process with one of each kind: the test above can fail."""
    path = str(tmp_path / "socket")
    with (
        socket.create_server(("0.0.0.0", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(path)
        unix.listen()
        found = listening({os.getpid(): "this"})
        assert tcp.getsockname() in found.tcp and udp.getsockname() in found.udp and path in found.unix


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x01" + bytes(7) + b"\x10" + bytes(23)])
def test_who_does_not_speak_tls_hears_nothing(ports: list[int], words: bytes):
    """Nothing but the alert with which TLS ends a connection."""
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=SILENT_S) as plain:
            plain.sendall(words)
            try:
                heard = plain.recv(1000)
            except (TimeoutError, ConnectionResetError):
                heard = b""
        assert heard[:2] in (b"", b"\x15\x03"), heard


def context_with(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=local.folder() / "keys" / "ca.pem")
    context.check_hostname = False
    if certificate is not None:
        context.load_cert_chain(certificate / "keys" / "cert.pem", certificate / "keys" / "key.pem")
    return context


def greeting(port: int, context: ssl.SSLContext) -> bytes:
    """Return what a server says first; Dask's greets at once."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.recv(1000)


def test_the_clusters_own_certificate_is_greeted_and_no_other(ports: list[int], tmp_path: Path):
    (tmp_path / "other").mkdir(mode=0o700)
    security.create_keys(tmp_path / "other")
    for port in ports:
        assert greeting(port, context_with(local.folder())) != b""
        for certificate in (None, tmp_path / "other"):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                greeting(port, context_with(certificate))


def test_old_versions_of_tls_are_refused(ports: list[int]):
    context = context_with(local.folder())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in ports:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            greeting(port, context)


# another user ---------------------------------------------------------------------------------------------------------

NOBODY = 65534
# tries everything first as who started it, which also imports all that it needs; then as another user
INTRUDER = """
import os, socket, sys
from pathlib import Path
from distributed import Client, Security

folder, ports, own, uid = Path(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), int(sys.argv[4])

def keys(folder):
    ca, cert, key = ((folder / "keys" / name).read_text() for name in ("ca.pem", "cert.pem", "key.pem"))
    return Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)

def attempt(who, name, work):
    try:
        print(who, name, "GOT", work())
    except Exception as error:
        print(who, name, type(error).__name__)

def into(address, **options):
    return lambda: Client(address, timeout=2, **options).run_on_scheduler(lambda: "in")

right, wrong = keys(folder), keys(own)
for who in ("owner", "other"):
    attempt(who, "list", lambda: len(list(folder.iterdir())))
    for name in ("keys/ca.pem", "keys/cert.pem", "keys/key.pem", "ready.json", "log.txt"):
        attempt(who, name, lambda: len((folder / name).read_bytes()))
    attempt(who, "head.sock", lambda: socket.socket(socket.AF_UNIX).connect(str(folder / "head.sock")) or "in")
    for port in ports:
        attempt(who, "plain", into(f"tcp://127.0.0.1:{port}"))
        attempt(who, "wrong", into(f"tls://127.0.0.1:{port}", security=wrong))
    attempt(who, "right", into(f"tls://127.0.0.1:{ports[0]}", security=right))
    if who == "owner":
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_no_key_and_runs_no_code(
    ports: list[int], while_a_job_runs: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same program gets in where it may: as the owner, and with the right keys, which it kept."""
    (tmp_path / "own").mkdir(mode=0o700)
    security.create_keys(tmp_path / "own")
    folder = local.folder()
    tcp = listening(while_a_job_runs).tcp
    head_first = sorted(ports, key=lambda port: tcp["127.0.0.1", port] != "head")
    arguments = [str(folder), ",".join(map(str, head_first)), str(tmp_path / "own"), str(NOBODY)]
    monkeypatch.delenv("TMPDIR", raising=False)
    above = [folder.parent, folder.parent.parent]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in above]
    try:
        for path in above:
            path.chmod(0o755)  # so that only the cluster's own folder is in the way
        command = [sys.executable, "-c", INTRUDER, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    finally:
        for path, mode in zip(above, modes, strict=True):
            path.chmod(mode)
    found: dict[str, list[list[str]]] = {"owner": [], "other": []}
    for line in done.stdout.splitlines():
        who, *rest = line.split()
        found[who].append(rest)
    files = ["list", "keys/ca.pem", "keys/cert.pem", "keys/key.pem", "ready.json", "log.txt", "head.sock"]
    assert [words[:2] for words in found["owner"][:7]] == [[name, "GOT"] for name in files], done.stderr
    assert found["other"][:7] == [[name, "PermissionError"] for name in files]
    for who, lines in found.items():
        refused = [
            (name, error in ("OSError", "CommClosedError", "FatalCommClosedError")) for name, error in lines[7:-1]
        ]
        assert refused == [("plain", True), ("wrong", True)] * len(ports), (who, done.stdout, done.stderr)
        assert lines[-1] == ["right", "GOT", "in"], (who, done.stderr)
