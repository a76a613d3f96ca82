"""HTTP/1.1 framing: a request is the same however its bytes are cut, and slow or hostile peers meet a bound."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.clock import FakeClock

from holdfast.clock import SystemClock
from holdfast.serving.http1 import HttpError, HttpLimits, HttpParser, HttpRequest
from holdfast.serving.http_wire import ConnectionClosed, HttpReader

POST = (
    b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-Note:  a b \r\n\r\nhello"
    b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;note=1\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n"
    b"GET /b HTTP/1.0\r\n\r\n"
)


class Pieces:
    """A connection that delivers these pieces, one at a time, and then its end."""

    def __init__(self, pieces: list[bytes], clock: FakeClock | None = None, seconds_each: float = 0.0) -> None:
        self._pieces = list(pieces)
        self._clock = clock
        self._seconds_each = seconds_each
        self.sent = b""

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        if self._clock is not None:
            self._clock.advance(self._seconds_each)
        return self._pieces.pop(0) if self._pieces else b""

    def sendall(self, data: bytes) -> None:
        self.sent += data


def read_all(pieces: list[bytes]) -> list[HttpRequest]:
    reader = HttpReader(Pieces(pieces), b"", FakeClock(), HttpLimits())  # type: ignore[arg-type]  # a fake socket
    found = []
    while True:
        try:
            found.append(reader.next_request())
        except ConnectionClosed:
            return found


@given(st.sets(st.integers(1, len(POST) - 1)))
def test_requests_are_the_same_however_they_are_cut(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(POST)]

    first, second, third = read_all([POST[a:b] for a, b in itertools.pairwise(edges)])

    assert (first.method, first.path, first.body, first.keep_alive) == ("POST", "/v2/models/m/infer", b"hello", True)
    assert first.headers["x-note"] == "a b"
    assert (second.path, second.body) == ("/a", b"abcdefg")
    assert (third.path, third.body, third.keep_alive) == ("/b", b"", False)


@given(st.binary(max_size=200), st.binary(max_size=50))
def test_any_bytes_end_in_requests_or_an_error(start: bytes, end: bytes) -> None:
    for head in (b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"):
        with contextlib.suppress(HttpError):
            read_all([head + start, end])


@pytest.mark.parametrize("pieces", [[b"G"] * 40, [b"POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n"] + [b"x"] * 98])
def test_peer_that_drips_bytes_meets_a_deadline(pieces: list[bytes]) -> None:
    clock = FakeClock()
    reader = HttpReader(Pieces(pieces, clock, 2.0), b"", clock, HttpLimits())  # type: ignore[arg-type]  # a fake socket

    with pytest.raises(HttpError, match="too slowly") as refused:
        reader.next_request()

    assert refused.value.status == 408


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_idle_connection_is_closed_without_an_answer(pair: tuple[socket.socket, socket.socket]) -> None:
    reader = HttpReader(pair[0], b"", SystemClock(), HttpLimits(idle_timeout_s=0.01))

    with pytest.raises(ConnectionClosed):
        reader.next_request()


def test_half_a_request_is_refused_after_a_time(pair: tuple[socket.socket, socket.socket]) -> None:
    reader = HttpReader(pair[0], b"GET / HT", SystemClock(), HttpLimits(head_timeout_s=0.01))

    with pytest.raises(HttpError, match="too slowly"):
        reader.next_request()


def test_continue_is_said_before_the_body_is_read() -> None:
    connection = Pieces([b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", b"ab"])

    request = HttpReader(connection, b"", FakeClock(), HttpLimits()).next_request()  # type: ignore[arg-type]  # a fake

    assert request.body == b"ab"
    assert connection.sent == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_continue_is_not_said_to_a_body_that_is_too_large() -> None:
    connection = Pieces([b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 200\r\n\r\n"])
    reader = HttpReader(connection, b"", FakeClock(), HttpLimits(max_body_bytes=100))  # type: ignore[arg-type]  # a fake

    with pytest.raises(HttpError, match="at most 100"):
        reader.next_request()

    assert connection.sent == b""


@pytest.mark.parametrize("extra", [b"", b"x"])
def test_gzip_must_be_whole_and_alone(extra: bytes) -> None:
    packed = gzip.compress(b"hello" * 10)
    for data, good in ((packed + extra, not extra), (packed[:-4], False)):
        head = b"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data)
        if good:
            assert read_all([head + data])[0].body == b"hello" * 10
        else:
            with pytest.raises(HttpError, match="not whole gzip"):
                read_all([head + data])


TRACE = b"00-" + b"a1" * 16 + b"-" + b"c2" * 8 + b"-01"
HEADS = [
    POST,
    b"GET /b HTTP/1.1\r\n\r\n",
    b"GET /b HTTP/1.1\n\nGET /c HTTP/1.1\r\n\r\n",
    b"POST /d HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /d HTTP/1.1\r\nContent-Length: 3\r\nContent-Encoding: gzip\r\n\r\nabc",
    b"POST /d HTTP/1.1\r\nContent-Length: x\r\n\r\nabc",
    b"\r\n\r\n",
    *(b"POST /e HTTP/1.1\r\nContent-Length: %d\r\nA: b\r\n\r\n" % n + b"x" * n for n in (1, 2, 12)),
    b"POST /e HTTP/1.1\r\nContent-Length: 02\r\nA: b\r\n\r\nxy",
    b"POST /e HTTP/1.1\r\nContent-Length: \r\nA: b\r\n\r\n",
    b"POST /e HTTP/1.1\r\nContent-Length: 9999\r\nA: b\r\n\r\n" + b"x" * 9_999,  # more than is taken
    *(
        b"POST /e HTTP/1.1\r\n%b: %b\r\ncontent-length: 1\r\n\r\nx" % (name, value)
        for name in (b"traceparent", b"Traceparent")
        for value in (TRACE, TRACE.replace(b"a", b"b"), TRACE.upper(), b"", b"\0", TRACE + b"-1")
    ),
    *(
        b"POST /e HTTP/1.1\r\ntraceparent: %b\r\nTraceParent: x\r\ncontent-length: 1\r\n\r\nx" % trace
        for trace in (TRACE, TRACE.replace(b"a", b"b"))
    ),
    b"POST /e HTTP/1.1\r\ntraceparent: %b\r\nContent-Length: 1\ncontent-length: 2\r\n\r\nxx" % TRACE,
]


@given(parts=st.lists(st.sampled_from(HEADS), max_size=8), cut=st.integers(0, 300))
def test_memory_of_heads_changes_nothing(parts: list[bytes], cut: int) -> None:
    data = b"".join(parts)
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)] if cut else parts

    assert parsed(pieces, memoise=True) == parsed(pieces, memoise=False)


def test_no_head_is_taken_for_another() -> None:
    for one, other in itertools.product(HEADS, repeat=2):
        for pieces in ([one, other, one], [one, one + other]):
            assert parsed(pieces, memoise=True) == parsed(pieces, memoise=False)


def parsed(pieces: list[bytes], *, memoise: bool) -> list[HttpRequest | str]:
    parser, found = HttpParser(HttpLimits(max_body_bytes=1_000), memoise=memoise), []
    try:
        for piece in pieces:
            whole = parser.whole(piece)
            if whole is not None:
                head, varied, body = whole
                headers = head.headers_with(varied)
                found.append(HttpRequest(head.method, head.path, headers, body, head.keep_alive, head, varied))
                continue
            parser.feed(piece)
            while (request := parser.next_request()) is not None:
                found.append(request)
    except HttpError as error:
        found.append(str(error))
    return found
