"""TLS on every front: both protocols, who the client is, renewed certificates, and what is not TLS."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tests.fakes import served_models as models
from tests.fakes.serving import INFER, TIMEOUT_S, exchange, pool_of
from tests.fakes.tls_site import Site
from tritonclient.utils import InferenceServerException

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.authorisation import rules_of
from holdfast.serving.server import Address, Front, Server, ServerOptions

KNOWN = "spiffe://example.org/device/7"
ONE = np.ones((1, 4), dtype=np.float32)
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})
BIG = np.arange(2_000_000, dtype=np.float32).reshape(500_000, 4)  # 8 MB: more than any buffer on its way


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@contextmanager
def serving(site: Site, front: Front, *allowed_ids: str, mutual: bool = False) -> Iterator[Address]:
    options = ServerOptions(
        Address("127.0.0.1", 0), front=front, tls=site.files(mutual=mutual), rules=rules_of(allowed_ids)
    )
    server = Server(pool_of({"m": models.scale(2.0)}), options=options)
    try:
        yield server.start()
    finally:
        server.stop(2.0)


def client(site: Site, address: Address, device_id: str = "") -> tritonclient.grpc.InferenceServerClient:
    """An unmodified client, with a certificate of its own if it has a name."""
    extra = {}
    if device_id:
        site.client_context(device_id)  # writes client.pem
        pem = (site.folder / "client.pem").read_text()
        key, certificate = pem[: pem.index("-----BEGIN CERT")], pem[pem.index("-----BEGIN CERT") :]
        (site.folder / f"{device_id}.key").write_text(key)
        (site.folder / f"{device_id}.pem").write_text(certificate)
        extra = {
            "private_key": str(site.folder / f"{device_id}.key"),
            "certificate_chain": str(site.folder / f"{device_id}.pem"),
        }
    return tritonclient.grpc.InferenceServerClient(
        str(address), ssl=True, root_certificates=str(site.folder / "ca.pem"), **extra
    )


def ask(of: tritonclient.grpc.InferenceServerClient, x: np.ndarray = ONE) -> np.ndarray:
    tensor = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    answer: np.ndarray = of.infer("m", [tensor]).as_numpy("y")
    return answer


def over_https(
    address: Address, context: ssl.SSLContext, method: str = "POST", path: str = "/v2/models/m/infer"
) -> int:
    context.set_alpn_protocols(["http/1.1"])
    connection = http.client.HTTPSConnection(address.host, address.port, context=context, timeout=TIMEOUT_S)
    try:
        for _ in range(2):  # the second on the same connection
            connection.request(method, path, BODY if method == "POST" else None)
            response = connection.getresponse()
            response.read()
        return response.status
    finally:
        connection.close()


def test_clients_of_both_protocols_are_answered(site: Site, front: Front) -> None:
    with serving(site, front) as address, client(site, address) as triton:
        assert ask(triton).tolist() == [[2, 2, 2, 2]]
        assert over_https(address, site.client_context()) == 200


def test_large_tensors_pass_whole(site: Site, front: Front) -> None:
    with serving(site, front) as address, client(site, address) as triton:
        assert np.array_equal(ask(triton, BIG), 2 * BIG)


def test_client_that_speaks_both_is_answered_over_http(site: Site, front: Front) -> None:
    context = site.client_context()
    with serving(site, front) as address:
        context.set_alpn_protocols(["h2", "http/1.1"])
        with site.connect(address, context) as connection:
            chosen = connection.selected_alpn_protocol()

    assert chosen == ("h2" if front == "native" else "http/1.1")  # over HTTP/2 the grpcio front has gRPC only


def test_only_those_on_the_list_may_ask_over_both_protocols(site: Site, front: Front) -> None:
    with serving(site, front, KNOWN, mutual=True) as address:
        with client(site, address, "7") as known, client(site, address, "8") as other:
            assert ask(known).tolist() == [[2, 2, 2, 2]]
            with pytest.raises(InferenceServerException, match="not on the allow-list"):
                ask(other)
            assert ask(known).tolist() == [[2, 2, 2, 2]]  # who asked in between is not confused with it
        assert over_https(address, site.client_context("7")) == 200
        assert over_https(address, site.client_context("8")) == 403


def test_streams_carry_the_clients_id_too(site: Site, front: Front) -> None:
    request = oip.encode_request(TensorRequest("m", "", "", {"x": ONE}))

    def streamed(address: Address, device_id: str) -> str:
        site.client_context(device_id)
        pem = (site.folder / "client.pem").read_bytes()
        at = pem.index(b"-----BEGIN CERT")
        credentials = grpc.ssl_channel_credentials((site.folder / "ca.pem").read_bytes(), pem[:at], pem[at:])
        with grpc.secure_channel(str(address), credentials) as channel:
            stream = channel.stream_stream(INFER.replace("ModelInfer", "ModelStreamInfer"))
            (answer,) = stream(iter([request]), timeout=TIMEOUT_S)
        return str(oip_pb2.ModelStreamInferResponse.FromString(answer).error_message)

    with serving(site, front, KNOWN, mutual=True) as address:
        assert streamed(address, "7") == ""
        assert "not on the allow-list" in streamed(address, "8")


def test_client_without_a_certificate_is_not_let_in(site: Site, front: Front) -> None:
    with serving(site, front, KNOWN, mutual=True) as address:
        with pytest.raises((ssl.SSLError, OSError)):
            over_https(address, site.client_context())
        with client(site, address) as nobody, pytest.raises(InferenceServerException):
            ask(nobody)


def test_plain_text_at_a_tls_port_is_refused_and_harms_nobody(site: Site, front: Front) -> None:
    with serving(site, front) as address:
        assert exchange(address, b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")[:5] != b"HTTP/"
        assert over_https(address, site.client_context(), "GET", "/v2/health/live") == 200


def test_failed_handshake_of_the_fallback_is_counted(site: Site) -> None:
    with serving(site, "grpcio") as address:
        exchange(address, b"GET / HTTP/1.1\r\n\r\n")

        context = site.client_context()
        context.set_alpn_protocols(["http/1.1"])
        connection = http.client.HTTPSConnection(address.host, address.port, context=context, timeout=TIMEOUT_S)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()

    assert re.search(r'holdfast_peer_refusals_total\{layer="connection",reason="handshake"\} 1\n', page)


def test_renewed_certificate_is_shown_to_new_connections(site: Site, front: Front) -> None:
    def shown(address: Address) -> bytes:
        with site.connect(address, site.client_context()) as connection:
            found = connection.getpeercert(binary_form=True)
        assert found is not None
        return found

    with serving(site, front) as address:
        before = shown(address)
        site.renew()
        for _ in range(int(TIMEOUT_S / 0.1)):
            if shown(address) != before:
                break
            threading.Event().wait(0.1)  # the native front looks once a second
        assert shown(address) != before


def test_stop_ends_open_connections(site: Site, front: Front) -> None:
    with serving(site, front) as address:
        held = site.connect(address, site.client_context())
        held.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        assert held.recv(9)

    with held:
        assert b"".join(iter(lambda: held.recv(65_536), b"")) != b"never", "it ends"


def connected(site: Site, address: Address, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection, as soon as there is room for one."""
    for _ in range(int(TIMEOUT_S / 0.05)):
        try:
            return site.connect(address, context)
        except OSError:
            threading.Event().wait(0.05)
    raise AssertionError("no place became free")


def test_connections_in_tls_are_counted_once_against_their_bound(site: Site) -> None:
    options = ServerOptions(Address("127.0.0.1", 0), front="grpcio", tls=site.files(mutual=False), max_connections=2)
    server = Server(pool_of({"m": models.scale(2.0)}), options=options)
    address = server.start()
    context = site.client_context()
    context.set_alpn_protocols(["http/1.1"])
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    try:
        with site.connect(address, context) as first, site.connect(address, context) as second:
            for held in (first, second):
                held.sendall(live)
                assert held.recv(1024).startswith(b"HTTP/1.1 200")
            with pytest.raises(OSError):
                site.connect(address, context)
        for _ in range(5):
            with connected(site, address, context) as other:  # soon the places are free again
                other.sendall(live)
                assert other.recv(1024).startswith(b"HTTP/1.1 200")
    finally:
        server.stop(2.0)
