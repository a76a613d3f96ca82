"""gRPC's own framing: messages, timeouts, status, and what breaks them."""

from __future__ import annotations

import gzip
import zlib
from urllib.parse import unquote

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.serving import grpc_wire
from holdfast.serving.grpc_wire import GrpcFault, MessageReader, framed_prefix, timeout_s, unary_message

MAX = 1_000


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + framed_prefix(len(message))[1:] + message


@given(messages=st.lists(st.binary(max_size=50), max_size=6), cut=st.integers(1, 30), packed=st.booleans())
def test_messages_of_a_stream_are_the_same_however_they_are_cut(messages: list[bytes], cut: int, packed: bool) -> None:
    sent = [framed(gzip.compress(m), 1) if packed else framed(m) for m in messages]
    data, reader, found = b"".join(sent), MessageReader(MAX), []

    for at in range(0, len(data), cut):
        found += reader.feed(data[at : at + cut])

    assert found == sent
    assert [unary_message(each, "gzip", MAX) for each in found] == messages
    assert reader.is_between
    assert reader.wanted_bytes == 0


def test_messages_of_a_stream_stay_as_small_as_they_came() -> None:
    bomb = framed(gzip.compress(bytes(10**6)), 1)

    assert MessageReader(10**6).feed(bomb * 3) == [bomb] * 3


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_message_is_expanded(encoding: str, pack: object) -> None:
    assert unary_message(framed(pack(b"abc"), 1), encoding, MAX) == b"abc"  # type: ignore[operator]  # a function


def test_message_of_a_bytearray_is_a_view() -> None:
    assert isinstance(unary_message(bytearray(framed(b"abc")), None, MAX), memoryview)


DEFECTS: dict[str, tuple[bytes, str | None, str, str]] = {
    "no_message": (b"", None, "INTERNAL", "got none"),
    "prefix_cut_short": (b"\0\0\0", None, "INTERNAL", "got none"),
    "message_cut_short": (framed(b"abc")[:-1], None, "INTERNAL", "another number"),
    "two_messages": (framed(b"abc") * 2, None, "INTERNAL", "another number"),
    "too_large": (b"\0\0\0\x03\xe9", None, "RESOURCE_EXHAUSTED", "larger than max (1001 vs. 1000)"),
    "length_of_4_gib": (b"\0\xff\xff\xff\xff", None, "RESOURCE_EXHAUSTED", "larger than max"),
    "unknown_flag": (framed(b"abc", 2), None, "INTERNAL", "unknown flags"),
    "compressed_without_encoding": (framed(b"abc", 1), None, "INTERNAL", "without an encoding"),
    "encoding_unknown": (framed(b"abc", 1), "snappy", "UNIMPLEMENTED", "not offered"),
    "gzip_that_is_none": (framed(b"abc", 1), "gzip", "INTERNAL", "not gzip"),
    "gzip_cut_short": (framed(gzip.compress(b"abc")[:-1], 1), "gzip", "INTERNAL", "not whole"),
    "gzip_with_more_behind": (framed(gzip.compress(b"abc") + b"x", 1), "gzip", "INTERNAL", "not whole"),
    "gzip_bomb": (framed(gzip.compress(bytes(10**6))[:990], 1), "gzip", "RESOURCE_EXHAUSTED", "when expanded"),
}


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_message_defect_is_named(defect: str) -> None:
    body, encoding, status, text = DEFECTS[defect]

    with pytest.raises(GrpcFault, match=text.replace("(", r"\(").replace(")", r"\)")) as refused:
        unary_message(body, encoding, MAX)

    assert refused.value.status == status


def test_timeouts_have_units() -> None:
    seconds = [timeout_s(text) for text in ("2H", "3M", "4S", "5m", "6u", "7n")]

    assert seconds == pytest.approx([7200, 180, 4, 0.005, 6e-6, 7e-9])


@pytest.mark.parametrize("text", ["", "1", "S", "-1S", "123456789S", "1s", "1.5S", "1S ", "٣S"])
def test_malformed_timeout_is_refused(text: str) -> None:
    with pytest.raises(GrpcFault):
        timeout_s(text)


@given(st.text(max_size=60))
def test_status_text_survives_as_printable_ascii(text: str) -> None:
    coded = grpc_wire.percent_encoded(text)

    assert all(0x20 <= ord(char) < 0x7F for char in coded)
    assert unquote(coded) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("alone", [True, False])
def test_trailers_are_readable(alone: bool) -> None:
    block = grpc_wire.status_trailers("NOT_FOUND", "kein Modell für 'ä'", {"holdfast-code": "HF"}, alone=alone)

    fields = dict(hpack.Decoder().decode(block))

    assert (fields["grpc-status"], unquote(fields["grpc-message"])) == ("5", "kein Modell für 'ä'")
    assert fields["holdfast-code"] == "HF"
    assert (":status" in fields) is alone


def test_content_types_of_grpc() -> None:
    assert [grpc_wire.is_grpc(text) for text in ("application/grpc", "application/grpc+proto", "application/grpc;x=1")]
    assert not any(grpc_wire.is_grpc(text) for text in (None, "", "application/json", "application/grpc-web"))
