"""The keys of a cluster: who holds them runs code on it, and nobody else can talk to it.

One cluster is one trust domain: Dask knows no roles, so head, nodes and clients show the same certificate. It is signed
by a CA of its own, whose private key is never written: no second certificate can be issued.
"""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import shutil
import ssl
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from burla.errors import UnsafeFiles

if TYPE_CHECKING:
    from distributed import Security

FOLDER = "keys"  # of the cluster's folder; apart, so that one rename brings all three files or none
CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"
VALID_DAYS = 3650
BACKDATED_HOURS = 1  # the clock of another machine may be behind, and a certificate of the future is refused


def create_keys(folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Put keys/ca.pem, cert.pem and key.pem (0600) into a cluster's `folder` (0700), unless its keys are there already.

    They are new ones, unless `files` has them: name → PEM. When several processes do so at once, all of them end up
    with the keys of one. Raises UnsafeFiles.
    """
    keys = private_folder(folder) / FOLDER
    if os.path.lexists(keys):
        check_keys(keys)
        return
    made = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=folder))
    try:
        for name, pem in (files or _new_certificates()).items():
            _write_private(made / name, pem)
        made.rename(keys)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        check_keys(keys)  # another process was faster
    finally:
        shutil.rmtree(made, ignore_errors=True)


def load_security(folder: Path) -> Security:
    """Return what Dask needs to use the keys of the cluster in `folder`, in any role. Raises UnsafeFiles."""
    from distributed import Security

    keys = folder / FOLDER
    check_keys(keys)
    cert, key = str(keys / CERT), str(keys / KEY)
    security = Security(
        require_encryption=True,
        tls_ca_file=str(keys / CA),
        tls_client_cert=cert,
        tls_client_key=key,
        tls_scheduler_cert=cert,
        tls_scheduler_key=key,
        tls_worker_cert=cert,
        tls_worker_key=key,
        # given here because what is not given comes from the user's Dask configuration
        tls_ciphers=None,
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        tls_max_version=None,
    )
    try:
        security.get_connection_args("client")
    except ssl.SSLError as error:
        raise _unusable(keys, f"they cannot be used ({error})") from error
    return security


def private_folder(path: Path) -> Path:
    """Return `path`, made with mode 0700 as its missing parents are. Raises UnsafeFiles if it is not private."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue  # another process was faster
    check_private(path)
    if not path.is_dir():
        raise UnsafeFiles(f"{path} must be a folder, and is a file. To mend that: rm {_quote(path)}", path=path)
    return path


def check_private(path: Path) -> None:
    """Raise UnsafeFiles unless `path` is a file or folder of this user that nobody else can read or write."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeFiles(
            f"{path} is a symbolic link, and where it leads could be changed. "
            f"To remove the link, not what it leads to: rm {_quote(path)}",
            path=path,
        )
    user = os.geteuid()
    if status.st_uid != user:
        raise UnsafeFiles(
            f"{path} belongs to {_user_name(status.st_uid)}, not to {_user_name(user)}, who runs this. Set BURLA_HOME "
            f"to a folder of your own; or, if you trust what is in it: sudo chown -R {user} {_quote(path)}",
            path=path,
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        wanted = "700" if stat.S_ISDIR(status.st_mode) else "600"
        raise UnsafeFiles(
            f"{path} has mode {mode:04o}: other users can get at it, and so run code as you. "
            f"To mend that: chmod {wanted} {_quote(path)}",
            path=path,
        )


def check_keys(keys: Path) -> None:
    """Raise UnsafeFiles unless the keys of a cluster are there, and nobody else can get at them."""
    try:
        for path in (keys.parent, keys, *(keys / name for name in (CA, CERT, KEY))):
            check_private(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unusable(keys, f"{error.filename} is missing") from error


def _unusable(keys: Path, reason: str) -> UnsafeFiles:
    return UnsafeFiles(
        f"{keys} must hold the keys of a cluster: {reason}. To have new keys made: rm -rf {_quote(keys)}",
        path=keys,
    )


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)


def _new_certificates() -> dict[str, bytes]:
    # cryptography takes 60 ms to import, and most processes only load keys
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "burla cluster CA")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "burla cluster")])

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, is_ca: bool) -> x509.CertificateBuilder:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=BACKDATED_HOURS))
            .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, decipher_only=False, **usage
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    hosts = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    ca = certificate(ca_name, ca_key.public_key(), is_ca=True)
    leaf = (
        certificate(name, key.public_key(), is_ca=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    )
    return {
        CA: ca.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM),
        CERT: leaf.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM),
        KEY: key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
