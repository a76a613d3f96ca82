"""The supervised child: an unmodified `flower-superlink` on loopback, with its database on disk.

It is a mailbox: it can delay or drop, never forge. TLS on its leg with a certificate of its own, no telemetry, no
update check, nodes authenticated, tasks only for who knows the secret. When it dies it is started again on the same
port and database, and rounds go on.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast.clock import Clock, SystemClock
from holdfast.errors import RoundError
from holdfast.lifecycle import Stop
from holdfast.trust.durable import make_folder, write_atomic

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0  # 3 s on an idle machine; a busy small one takes longer
STOP_TIMEOUT_S = 10.0
RESTART_PAUSE_S = 1.0
POLL_S = 0.2
SECRET_BYTES = 48
CERTIFICATE_DAYS = 3650  # on loopback only; pinned by file, replaced with the folder
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@dataclass(frozen=True, slots=True)
class SuperLinkAddress:
    """Where a SuperLink listens, and what it takes to talk to it. `secret` is empty for one that is not ours."""

    host: str
    port: int
    certificate: bytes  # PEM of the only root to trust
    secret: bytes = b""

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"


def read_address(folder: Path) -> SuperLinkAddress:
    """The address that the running SuperLink of `folder` was started with.

    Raises: RoundError: none was started yet.
    """
    try:
        port = int((folder / "port").read_text(encoding="ascii"))
        return SuperLinkAddress("127.0.0.1", port, (folder / "tls.crt").read_bytes(), (folder / "secret").read_bytes())
    except (OSError, ValueError) as error:
        raise RoundError("the SuperLink is not running; start `holdfast coordinator run`") from error


class SuperLink:
    """Starts the SuperLink of one state folder and keeps it running."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self._folder = folder
        self._clock = clock or SystemClock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running child; 0 if there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> SuperLinkAddress:
        """Start it and return when it answers. Raises: RoundError: it did not come up."""
        make_folder(self._folder)
        prepare_folder(self._folder)
        self._spawn()
        return self._wait_ready()

    def tend(self) -> bool:
        """Start it again if it has died. Returns whether it had to be."""
        if self._process is None or self._process.poll() is None:
            return False
        logger.warning("the SuperLink ended and is started again", extra={"exit_code": self._process.returncode})
        self._spawn()
        self._wait_ready()
        return True

    def run(self, stop: Stop) -> None:
        """Tend it until `stop` is set, then end it. For a lifecycle task; `start` must have returned."""
        try:
            while not stop.wait(RESTART_PAUSE_S):
                self.tend()
        finally:
            self.stop()

    def stop(self) -> None:
        """End the child: ask, then kill."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _spawn(self) -> None:
        program = Path(sys.executable).parent / "flower-superlink"
        if not program.exists():
            raise RoundError(f"{program} is missing; install it with: pip install 'holdfast[coordinator]'")
        port = _usable_port(self._folder)
        write_atomic(self._folder / "port", str(port).encode("ascii"))
        command = [
            *(sys.executable, "-m", "holdfast_federation.rounds.tether", str(os.getpid()), str(program)),
            *("--host", "127.0.0.1", "--port", str(port), "--isolation", "process"),
            *("--ssl-ca-certfile", str(self._folder / "tls.crt"), "--ssl-certfile", str(self._folder / "tls.crt")),
            *("--ssl-keyfile", str(self._folder / "tls.key"), "--enable-supernode-auth"),
            *("--superexec-auth-secret-file", str(self._folder / "secret")),
            *("--database", str(self._folder / "superlink.db"), "--disable-runtime-dependency-installation"),
        ]
        environment = os.environ | QUIET | {"FLWR_HOME": str(self._folder / "home")}
        with (self._folder / "superlink.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_ready(self) -> SuperLinkAddress:
        address = read_address(self._folder)
        deadline_s = self._clock.monotonic_s() + READY_TIMEOUT_S
        never = Stop(self._clock)
        while self._clock.monotonic_s() < deadline_s:
            if self._process is not None and self._process.poll() is not None:
                break
            if is_answering(address):
                return address
            never.wait(POLL_S)
        self.stop()
        raise RoundError(f"the SuperLink did not start; read {self._folder / 'superlink.log'}")


def is_answering(address: SuperLinkAddress) -> bool:
    """Whether an HTTPS server with that certificate answers there."""
    try:
        context = ssl.create_default_context(cadata=address.certificate.decode("ascii"))
        connection = http.client.HTTPSConnection(address.host, address.port, timeout=5.0, context=context)
        connection.request("GET", "/openapi.json")
        connection.getresponse().read(1)
        connection.close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def prepare_folder(folder: Path) -> None:
    """Write the secret and the certificate of a fresh folder; keeps what is there."""
    if not (folder / "secret").exists():
        write_atomic(folder / "secret", secrets.token_bytes(SECRET_BYTES))
    if not (folder / "tls.crt").exists():
        key, certificate = _loopback_certificate()
        write_atomic(folder / "tls.key", key)
        write_atomic(folder / "tls.crt", certificate)


def _loopback_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1: (key PEM, certificate PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "holdfast superlink on loopback")])
    now = datetime.fromtimestamp(SystemClock().utc_ns() / 1e9, tz=UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()), certificate.public_bytes(encoding)


def _usable_port(folder: Path) -> int:
    """The port of the last start if it is free, so that run workers find it again; else a free one."""
    try:
        wanted = int((folder / "port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        wanted = 0
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RoundError("no free port on loopback for the SuperLink")
