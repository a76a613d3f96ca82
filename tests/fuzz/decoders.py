"""Every decoder that reads what a client sends, each as a function of bytes that checks what must always hold.

Only the decoder's own errors may leave it; what it holds and returns is bounded by what came in and by its limits; and
it agrees with another implementation (h2's parts, h11, protobuf), or with itself without its memory. Used with bytes of
hypothesis in every run, and of a coverage-guided fuzzer in the long one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import h11
import hpack
from hpack.huffman_table import decode_huffman
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from holdfast.errors import HoldfastError
from holdfast.serving import oip, oip_json
from holdfast.serving.datatypes import DTYPE_OF, from_raw
from holdfast.serving.grpc_wire import (
    GrpcFault,
    MessageReader,
    framed_prefix,
    percent_encoded,
    timeout_s,
    unary_message,
)
from holdfast.serving.http1 import HttpError, HttpLimits, HttpParser, HttpRequest
from holdfast.serving.http2 import huffman
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ConnectionFault
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.hpack import Decoder, HeaderListTooLarge
from holdfast.serving.http2.limits import Http2Limits, Rate
from holdfast.serving.http2.sender import AnswerForm
from holdfast.serving.http2.stream import Kind
from holdfast.serving.native.codec import InferCodec

MAX_MESSAGE = 1_000
TABLE_BYTES = 4_096
LIMITS = Http2Limits(controls=Rate(1e6, 0), resets=Rate(1e6, 0), faults=Rate(1e6, 0))  # not what is looked for here
HTTP_LIMITS = HttpLimits(max_head_bytes=2_000, max_body_bytes=MAX_MESSAGE)
FORM = AnswerForm(b"\x88", b"\x00\x0bgrpc-status\x010")
EMPTY_SETTINGS = frame(4, 0, 0)
CODEC = InferCodec()  # one for all inputs: what it remembers of one must not change another


def pieces(data: bytes) -> list[bytes]:
    """Parts of the data: the first byte says how long each is."""
    if not data:
        return []
    size, rest = data[0] + 1, data[1:]
    return [rest[at : at + size] for at in range(0, len(rest), size)]


def header_blocks(data: bytes) -> None:
    """HPACK: what we take the oracle takes, and reads the same; the table is never larger than announced."""
    ours, oracle = Decoder(TABLE_BYTES, 10**6), hpack.Decoder(max_header_list_size=10**6)
    for block in pieces(data):
        try:
            got = ours.decode(block)
        except (ConnectionFault, HeaderListTooLarge):
            return
        assert got == [(n.decode("latin-1"), v.decode("latin-1")) for n, v in oracle.decode(block, raw=True)]
        assert ours.table_size_bytes <= TABLE_BYTES


def huffman_strings(data: bytes) -> None:
    try:
        got = huffman.decode(data)
    except huffman.HuffmanError:
        return
    assert got == decode_huffman(data)
    assert len(got) * 5 <= len(data) * 8
    assert huffman.encode(got) == data  # one way to write each string


def connections(data: bytes) -> None:
    """HTTP/2: with and without memory of heads the same; what we send the oracle can read."""
    told = [conversation(pieces(data), memoise=memoise) for memoise in (True, False)]

    assert told[0] == told[1]
    read_as_client(told[0][1])


def conversation(parts: list[bytes], *, memoise: bool) -> tuple[list[object], bytes]:
    """Events as values, and all we send; every whole request is answered."""
    server = Http2Connection(LIMITS, 0.0, memoise=memoise)
    events: list[object] = []
    sent = server.take()
    for part in (PREFACE + EMPTY_SETTINGS, *parts):
        for kind, stream, piece in server.receive(part, 0.0):
            events.append((kind, stream.id, stream.head, bytes(piece)))
            if kind in (Kind.WHOLE, Kind.ENDED):
                server.answer(stream, FORM, (b"x" * 20, b"x" * 30), 50)
        assert len(server.streams) <= LIMITS.max_streams
        assert server.unsent_bytes <= LIMITS.max_streams * 60
        sent += server.take()
    return events, sent


def read_as_client(sent: bytes) -> None:
    decoder = hpack.Decoder()
    while sent:
        found, size = Frame.parse_frame_header(memoryview(sent[:9]), strict=True)
        found.parse_body(memoryview(sent[9 : 9 + size]))
        if isinstance(found, HeadersFrame):
            decoder.decode(found.data)
        assert len(found.data if isinstance(found, DataFrame) else b"") <= 16_384
        sent = sent[9 + size :]


def grpc_messages(data: bytes) -> None:
    reader, found = MessageReader(MAX_MESSAGE), []
    with contextlib.suppress(GrpcFault):
        for piece in pieces(data):
            found += reader.feed(piece)
            assert reader.wanted_bytes <= MAX_MESSAGE + 5
    assert all(len(message) <= MAX_MESSAGE + 5 for message in found)
    for message in (*found, data):
        for encoding in ("gzip", "deflate"):
            with contextlib.suppress(GrpcFault):
                assert len(unary_message(message, encoding, MAX_MESSAGE)) <= MAX_MESSAGE


def grpc_headers(data: bytes) -> None:
    text = data.decode("latin-1")
    with contextlib.suppress(GrpcFault):
        assert 0 <= timeout_s(text) <= 99_999_999 * 3_600
    assert percent_encoded(text).isascii()


def http1_requests(data: bytes) -> None:
    """HTTP/1.1: with and without memory of heads the same, and what h11 takes too it reads alike (no smuggling)."""
    parts = pieces(data)
    told = [http1_conversation(parts, memoise=memoise) for memoise in (True, False)]

    assert told[0] == told[1]
    theirs = h11_requests(b"".join(parts))
    for ours, other in zip(told[0], theirs, strict=False):
        if isinstance(ours, HttpRequest) and "content-encoding" not in ours.headers:
            assert (ours.method, ours.path, ours.body) == other


def http1_conversation(parts: list[bytes], *, memoise: bool) -> list[HttpRequest | str]:
    parser, found = HttpParser(HTTP_LIMITS, memoise=memoise), []
    try:
        for part in parts:
            parser.feed(part)
            while (request := parser.next_request()) is not None:
                assert len(request.body) <= HTTP_LIMITS.max_body_bytes
                found.append(request)
            assert parser.held_bytes <= max(HTTP_LIMITS.max_head_bytes, HTTP_LIMITS.max_body_bytes) + len(part)
    except HttpError as error:
        found.append(str(error))
    return found


def h11_requests(data: bytes) -> list[tuple[str, str, bytes]]:
    """Whole requests as h11 reads them, until it refuses one."""
    found: list[tuple[str, str, bytes]] = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    head, body = None, b""
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return found
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            found.append((head.method.decode(), head.target.decode().split("?", 1)[0], body))
            server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE or server.their_state is not h11.DONE:
                return found
            server.start_next_cycle()
        else:
            return found


def json_requests(data: bytes) -> None:
    split = data[0] if data else 0
    for header_length in (None, split):
        with contextlib.suppress(HoldfastError):
            got = oip_json.decode_infer(data[1:], header_length, "m", "").request
            assert sum(array.nbytes for array in got.inputs.values()) <= 16 * len(data)


def protobuf_requests(data: bytes) -> None:
    """The short way and the whole parser agree, wherever the short way is taken."""
    framed = framed_prefix(len(data)) + data
    short = CODEC.decode(framed)
    try:
        whole = oip.decode_infer(data)
    except HoldfastError:
        assert short is None
        return
    assert sum(array.nbytes for array in whole.request.inputs.values()) <= 16 * len(data)
    if short is not None:
        ours, theirs = short.request, whole.request
        assert (ours.model, ours.version, ours.request_id, ours.outputs) == (
            theirs.model, theirs.version, theirs.request_id, theirs.outputs,
        )  # fmt: skip
        assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in ours.inputs.items()} == {
            n: (a.dtype, a.shape, a.tobytes()) for n, a in theirs.inputs.items()
        }


def raw_tensors(data: bytes) -> None:
    """A datatype, a shape and its octets: an array of just those octets, or a refusal."""
    if len(data) < 2:
        return
    datatype = sorted(DTYPE_OF)[data[0] % len(DTYPE_OF)]
    rank = data[1] % 5
    shape = [int.from_bytes(data[2 + 8 * n : 10 + 8 * n], "little", signed=True) for n in range(rank)]
    raw = data[2 + 8 * rank :]
    with contextlib.suppress(HoldfastError):
        array = from_raw("x", datatype, shape, raw)
        assert list(array.shape) == shape
        assert array.dtype == object or array.nbytes == len(raw)


DECODERS: Mapping[str, Callable[[bytes], None]] = {
    decoder.__name__: decoder
    for decoder in (
        header_blocks, huffman_strings, connections, grpc_messages, grpc_headers, http1_requests, json_requests,
        protobuf_requests, raw_tensors,
    )
}  # fmt: skip
