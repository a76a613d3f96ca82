"""TLS of the serving port: contexts from files, replaced when the files change, and the id in a client's certificate.

Rules: TLS 1.2 at least; ALPN offers h2 and http/1.1; with `client_authority` a client without a certificate of that
authority never gets past the handshake. A renewed certificate is used for new connections; files that cannot be used
leave the old ones in force, and are named in the log. Nothing of TLS is loaded before the first context is made.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import UsageError

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)

ALPN = ("h2", "http/1.1")
# RFC 9113 9.2.2 wants forward secrecy and AEAD of TLS 1.2; TLS 1.3 has nothing else.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_authority` = certificates that sign clients' certificates; None = clients need none."""

    certificate: Path
    key: Path
    client_authority: Path | None = None


class ServerTls:
    """The context for new connections. On the loop's thread, but for `load`."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = self._stamped()
        self.context = self._load()

    def reload_if_changed(self) -> None:
        """Take renewed files into use, if they are whole."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.context = self._load()
        except UsageError as error:
            logger.warning("certificate not reloaded", extra={"reason": str(error)})
        else:
            logger.info("certificate reloaded")

    def _stamped(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(
            None if path is None else _stamp_of(path)
            for path in (self._files.certificate, self._files.key, self._files.client_authority)
        )

    def _load(self) -> ssl.SSLContext:
        import ssl

        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            context.set_ciphers(CIPHERS)
            context.set_alpn_protocols(list(ALPN))
            context.load_cert_chain(files.certificate, files.key)
            if files.client_authority is not None:
                context.load_verify_locations(files.client_authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"certificate {files.certificate} with key {files.key} cannot be used: {error.strerror or error}"
            ) from error
        return context


def spiffe_id_of(certificate: Mapping[str, object] | None) -> str:
    """The one SPIFFE id in a verified client certificate, as `ssl` shows it; empty if there is none or more."""
    names = certificate.get("subjectAltName", ()) if certificate else ()
    assert isinstance(names, tuple)
    ids = [value for kind, value in names if kind == "URI" and value.startswith("spiffe://")]
    return ids[0] if len(ids) == 1 else ""


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
