"""`loop serve` where it ends TLS itself, and `loop health`, which asks it as a container's health check does."""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loop.cli import EXIT_CODES
from loop.domain.errors import ErrorKind

STARTED_WITHIN_S = 30.0
ASKING = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Pair:
    """A certificate for localhost, and its key."""

    cert: Path
    key: Path


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)  # noqa: TID251 - OpenSSL looks at the machine's time as well
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    made.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "LOOP_DATA_DIR": str(tmp_path / "loop"), "PORT": str(port)}


def loop(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loop", *arguments],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def serving(environment: dict[str, str], *arguments: str) -> Iterator[int]:
    """Run `loop serve` until the block ends; yield its port once it listens."""
    port = int(environment["PORT"])
    with subprocess.Popen(
        [sys.executable, "-m", "loop", "serve", *arguments],
        env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + STARTED_WITHIN_S
            while True:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "loop serve did not start"
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.communicate(timeout=30)


def asked(port: int, *, trusting: Path, at_most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[str | None, bytes]:
    """Ask for /health; return the version of TLS that was agreed upon, and the answer."""
    context = ssl.create_default_context(cafile=str(trusting))
    context.maximum_version = at_most
    with (
        socket.create_connection(("127.0.0.1", port), timeout=15) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(ASKING)
        answer = b"".join(iter(lambda: secured.recv(65_536), b""))
        return secured.version(), answer


def test_https_by_tls_1_3_and_by_nothing_older(environment: dict[str, str], pair: Pair) -> None:
    with serving(environment, "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)) as port:
        version, answer = asked(port, trusting=pair.cert)
        assert version == "TLSv1.3"
        head = answer.split(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 200")
        assert b"strict-transport-security" in head
        with pytest.raises(ssl.SSLError):
            asked(port, trusting=pair.cert, at_most=ssl.TLSVersion.TLSv1_2)
        with socket.create_connection(("127.0.0.1", port), timeout=15) as plain:
            plain.sendall(ASKING)
            assert b"200" not in plain.recv(65_536)
        secured = {**environment, "LOOP_TLS_CERT": str(pair.cert), "LOOP_TLS_KEY": str(pair.key)}
        assert loop(secured, "health").stdout == "ready\n"
        assert loop(environment, "health").returncode == EXIT_CODES[ErrorKind.UNAVAILABLE]  # asks by plain HTTP


def test_health_ends_with_8_where_nobody_serves(environment: dict[str, str]) -> None:
    everywhere = "0.0.0.0"  # noqa: S104 - as in a container
    with serving(environment, "--host", everywhere):
        assert loop({**environment, "LOOP_HOST": everywhere}, "health").stdout == "ready\n"
    done = loop(environment, "health")
    assert done.returncode == EXIT_CODES[ErrorKind.UNAVAILABLE]
    assert done.stderr.startswith("not_ready: No answer from 127.0.0.1:")


def test_a_certificate_and_a_key_that_do_not_fit_are_refused(environment: dict[str, str], pair: Pair) -> None:
    done = loop(environment, "serve", "--tls-cert", str(pair.key), "--tls-key", str(pair.cert))
    assert done.returncode == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert "\nunusable_certificate: " in done.stderr
    alone = loop(environment, "serve", "--tls-cert", str(pair.cert))
    assert alone.returncode == EXIT_CODES[ErrorKind.CONFIGURATION]
    assert alone.stderr.startswith("contradicting_settings: One of tls_cert and tls_key is set.")
