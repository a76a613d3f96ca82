"""Good and nearly good inputs for each decoder, written by other people's encoders: where fuzzing begins."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping

import h2.config
import h2.connection
import hpack
import numpy as np

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.http2.frames import frame

POST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
VARYING = [("grpc-timeout", "5S"), ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("x", "größer")]
X = np.arange(8, dtype=np.float32).reshape(2, 4)
INFER = {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -3, 1e9]}]}


def whole(data: bytes) -> bytes:
    """In one piece, as `decoders.pieces` cuts it."""
    return b"\xff" + data


def header_blocks() -> list[bytes]:
    encoder = hpack.Encoder()
    found = []
    for huffman in (True, False):
        for fields in (POST, [*POST, *VARYING], [("a", "b" * 50), ("a", "b" * 50)]):
            block = encoder.encode(fields, huffman=huffman)
            found.append(bytes([len(block) - 1]) + block + block)
    return [*found, b"\x02\x3f\xe1\x1f\x82\x86\x84", b"\x00\x20\x82"]


def huffman_strings() -> list[bytes]:
    from holdfast.serving.http2 import huffman

    return [huffman.encode(text) for text in (b"", b"www.example.com", b"\x00\xff\n", bytes(range(256)))]


def connections() -> list[bytes]:
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    client.data_to_send()
    client.send_headers(1, [*POST, *VARYING])
    client.send_data(1, b"\0\0\0\0\3abc", end_stream=True, pad_length=5)
    client.send_headers(3, POST)
    client.send_data(3, b"\0\0\0\0\3abc")
    client.send_headers(3, [("a", "b")], end_stream=True)
    client.ping(b"12345678")
    client.increment_flow_control_window(5)
    client.send_headers(5, POST, end_stream=True, priority_weight=3)
    client.reset_stream(5)
    client.update_settings({1: 0, 4: 1_000})
    client.close_connection()
    block = hpack.Encoder().encode(POST)
    cut = frame(1, 1, 1, block[:4]) + frame(9, 0, 1, block[4:9]) + frame(9, 4, 1, block[9:])
    return [whole(client.data_to_send()), whole(cut), b"\x04" + cut, whole(calls())]


def calls() -> bytes:
    """Small calls whose heads differ in deadline and trace only: those that are read by their shape."""
    encoder, data = hpack.Encoder(), b""
    for number in range(5):
        varying = [hpack.NeverIndexedHeaderTuple("grpc-timeout", f"{number}S")]
        varying.append(hpack.NeverIndexedHeaderTuple("traceparent", f"00-{number:032x}-{1:016x}-01"))
        block = encoder.encode([*POST, *varying], huffman=False)
        data += frame(1, 4, 2 * number + 1, block) + frame(0, 1, 2 * number + 1, b"\0\0\0\0\3abc")
    return data


def grpc_messages() -> list[bytes]:
    packed = gzip.compress(b"hello" * 20)
    messages = [b"\0\0\0\0\3abc", b"\1" + struct.pack(">I", len(packed)) + packed, b"\0\0\0\0\0"]
    return [whole(b"".join(messages)), b"\x01" + b"".join(messages), *messages, whole(b"\0\0\0\x03\xe8")]


def grpc_headers() -> list[bytes]:
    return [b"5S", b"99999999H", b"10n", b"", "größer %20".encode()]


def http1_requests() -> list[bytes]:
    get = b"GET /v2/health/ready?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    post = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    chunks = b"3\r\nabc\r\n4;n=1\r\ndefg\r\n0\r\nT: 1\r\n\r\n"
    chunked = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    packed = gzip.compress(b"hello" * 50)
    coded = (
        b"POST /g HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    )
    return [whole(get * 3), whole(post + get), whole(chunked + post), b"\x06" + chunked, whole(coded), whole(get[:-4])]


def json_requests() -> list[bytes]:
    text = json.dumps(INFER).encode()
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": X.nbytes}}
    header = json.dumps({"inputs": [entry], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}).encode()
    words = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]}
    return [b"\0" + text, bytes([len(header)]) + header + X.tobytes(), b"\0" + json.dumps(words).encode(), b"\0[[[["]


def protobuf_requests() -> list[bytes]:
    message = oip_pb2.ModelInferRequest(model_name="m", id="7")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1, 2])
    message.parameters["priority"].int64_param = 3
    words = np.array([b"ab", b""], dtype=object)
    return [
        message.SerializeToString(),
        oip.encode_request(TensorRequest("m", "1", "id", {"x": X}, ("y",))),
        oip.encode_request(TensorRequest("m", "", "", {"a": X, "b": X.astype(np.int64)})),
        oip.encode_request(TensorRequest("m", "", "x" * 140, {"w": words, "f": X.astype(bool)})),
    ]


def raw_tensors() -> list[bytes]:
    sizes = struct.pack("<2q", 2, 4)
    words = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    return [bytes([n, 2]) + sizes + X.tobytes() for n in range(14)] + [b"\2\1" + struct.pack("<q", 2) + words]


SEEDS: Mapping[str, list[bytes]] = {
    made.__name__: made()
    for made in (
        header_blocks, huffman_strings, connections, grpc_messages, grpc_headers, http1_requests, json_requests,
        protobuf_requests, raw_tensors,
    )
}  # fmt: skip
