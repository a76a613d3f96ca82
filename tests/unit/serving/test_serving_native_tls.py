"""TLS on the native front: HTTP/2 by ALPN, client certificates, renewed and unusable files."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_client import Http2Client
from tests.fakes.serving import TIMEOUT_S, exchange, http_infer, pool_of, running
from tests.fakes.tls_site import Site

from holdfast.errors import UsageError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.authorisation import rules_of
from holdfast.serving.native.tls import ServerTls, TlsFiles
from holdfast.serving.server import Address, Server, ServerOptions

ONE = np.ones((1, 4), dtype=np.float32)
REQUEST = oip.encode_request(TensorRequest("m", "", "id", {"x": ONE}))
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()


def doubled(message: bytes) -> list[list[float]]:
    got: list[list[float]] = oip.decode_response(message).outputs["y"].tolist()
    return got


@contextmanager
def serving_tls(files: TlsFiles, *allowed_ids: str) -> Iterator[Address]:
    options = ServerOptions(Address("127.0.0.1", 0), front="native", tls=files, rules=rules_of(allowed_ids))
    with running(pool_of({"m": models.scale(2.0)}), options) as address:
        yield address


def test_tls_offers_http2_and_serves(tmp_path: Path) -> None:
    site = Site(tmp_path)

    with serving_tls(site.files(mutual=False)) as address:
        connection = site.connect(address, site.client_context())
        assert connection.selected_alpn_protocol() == "h2"
        with Http2Client(address, connection) as client:
            assert doubled(client.ask(REQUEST).body[5:]) == [[2, 2, 2, 2]]


def test_plain_text_at_a_tls_port_harms_nobody(tmp_path: Path) -> None:
    site = Site(tmp_path)

    with serving_tls(site.files(mutual=False)) as address:
        exchange(address, http_infer("m", JSON_ONE))
        with Http2Client(address, site.connect(address, site.client_context())) as client:
            assert client.ask(REQUEST).grpc_status == (0, "")


def test_mutual_tls_lets_in_who_is_on_the_list(tmp_path: Path) -> None:
    site = Site(tmp_path)

    with serving_tls(site.files(mutual=True), "spiffe://example.org/device/7") as address:
        with Http2Client(address, site.connect(address, site.client_context("7"))) as client:
            assert client.ask(REQUEST).grpc_status == (0, "")
        with Http2Client(address, site.connect(address, site.client_context("8"))) as client:
            assert client.ask(REQUEST).grpc_status[0] in (7, 16)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_without_certificate(site, address)


def ask_without_certificate(site: Site, address: Address) -> None:
    """In TLS 1.3 the refusal comes after the client's part of the handshake is done: as an error, or as the end."""
    with Http2Client(address, site.connect(address, site.client_context())) as client:
        client.wait_closed()
    raise ConnectionError("the server closed")


def test_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with serving_tls(site.files(mutual=False)) as address:
        with Http2Client(address, site.connect(address, site.client_context())) as old:
            before = old.socket.getpeercert(binary_form=True)  # type: ignore[attr-defined]  # it is TLS
            site.renew()

            deadline = time.monotonic() + TIMEOUT_S
            seen = before
            while seen == before and time.monotonic() < deadline:
                with site.connect(address, site.client_context()) as connection:
                    seen = connection.getpeercert(binary_form=True)
            assert seen != before
            assert old.ask(REQUEST).grpc_status == (0, "")


def test_half_written_certificate_leaves_the_old_one_in_force(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(tmp_path)
    tls = ServerTls(site.files(mutual=False))
    before = tls.context

    site.write("server.pem", b"-----BEGIN CERTIFICATE-----\nMII")
    tls.reload_if_changed()

    assert tls.context is before
    assert "certificate not reloaded" in caplog.text


def test_unusable_certificate_is_named(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path / "absent.pem", tmp_path / "absent.key")
    server = Server(pool_of({}), options=ServerOptions(Address("127.0.0.1", 0), front="native", tls=files))

    with pytest.raises(UsageError, match=r"absent\.pem .* cannot be used"):
        server.start()
