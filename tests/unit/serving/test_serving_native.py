"""The native front where it goes beyond the other: TLS, floods, slow peers, large messages, draining, memory."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import hpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import INFER, TIMEOUT_S, call, exchange, http_infer, pool_of, running, serving, status_of
from tests.fakes.tls_site import Site
from tests.fakes.wire import Wire

from holdfast.errors import UsageError
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving import oip, oip_pb2
from holdfast.serving.authorisation import rules_of
from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.native.backend import Backend, NativeOptions, PeerFacts
from holdfast.serving.native.budget import Budget
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.front import Calls, NativeFront
from holdfast.serving.native.http1_peer import Http1Peer
from holdfast.serving.native.http2_peer import Http2Peer
from holdfast.serving.native.tls import ServerTls, TlsFiles
from holdfast.serving.parameters import OutputForm
from holdfast.serving.server import Address, Server, ServerOptions

ONE = np.ones((1, 4), dtype=np.float32)
REQUEST = oip.encode_request(TensorRequest("m", "", "id", {"x": ONE}))
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()
GOAWAY = frames.goaway(2**31 - 1, ErrorCode.NO_ERROR)
MAX_BYTES = 8 * 1024**2
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving(pool_of({"m": models.scale(2.0), "i": models.identity()}), max_message_bytes=MAX_BYTES) as at:
        yield at


def doubled(message: bytes) -> list[list[float]]:
    got: list[list[float]] = oip.decode_response(message).outputs["y"].tolist()
    return got


def assert_serves(address: Address) -> None:
    assert doubled(call(address, REQUEST)) == [[2, 2, 2, 2]]
    assert status_of(exchange(address, http_infer("m", JSON_ONE))) == 200


def test_trace_context_comes_back_and_a_malformed_one_does_not(address: Address) -> None:
    with Http2Client(address) as client:
        good = client.ask(REQUEST, headers=(*GRPC, ("traceparent", TRACE)))
        bad = client.ask(REQUEST, headers=(*GRPC, ("traceparent", TRACE + "x")))

    assert good.trailers["traceparent"] == TRACE
    assert "traceparent" not in bad.trailers
    assert good.grpc_status == bad.grpc_status == (0, "")


def test_gzip_message_is_expanded(address: Address) -> None:
    with Http2Client(address) as client:
        answer = client.ask(gzip.compress(REQUEST), 1, (*GRPC, ("grpc-encoding", "gzip")))

    assert doubled(answer.body[5:]) == [[2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("message", "flag", "more", "status", "text"),
    [
        (REQUEST, 1, (("grpc-encoding", "zstd"),), 12, "not offered"),
        (REQUEST, 0, (("grpc-timeout", "soon"),), 13, "malformed grpc-timeout"),
        (REQUEST, 0, (("grpc-timeout", "0n"),), 4, "deadline"),
        (bytes(MAX_BYTES + 1), 0, (), 8, "larger than max"),
        (gzip.compress(bytes(MAX_BYTES + 1)), 1, (("grpc-encoding", "gzip"),), 8, "larger than max"),
        (b"\xff", 0, (), 3, "not a inference.ModelInferRequest"),
    ],
    ids=["encoding_unknown", "timeout_malformed", "timeout_over", "oversized", "gzip_bomb", "garbage"],
)
def test_defect_of_a_call_ends_that_call_only(
    address: Address, message: bytes, flag: int, more: tuple, status: int, text: str
) -> None:
    with Http2Client(address) as client:
        stream_id = client.begin(headers=(*GRPC, *more))
        client.send(stream_id, bytes((flag,)) + len(message).to_bytes(4, "big") + message[:100_000])
        answer = client.wait(stream_id)

        assert answer.grpc_status[0] == status
        assert text in answer.grpc_status[1]
        assert doubled(client.ask(REQUEST).body[5:]) == [[2, 2, 2, 2]]


def test_unknown_call_and_wrong_method_are_unimplemented(address: Address) -> None:
    with Http2Client(address) as client:
        assert client.ask(b"", path="/no.Such/Call").grpc_status == (12, "Method not found!")
        assert client.wait(client.begin(method="PUT", end=True)).grpc_status[0] == 12


def test_rest_works_over_http2_too(address: Address) -> None:
    with Http2Client(address) as client:
        ready = client.wait(client.begin("/v2/health/ready", "GET", (), end=True))
        stream_id = client.begin("/v2/models/m/infer", "POST", (("content-type", "application/json"),))
        client.send(stream_id, JSON_ONE)
        infer = client.wait(stream_id)
        absent = client.wait(client.begin("/nowhere?x=1", "GET", (), end=True))

    assert ready.headers[":status"] == "200"
    assert json.loads(infer.body)["outputs"][0]["data"] == [2, 2, 2, 2]
    assert absent.headers[":status"] == "404"


def test_large_tensors_take_turns_for_the_budget(address: Address) -> None:
    x = np.random.default_rng(1).standard_normal((400_000, 4)).astype(np.float32)  # 6.4 MB
    message = oip.encode_request(TensorRequest("i", "", "", {"x": x}))
    with grpc.insecure_channel(str(address), [("grpc.max_receive_message_length", -1)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: infer(message, timeout=TIMEOUT_S), range(6)))

    for answer in answers:
        assert oip.decode_response(answer).outputs["y"].tobytes() == x.tobytes()


def test_cancelled_and_abandoned_uploads_give_the_budget_back(address: Address) -> None:
    prefix = b"\0" + MAX_BYTES.to_bytes(4, "big")
    for _ in range(60):  # 60 x 8 MiB is more than the whole budget
        with Http2Client(address) as client:
            client.send(client.begin(), prefix, end=False)
            stream_id = client.begin()
            client.send(stream_id, prefix, end=False)
            client.h2.reset_stream(stream_id)
            client.flush()

    test_large_tensors_take_turns_for_the_budget(address)


def test_flood_ends_its_own_connection_only(address: Address) -> None:
    with Http2Client(address) as good, Http2Client(address) as bad:
        for _ in range(3_000):
            bad.h2.ping(b"12345678")
        bad.flush()
        bad.wait_closed()

        assert bad.went_away == 0xB
        assert doubled(good.ask(REQUEST).body[5:]) == [[2, 2, 2, 2]]


def test_rapid_reset_ends_its_own_connection_only(address: Address) -> None:
    with Http2Client(address) as bad:
        try:
            for _ in range(500):
                stream_id = bad.begin()
                bad.h2.reset_stream(stream_id)
                bad.flush()
        except OSError:
            pass  # closed while we still sent
        bad.wait_closed()

    assert_serves(address)


@settings(max_examples=60, deadline=None)
@given(tail=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40))))
def test_any_frames_leave_the_server_serving(address: Address, tail: list) -> None:
    data = b"".join(frames.frame(*parts) for parts in tail)

    exchange(address, frames.PREFACE + frames.frame(4, 0, 0) + data)

    assert status_of(exchange(address, b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n")) == 200


def test_stop_sends_goaway_and_answers_what_is_under_way() -> None:
    server = Server(pool_of({"m": models.scale(2.0)}), options=ServerOptions(Address("127.0.0.1", 0), front="native"))
    address = server.start()
    with Http2Client(address) as client:
        client.ask(REQUEST)
        stream_id = client.begin()
        body = b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST
        client.send(stream_id, body[:10], end=False)
        stopping = threading.Thread(target=server.stop, args=(TIMEOUT_S,))
        stopping.start()
        data = client.socket.recv(65_536)
        while GOAWAY not in data:
            data += client.socket.recv(65_536)

        # not by `h2`, which takes the first GOAWAY for the end
        client.socket.sendall(frames.ping(b"draining", ack=True) + frames.frame(0, 1, stream_id, body[10:]))
        while part := client.socket.recv(65_536):
            data += part
        stopping.join()

    assert b"grpc-status\x010" in data


CUTS = st.sampled_from([0, 0, 3, 50])
SHAPES = st.sampled_from([(1, 4), (2, 4), (0, 4), (1, 3), (4,)])


@settings(max_examples=80, deadline=None)
@given(
    calls=st.lists(
        st.tuples(SHAPES, st.text(max_size=4), st.sampled_from(["m", "i", "absent"]), CUTS, st.booleans()), max_size=6
    )
)
def test_answers_are_the_same_bytes_with_and_without_memory(
    both: tuple[Address, Address], calls: list[tuple[tuple[int, ...], str, str, int, bool]]
) -> None:
    told = []
    for address in both:
        answers = []
        with Http2Client(address) as client:
            for shape, request_id, model, cut, traced in calls:
                x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
                message = oip.encode_request(TensorRequest(model, "", request_id, {"x": x}))
                message = message[: len(message) - cut]
                headers = (*GRPC, ("traceparent", TRACE), ("grpc-timeout", "9S")) if traced else GRPC
                answer = client.ask(message, headers=headers)
                answers.append((answer.headers, answer.body, answer.trailers))
        told.append(answers)

    assert told[0] == told[1]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Address, Address]]:
    pool = pool_of({"m": models.scale(2.0), "i": models.identity()})
    with serving(pool, memoise=True) as fast, serving(pool, memoise=False) as plain:
        yield fast, plain


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_codec_agrees_with_the_whole_parser(data: st.DataObject) -> None:
    """Whatever the short way takes, the whole parser takes alike; changed octets never make them differ."""
    codec = InferCodec()
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    dtype = data.draw(st.sampled_from(["float32", "int64", "uint8", "float16", "bool"]))
    inputs = {name: np.ones(shape, dtype=dtype) for name in data.draw(st.sets(st.sampled_from("abc"), max_size=3))}
    texts = st.text(max_size=5) | st.text("x", min_size=120, max_size=140)
    request = TensorRequest(
        data.draw(texts), data.draw(texts), data.draw(texts), inputs, ("y",) * data.draw(st.integers(0, 1))
    )
    original = oip.encode_request(request)
    codec.decode(framed_prefix(len(original)) + original)  # what is remembered of it must mislead nobody
    message = bytearray(original)
    for at in data.draw(st.lists(st.integers(0, max(0, len(message) - 1)), max_size=2)):
        if message:
            message[at] = data.draw(st.integers(0, 255))

    framed = framed_prefix(len(message)) + message
    for given_as in (bytes(framed), memoryview(framed)):
        got = codec.decode(given_as)
        if got is None:
            continue
        whole = oip.decode_request(bytes(message))
        assert (got.request.model, got.request.version, got.request.request_id, got.request.outputs) == (
            whole.model, whole.version, whole.request_id, whole.outputs,
        )  # fmt: skip
        assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in got.request.inputs.items()} == {
            n: (a.dtype, a.shape, a.tobytes()) for n, a in whole.inputs.items()
        }


@given(
    rows=st.integers(0, 40),
    request_id=st.text(max_size=200),
    names=st.lists(st.text(max_size=5), unique=True, max_size=3),
)
def test_codec_writes_what_the_library_writes(rows: int, request_id: str, names: list[str]) -> None:
    outputs = {name: np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) for name in names}
    response = TensorResponse("model", "1", request_id, outputs)

    for _ in range(2):
        written = InferCodec().encode(OutputForm(), response)
        assert written is None or written == oip.encode_response(response)


def test_codec_takes_the_short_way_for_what_clients_send() -> None:
    codec = InferCodec()

    for model in ("a", "b"):
        sent = oip.encode_request(TensorRequest(model, "1", "id", {"x": ONE}, ("y",)))
        got = codec.decode(framed_prefix(len(sent)) + sent)
        assert got is not None
        assert got.request.model == model
    message = oip_pb2.ModelInferRequest.FromString(REQUEST)
    message.parameters["priority"].int64_param = 1
    unusual = message.SerializeToString()
    assert codec.decode(framed_prefix(len(unusual)) + unusual) is None


def test_budget_serves_in_order_and_once() -> None:
    told: list[str] = []
    budget = Budget(10)

    def wants(name: str) -> Callable[[], None]:
        return lambda: told.append(name)

    one = budget.reserve(6, wants("one"))
    two = budget.reserve(100, wants("two"))  # cut to the whole: it waits for everything
    three = budget.reserve(1, wants("three"))
    assert told == ["one"]
    three.release()
    one.release()
    one.release()
    assert told == ["one", "two"]
    two.release()

    assert budget.left == 10


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


# Slow peers: the clock is the test's, and `check` is called as the front's sweep would.


@pytest.fixture
def lab() -> Iterator[tuple[Backend, FakeClock]]:
    """A backend whose loop never runs: nothing below needs an answer from it."""
    clock = FakeClock()
    server = Server(pool_of({"m": models.scale(2.0)}), clock=clock)
    front = NativeFront(Calls(server._table, server._routes, server._service), clock, NativeOptions())
    yield front._backend, clock
    front._loop.close()


def opened(backend: Backend, clock: FakeClock, data: bytes) -> tuple[Http2Peer, Wire]:
    wire = Wire()
    peer = Http2Peer(backend, wire, PeerFacts(), clock.monotonic_s())
    peer.receive(frames.PREFACE + frames.frame(4, 0, 0) + data)
    peer.flush()
    return peer, wire


HEAD = hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", INFER), *GRPC])


@pytest.mark.parametrize(
    "data", [b"\0", frames.frame(1, 0, 1, HEAD), frames.frame(1, 4, 1, HEAD)[:-1]], ids=["header", "block", "payload"]
)
def test_frame_that_never_ends_ends_the_connection(lab: tuple[Backend, FakeClock], data: bytes) -> None:
    backend, clock = lab
    peer, _ = opened(backend, clock, data)

    assert not peer.is_overdue(clock.monotonic_s())
    clock.advance(backend.options.frame_timeout_s + 1)

    assert peer.is_overdue(clock.monotonic_s())


def test_body_that_drips_is_answered_and_its_connection_kept(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, wire = opened(backend, clock, frames.frame(1, 4, 1, HEAD) + frames.frame(0, 0, 1, b"\0\0\0\0\x09a"))

    for _ in range(8):
        clock.advance(backend.options.body_timeout_s / 8 + 1)
        peer.receive(frames.frame(0, 0, 1, b"a"))
        assert not peer.is_overdue(clock.monotonic_s())
    peer.flush()

    assert b"too slowly" in wire.data
    assert not wire.is_closed


def test_idle_connection_is_asked_to_go(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, wire = opened(backend, clock, b"")

    clock.advance(backend.options.idle_timeout_s + 1)
    for _ in range(2):
        assert not peer.is_overdue(clock.monotonic_s())
        peer.flush()

    assert wire.is_closed


def test_answers_that_nobody_takes_end_the_connection(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, _ = opened(backend, clock, frames.frame(4, 0, 0, b"\0\4\0\0\0\0"))
    get = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/v2")])
    peer.receive(frames.frame(1, 5, 1, get))
    peer.flush()

    clock.advance(backend.options.stalled_timeout_s + 1)

    assert peer.is_overdue(clock.monotonic_s())


def test_slow_http_1_request_is_told_so(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    wire = Wire()
    peer = Http1Peer(backend, wire, PeerFacts(), clock.monotonic_s())
    peer.receive(b"GET /v2 HTTP/1.1\r\nHost:")

    clock.advance(backend.options.http1.head_timeout_s + 1)
    assert not peer.is_overdue(clock.monotonic_s())
    peer.flush()

    assert wire.data.startswith(b"HTTP/1.1 408 ")
    assert wire.is_closed
