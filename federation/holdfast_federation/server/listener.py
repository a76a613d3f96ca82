"""The two gRPC listeners and their TLS: one for first contact, one that demands a device certificate.

The certificate of both is renewed at half of its life without a restart: gRPC asks for it at every new connection.
Ports are never shared with another process, so a second coordinator on the same port fails to start instead of
taking every other connection.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from holdfast.clock import Clock
from holdfast.errors import SettingsError
from holdfast.trust import certificates
from holdfast.wire.limits import MAX_FLEET_MESSAGE_BYTES
from holdfast_federation.enrolment.authority import CertificateAuthority
from holdfast_federation.server.enrolment_service import MAX_ENROLMENT_BYTES

MAX_CONNECTION_AGE_MS = 3_600_000  # an hour: connections come back with fresh certificates
MAX_CONNECTION_GRACE_MS = 60_000


@dataclass(frozen=True, slots=True)
class ListenerBounds:
    """How much one listener does at a time; more is refused with RESOURCE_EXHAUSTED."""

    threads: int
    calls: int
    message_bytes: int


ENROLMENT_BOUNDS = ListenerBounds(threads=4, calls=64, message_bytes=MAX_ENROLMENT_BYTES)
FLEET_BOUNDS = ListenerBounds(threads=16, calls=256, message_bytes=MAX_FLEET_MESSAGE_BYTES)


class ServerCertificate:
    """The coordinator's own TLS certificate, made when asked for and renewed at half life. Thread-safe."""

    def __init__(self, authority: CertificateAuthority, hosts: tuple[str, ...], clock: Clock) -> None:
        self._authority = authority
        self._key = authority.key("server")
        self._hosts = hosts
        self._clock = clock
        self._lock = threading.Lock()
        self._pem = b""
        self._renew_at_utc_ns = 0

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What gRPC needs at a new connection: our key and certificate, and the authority of the devices."""
        return grpc.ssl_server_certificate_configuration(
            [(self._key.to_pem(), self.current())], root_certificates=self._authority.certificate_pem.encode()
        )

    def current(self) -> bytes:
        """The certificate to show now (PEM)."""
        with self._lock:
            if self._clock.utc_ns() >= self._renew_at_utc_ns:
                self._pem = self._authority.issue_server(self._key.public_key, self._hosts)
                start_ns, end_ns = certificates.validity_of(self._pem)
                self._renew_at_utc_ns = (start_ns + end_ns) // 2
            return self._pem


def start_listener(
    name: str,
    address: str,
    handler: grpc.GenericRpcHandler,
    certificate: ServerCertificate,
    bounds: ListenerBounds,
    *,
    client_certificate: bool,
) -> tuple[grpc.Server, int]:
    """Listen on host:port (port 0: any free one). Returns the started server and its port.

    Raises:
        SettingsError: the address cannot be listened on, for example because the port is in use.
    """
    server = grpc.server(
        ThreadPoolExecutor(bounds.threads, thread_name_prefix=name),
        handlers=[handler],
        maximum_concurrent_rpcs=bounds.calls,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", bounds.message_bytes),
            ("grpc.max_send_message_length", MAX_FLEET_MESSAGE_BYTES),
            ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
            ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_GRACE_MS),
        ],
    )
    credentials = grpc.dynamic_ssl_server_credentials(
        certificate.configuration(),
        certificate.configuration,
        require_client_authentication=client_certificate,
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise SettingsError(
            f"cannot listen on {address} ({name}); is the port in use? choose another in settings.toml"
        ) from error
    server.start()
    return server, port
