"""An authority with a server's certificate in files, for tests over TLS."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from tests.fakes.serving import TIMEOUT_S

from holdfast.clock import SystemClock
from holdfast.serving.native.tls import TlsFiles
from holdfast.serving.server import Address
from holdfast.trust.certificates import Authority, create_authority, create_csr, issue_device, issue_server
from holdfast.trust.keys import PrivateKey

NOW_NS = SystemClock().utc_ns()


class Site:
    """An authority with a server's certificate, in files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key = PrivateKey.generate("ecdsa-p256")
        self.authority = Authority(key, create_authority(key, "example.org", NOW_NS))
        self.write("ca.pem", self.authority.certificate)
        self.renew()

    def renew(self) -> None:
        """A new key and certificate for the server."""
        key = PrivateKey.generate("ecdsa-p256")
        self.write("server.key", key.to_pem())
        self.write("server.pem", issue_server(self.authority, key.public_key, ("127.0.0.1",), NOW_NS))

    def write(self, name: str, data: bytes) -> None:
        (self.folder / name).write_bytes(data)

    def files(self, *, mutual: bool) -> TlsFiles:
        at = self.folder
        return TlsFiles(at / "server.pem", at / "server.key", at / "ca.pem" if mutual else None)

    def client_context(self, device_id: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.set_alpn_protocols(["h2"])
        if device_id:
            key = PrivateKey.generate("ecdsa-p256")
            certificate = issue_device(self.authority, create_csr(key, device_id), device_id, NOW_NS)
            self.write("client.pem", key.to_pem() + certificate)
            context.load_cert_chain(self.folder / "client.pem")
        return context

    def connect(self, address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
        plain = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
