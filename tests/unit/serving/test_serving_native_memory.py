"""What the native front remembers of messages changes no octet; its codec agrees with the whole parser."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import pool_of, serving

from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving import oip, oip_pb2
from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.parameters import OutputForm
from holdfast.serving.server import Address

ONE = np.ones((1, 4), dtype=np.float32)
REQUEST = oip.encode_request(TensorRequest("m", "", "id", {"x": ONE}))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
