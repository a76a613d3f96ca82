"""Calls of ModelInfer for the serving benchmarks, framed beforehand as clients frame them, each with its right answer.

Two styles: `c-core` as gRPC's C core does (no Huffman, varying fields not indexed: the header table stays as the first
call left it), `go` as Go does (Huffman, everything indexed: the table changes with every call, so that calls can be
replayed once, in their order). Every call has a fresh id, a traceparent, and a deadline of its own.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import hpack
import numpy as np
from benchmarks.serving_models import MODELS, input_shape

from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.oip import decode_response, encode_request

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALLS = 256
ROWS = (1, 2, 3, 4, 5, 6, 7, 8)
FRAME_BYTES = 16_384
SIZE = struct.Struct("<I")

# HTTP/2 (RFC 9113): preface, settings (a window of 1 MiB, no header table for answers), the widest connection window
GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\0\0\x0c\x04\0\0\0\0\0\0\x04\0\x10\0\0\0\x01\0\0\0\0"
    b"\0\0\x04\x08\0\0\0\0\0" + (2**31 - 70_000).to_bytes(4, "big")
)

Style = Literal["c-core", "go"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as a message and framed with stream id 0, and what it must be answered with."""

    message: bytes
    expected: np.ndarray
    request_id: str
    frames: bytes = b""


def varied_calls(
    models: Sequence[str],
    style: Style = "c-core",
    *,
    count: int = CALLS,
    rows: Sequence[int] = ROWS,
    frame_bytes: int = FRAME_BYTES,
) -> tuple[bytes, list[Call]]:
    """A greeting with a first call, which fills the header table, and `count` different calls after it."""
    random = np.random.default_rng(7)
    sessions = {name: load_session(ModelSource(MODELS[name]())) for name in models}
    calls = []
    for index in range(count):
        name = models[index % len(models)]
        x = random.standard_normal((rows[index % len(rows)], *input_shape(name)), dtype=np.float32)
        request_id = secrets.token_hex(8)
        message = encode_request(TensorRequest(name, "", request_id, {"x": x}))
        calls.append(Call(message, sessions[name].run({"x": x})["y"], request_id))
    return framed(calls, style, frame_bytes)


def framed(calls: Sequence[Call], style: Style = "c-core", frame_bytes: int = FRAME_BYTES) -> tuple[bytes, list[Call]]:
    """The greeting of a connection, and the calls with their frames, which carry `frame_bytes` at most."""
    encoder = hpack.Encoder()
    huffman = style == "go"
    fixed = [
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", "127.0.0.1:8080"),
        (":path", METHOD),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-c++/1.51.1 grpc-c/29.0.0 (linux; chttp2)"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
    ]
    first = encoder.encode(fixed, huffman=huffman)
    greeting = GREETING + frame(1, 4, first, 1) + frame(0, 1, b"\0\0\0\0\0", 1)
    kind = hpack.HeaderTuple if style == "go" else hpack.NeverIndexedHeaderTuple
    made = []
    for index, call in enumerate(calls):
        varying = [
            kind("grpc-timeout", f"{5_000 + index % 4_000}m"),
            kind("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"),
        ]
        head = frame(1, 4, encoder.encode([*fixed, *varying], huffman=huffman))
        made.append(replace(call, frames=head + data_frames(grpc_body(call.message), frame_bytes)))
    return greeting, made


def check_answers(calls: Sequence[Call], answers: Sequence[bytes]) -> None:
    """Raises: RuntimeError: an answer is not the model's own, or another call's."""
    for place, (call, answer) in enumerate(zip(calls, answers, strict=True)):
        got = decode_response(answer[5:])
        if got.request_id != call.request_id or not np.array_equal(got.outputs["y"], call.expected):
            raise RuntimeError(f"call {place} was answered with another tensor than the model's own")


def grpc_body(message: bytes) -> bytes:
    """The message with gRPC's five bytes before it: not compressed, its size."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def frame(kind: int, flags: int, payload: bytes, stream_id: int = 0) -> bytes:
    """One frame (RFC 9113 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def data_frames(body: bytes, frame_bytes: int) -> bytes:
    """The body in frames of one size, the last one ending the stream."""
    starts = range(0, len(body), frame_bytes)
    return b"".join(frame(0, int(at + frame_bytes >= len(body)), body[at : at + frame_bytes]) for at in starts)


def write_calls(path: Path, greeting: bytes, calls: Sequence[Call]) -> None:
    """The file that `replay.c` reads."""
    parts = [greeting, *(call.frames for call in calls)]
    sized = [SIZE.pack(len(part)) + part for part in parts]
    path.write_bytes(b"".join([sized[0], SIZE.pack(len(calls)), *sized[1:]]))


def read_answers(path: Path) -> list[bytes]:
    """What `replay.c` dumped: per call the payloads of its answer, empty if it was not called yet."""
    data, at, answers = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        answers.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return answers
