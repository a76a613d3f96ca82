"""The same request, right or wrong, over gRPC and HTTP and to both fronts: the same tensors, or the same refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.serving import FRONTS, INFER, TIMEOUT_S, call, exchange, http_infer, pool_of, serving, status_of

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.authorisation import rules_of
from holdfast.serving.datatypes import datatype_of, to_raw
from holdfast.serving.server import Address, Front, Server, ServerOptions
from holdfast.serving.status import STATUS_OF

HTTP_OF = {grpc_name: http for _, grpc_name, http in reversed(STATUS_OF)}
MODELS = {
    "f": models.perceptron(),
    "i": models.identity(TensorProto.INT64, ("n", 2)),
    "s": models.identity(TensorProto.STRING, ("n",)),
    "g": models.gather(),
    "two": models.two_in_two_out(),
}


@pytest.fixture(scope="module")
def address(front: Front) -> Iterator[Address]:
    with serving(pool_of(MODELS), front=front) as at:
        yield at


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=2)))
    count = int(np.prod(shape))
    kind = draw(st.sampled_from(["float32", "float32", "int64", "int64", "bool", "float64", "object"]))
    if kind == "object":
        made = np.empty(count, dtype=object)
        made[:] = draw(st.lists(st.text(max_size=5).map(str.encode), min_size=count, max_size=count))
        return made.reshape(shape)
    numbers = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    return np.array(numbers).astype(kind).reshape(shape)


@st.composite
def requests(draw: st.DrawFn) -> TensorRequest:
    """Mostly right: the generators know the models' names and shapes, and stray from them."""
    model = draw(st.sampled_from([*MODELS, "absent"]))
    right = {
        "f": lambda n: {"x": np.arange(4 * n, dtype=np.float32).reshape(n, 4)},
        "i": lambda n: {"x": np.arange(2 * n, dtype=np.int64).reshape(n, 2)},
        "s": lambda n: {"x": np.array([b"a"] * n, dtype=object)},
        "g": lambda n: {"x": np.arange(n, dtype=np.int64) + draw(st.integers(-4, 2))},
        "two": lambda n: {"a": np.arange(n), "b": np.arange(n)},
        "absent": lambda n: {},
    }[model](draw(st.integers(0, 3)))
    if draw(st.integers(0, 2)) == 2:
        right = dict(right)
        right[draw(st.sampled_from(["x", "a", "q"]))] = draw(arrays())
    outputs = draw(st.sampled_from([(), (), ("y",), ("sum",), ("same", "sum"), ("y", "y")]))
    return TensorRequest(
        model, draw(st.sampled_from(["", "", "1", "2"])), draw(st.text("ab", max_size=3)), right, outputs
    )


def over_grpc(address: Address, request: TensorRequest) -> tuple[int, object, str]:
    try:
        got = oip.decode_response(call(address, oip.encode_request(request)))
    except grpc.RpcError as error:
        return HTTP_OF[error.code().name], None, str(error.details())
    return 200, {name: (datatype_of(a), list(a.shape), to_raw(a)) for name, a in got.outputs.items()}, got.request_id


def over_http(address: Address, request: TensorRequest, *, binary: bool) -> tuple[int, object, str]:
    raws, inputs = [], []
    for name, array in request.inputs.items():
        entry: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if binary:
            raws.append(to_raw(array))
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            flat = array.ravel().tolist()
            entry["data"] = [item.decode() for item in flat] if array.dtype == object else flat
        inputs.append(entry)
    header = json.dumps(
        {
            "id": request.request_id,
            "inputs": inputs,
            "outputs": [{"name": name} for name in request.outputs],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    path = request.model + (f"/versions/{request.version}" if request.version else "")
    lengths = [f"Inference-Header-Content-Length: {len(header)}"] if binary else []
    answer = exchange(address, http_infer(path, b"".join([header, *raws]), *lengths))
    head, body = answer.split(b"\r\n\r\n", 1)
    if status_of(answer) != 200:
        return status_of(answer), None, json.loads(body)["error"]
    names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    size = int(names.get(b"inference-header-content-length", len(body)))
    top, at, outputs = json.loads(body[:size]), size, {}
    for entry in top["outputs"]:
        end = at + entry["parameters"]["binary_data_size"]
        outputs[entry["name"]] = (entry["datatype"], entry["shape"], body[at:end])
        at = end
    return 200, outputs, top.get("id", "")


@settings(max_examples=250, deadline=None)
@given(asked=requests())
def test_fronts_agree(address: Address, asked: TensorRequest) -> None:
    by_grpc = over_grpc(address, asked)

    event(f"status {by_grpc[0]}")
    assert over_http(address, asked, binary=True) == by_grpc
    assert over_http(address, asked, binary=False) == by_grpc


# --- one front and the other

TOKEN = "a-token-of-16-chars"  # of this test alone
COUNTERS = re.compile(
    rb"^holdfast_(?:requests|request_errors|rows|runs)_total\S* \d+$|^holdfast_batch_rows_\S* \d+$", re.MULTILINE
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[Front, Address]]:
    """A server of each front, where callers must show a token."""
    with ExitStack() as stack:
        found: dict[Front, Address] = {}
        for front in FRONTS:
            options = ServerOptions(Address("127.0.0.1", 0), front=front, rules=rules_of([], [TOKEN]))
            server = Server(pool_of(MODELS), options=options)
            found[front] = server.start()
            stack.callback(server.stop, 2.0)
        yield found


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request with parameters, mostly right; sometimes with a byte that is not."""
    request = oip_pb2.ModelInferRequest.FromString(oip.encode_request(draw(requests())))
    keys = st.sampled_from(["priority", "timeout", "priority", "timeout", "sequence_id", "own", "triton_x"])
    for key in draw(st.lists(keys, max_size=2)):
        request.parameters[key].int64_param = draw(st.sampled_from([0, 1, 3, -1, 3_000_000_000, 2**40]))
    data = bytearray(request.SerializeToString())
    if draw(st.integers(0, 3)) == 3:
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    return bytes(data)


def whole_answer(address: Address, data: bytes, token: str) -> tuple[str, str, bytes, dict[str, str]]:
    """Status, text, message and our own trailing metadata."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(str(address)) as channel:
        try:
            message, told = channel.unary_unary(INFER).with_call(data, timeout=TIMEOUT_S, metadata=metadata)
            status, text = "OK", ""
        except grpc.RpcError as error:
            status, text, message, told = error.code().name, error.details(), b"", error
    ours = {str(key): str(value) for key, value in told.trailing_metadata() or () if key.startswith("holdfast-")}
    return status, text, message, ours


def counters(address: Address) -> list[bytes]:
    """What was counted, without times."""
    head = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
    return sorted(COUNTERS.findall(exchange(address, head.encode())))


@settings(max_examples=150, deadline=None)
@given(data=messages(), token=st.sampled_from([TOKEN, TOKEN, TOKEN, TOKEN, "", "another-token-of-16"]))
def test_fronts_agree_in_answer_text_code_and_count(guarded: dict[Front, Address], data: bytes, token: str) -> None:
    native, grpcio = (whole_answer(guarded[front], data, token) for front in FRONTS)

    event(f"status {native[0]}")
    assert native == grpcio
    assert counters(guarded["native"]) == counters(guarded["grpcio"]) != []
