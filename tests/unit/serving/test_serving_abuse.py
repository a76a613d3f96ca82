"""Attackers at the socket of the native front: each loses its own connection, with the right code, and no other."""

from __future__ import annotations

import select
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import hpack
import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import INFER, TIMEOUT_S, exchange, pool_of, status_of

from holdfast.clock import SystemClock
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import DATA, GOAWAY, HEADERS, PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.server import Address, Server, ServerOptions

REQUEST = oip.encode_request(TensorRequest("m", "", "id", {"x": np.ones((1, 4), dtype=np.float32)}))
FRAMED = b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST
HEAD = hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", INFER), *GRPC])
GET = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/v2")], huffman=False)
WIDE_OPEN = frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, b"\x7f\0\0\0")  # windows for any answer
ASK_LIVE = b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n"
OPENING = PREFACE + frame(4, 0, 0)
CALM, COMPRESSION = ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.COMPRESSION_ERROR
STEP_S = 0.005  # between fifty frames of a flood, for the server to take them in
MOST_FRAMES = 20_000  # a flood that is still served after so many is not held back


class SkippingClock(SystemClock):
    """The machine's clock; a test may skip what it would have to wait for."""

    skipped_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.skipped_s


@pytest.fixture(scope="module")
def clock() -> SkippingClock:
    return SkippingClock()


@pytest.fixture(scope="module")
def address(clock: SkippingClock) -> Iterator[Address]:
    pool = pool_of({"m": models.scale(2.0), "i": models.identity()})
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), front="native"), clock=clock)
    yield server.start()
    server.stop(2.0)


@pytest.fixture
def bystander(address: Address) -> Iterator[Http2Client]:
    """A client that was there before the attack, and must be served during and after it."""
    with Http2Client(address) as client:
        assert client.ask(REQUEST).grpc_status == (0, "")
        yield client
        assert client.ask(REQUEST).grpc_status == (0, "")


@contextmanager
def attacker(address: Address, first: bytes = b"", *, receive_bytes: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(TIMEOUT_S)
        connection.connect((address.host, address.port))
        connection.sendall(first)
        yield connection


def received(connection: socket.socket) -> bytes:
    """The next octets; none once the other end has closed or reset."""
    try:
        return connection.recv(65_536)
    except ConnectionError:
        return b""


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the other end closes or resets."""
    data = b""
    while part := received(connection):
        data += part
    return data


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """Type and payload of every whole frame."""
    found = []
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        if len(data) < 9 + size:
            break
        found.append((data[3], data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def goaway_of(data: bytes) -> ErrorCode | None:
    """The code of the first GOAWAY among the frames."""
    return next((ErrorCode(int.from_bytes(body[4:8], "big")) for kind, body in frames_of(data) if kind == GOAWAY), None)


def refused_with(address: Address, attack: Callable[[int], bytes]) -> tuple[ErrorCode | None, int]:
    """The code that ends a connection on which the attack is repeated, and how often it was."""
    with attacker(address, OPENING) as connection:
        data, count = b"", 0
        try:
            while goaway_of(data) is None and count < MOST_FRAMES:
                connection.sendall(b"".join(map(attack, range(count, count + 50))))
                count += 50
                if select.select([connection], [], [], STEP_S)[0]:
                    data += connection.recv(65_536)
        except ConnectionError:
            pass  # it was closed while we still sent
        return goaway_of(data + read_to_end(connection)), count


def stream(n: int) -> int:
    return 2 * n + 1


FLOODS: dict[str, Callable[[int], bytes]] = {
    "rapid_reset": lambda n: frame(1, 4, stream(n), HEAD) + frame(3, 0, stream(n), b"\0\0\0\x08"),
    "rapid_reset_of_whole_requests": lambda n: (
        frame(1, 4, stream(n), HEAD) + frame(0, 1, stream(n), FRAMED) + frame(3, 0, stream(n), b"\0\0\0\x08")
    ),
    "made_you_reset": lambda n: frame(1, 4, stream(n), HEAD) + frame(8, 0, stream(n), bytes(4)),
    "settings": lambda n: frame(4, 0, 0, b"\0\4\0\1\0\0"),
    "ping": lambda n: frame(6, 0, 0, bytes(8)),
    "empty_data": lambda n: (frame(1, 4, 1, HEAD) if n == 0 else b"") + frame(0, 0, 1),
    "padding_only_data": lambda n: (frame(1, 4, 1, HEAD) if n == 0 else b"") + frame(0, 8, 1, b"\x09" + bytes(9)),
    "priority": lambda n: frame(2, 0, 1, bytes(5)),
    "window_update": lambda n: frame(8, 0, 0, b"\0\0\0\1"),
    "unknown_frames": lambda n: frame(0x77, 0, 0, b"abc"),
    "empty_continuation": lambda n: frame(1, 0, 1, HEAD) if n == 0 else frame(9, 0, 1),
    "large_continuation": lambda n: frame(1, 0, 1, HEAD) if n == 0 else frame(9, 0, 1, bytes(4_096)),
    "streams_above_the_bound": lambda n: frame(1, 4, stream(n), HEAD),
    "malformed_heads": lambda n: frame(1, 5, stream(n), b"\x83"),
}


@pytest.mark.parametrize("flood", sorted(FLOODS))
def test_flood_is_told_to_calm_down_and_harms_nobody(address: Address, bystander: Http2Client, flood: str) -> None:
    code, count = refused_with(address, FLOODS[flood])

    assert code is CALM
    assert count < MOST_FRAMES
    assert bystander.ask(REQUEST).grpc_status == (0, "")


def test_bomb_of_header_references_is_refused(address: Address, bystander: Http2Client) -> None:
    """4 KB in the table, then 16 KB of references to it: 60 MB of fields for whoever expands them."""
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4_000
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    with attacker(address, OPENING + frame(1, 5, 1, GET + entry)) as connection:
        for n in range(1, 30):
            connection.sendall(frame(1, 5, stream(n), GET + b"\xbe" * 16_000))
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        connection.sendall(frame(7, 0, 0, bytes(8)))
        connection.shutdown(socket.SHUT_WR)
        data = read_to_end(connection)

    resets = [n for n in range(1, 30) if frame(3, 0, stream(n), CALM.to_bytes(4, "big")) in data]
    assert len(resets) == 29
    assert peak < 8 * 1024**2


@pytest.mark.parametrize(
    "block", [b"\x3f" + b"\xff" * 30, b"\xff" * 40, b"\x00\x7f\xff\xff\xff\xff\x7f"], ids=["size", "index", "length"]
)
def test_integer_without_end_is_a_compression_error(address: Address, bystander: Http2Client, block: bytes) -> None:
    with attacker(address, OPENING + frame(1, 5, 1, block)) as connection:
        assert goaway_of(read_to_end(connection)) is COMPRESSION


# Peers that are slow on purpose. What they are waited for is skipped on the server's clock.

LORIS: dict[str, tuple[bytes, bytes]] = {
    # first octets, and a part of what comes back
    "nothing": (b"", b""),
    "half_a_preface": (PREFACE[:10], b""),
    "no_settings": (PREFACE, b""),
    "half_a_frame_header": (OPENING + b"\0\0", b""),
    "half_a_head": (OPENING + frame(1, 4, 1, HEAD)[:-1], b""),
    "head_without_its_continuation": (OPENING + frame(1, 0, 1, HEAD), b""),
    "half_an_http_1_head": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n", b"HTTP/1.1 408 "),
    "half_an_http_1_body": (b"POST /v2 HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", b"HTTP/1.1 408 "),
    "http_1_between_requests": (b"GET /v2/health/live HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 "),
}


def test_slow_peers_are_not_waited_for(address: Address, clock: SkippingClock, bystander: Http2Client) -> None:
    with ExitStack() as stack:
        slow = {stack.enter_context(attacker(address, first)): name for name, (first, _) in LORIS.items()}
        told = dict.fromkeys(LORIS, b"")
        for _ in range(5):  # one that was accepted only after the time was skipped has another time to wait
            if slow:
                clock.skipped_s += 76
            while slow and (ready := select.select(slow, [], [], 3.0)[0]):
                for connection in ready:
                    part = received(connection)
                    told[slow[connection]] += part
                    if not part:
                        del slow[connection]

    assert not slow
    assert [name for name, (_, answer) in LORIS.items() if answer not in told[name]] == []


def test_body_that_never_ends_is_answered_and_its_connection_kept(
    address: Address, clock: SkippingClock, bystander: Http2Client
) -> None:
    with Http2Client(address) as slow:
        slow.ask(REQUEST)
        stream_id = slow.begin()
        slow.send(stream_id, FRAMED[:10], end=False)
        assert bystander.ask(REQUEST).grpc_status == (0, "")
        clock.skipped_s += 61

        assert slow.wait(stream_id).grpc_status == (4, "the request came too slowly")
        assert slow.ask(REQUEST).grpc_status == (0, "")


def test_windows_of_zero_hold_answers_for_a_time_only(
    address: Address, clock: SkippingClock, bystander: Http2Client
) -> None:
    no_window = frame(4, 0, 0, b"\0\4\0\0\0\0")
    calls = b"".join(frame(1, 4, stream(n), HEAD) + frame(0, 1, stream(n), FRAMED) for n in range(100))

    with attacker(address, OPENING + no_window + calls) as connection:
        data = b""
        while [kind for kind, _ in frames_of(data)].count(HEADERS) < 100:
            data += connection.recv(65_536)
        clock.skipped_s += 61
        data += read_to_end(connection)

    kinds = [kind for kind, _ in frames_of(data)]
    assert kinds.count(HEADERS) == 100
    assert DATA not in kinds


def test_peer_that_never_reads_is_let_go_and_memory_stays_bounded(
    address: Address, clock: SkippingClock, bystander: Http2Client
) -> None:
    """128 answers of 256 KB each, more than its socket takes: they are held until the time is over."""
    x = np.zeros((16_000, 4), dtype=np.float32)
    message = oip.encode_request(TensorRequest("i", "", "", {"x": x}))
    body = b"\0" + len(message).to_bytes(4, "big") + message
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    with attacker(address, OPENING + WIDE_OPEN, receive_bytes=4_096) as connection:
        for n in range(Http2Limits().max_streams):
            parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
            frames = [frame(0, int(part is parts[-1]), stream(n), part) for part in parts]
            connection.sendall(frame(1, 4, stream(n), HEAD) + b"".join(frames))
        assert bystander.ask(REQUEST).grpc_status == (0, "")
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        clock.skipped_s += 61
        gone = select.poll()
        gone.register(connection, select.POLLHUP | select.POLLERR)
        assert gone.poll(TIMEOUT_S * 1_000)

    assert 20 * len(body) < held < Http2Limits().memory_bytes


def test_many_quiet_connections_are_bounded_and_make_room_again(clock: SkippingClock) -> None:
    options = ServerOptions(Address("127.0.0.1", 0), front="native", max_connections=20)
    server = Server(pool_of({"m": models.scale(2.0)}), options=options, clock=clock)
    address = server.start()
    held: list[socket.socket] = []
    try:
        for _ in range(20):
            held.append(socket.create_connection((address.host, address.port), timeout=TIMEOUT_S))
        with attacker(address) as one_more:
            assert read_to_end(one_more) == b""
        clock.skipped_s += 11
        deadline = time.monotonic() + TIMEOUT_S
        while (status := status_of(exchange(address, ASK_LIVE))) == 0 and time.monotonic() < deadline:
            pass
        assert status == 200
    finally:
        for connection in held:
            connection.close()
        server.stop(2.0)
