"""Unmodified clients in this very process get what onnxruntime answers, bit for bit, over gRPC and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.serving import pool_of, serving
from tritonclient.utils import InferenceServerException

from holdfast.serving.server import Front

WORDS = np.array([["weiß", "", "a\0b"], ["x", "y" * 300, "z"]], dtype=object)
RNG = np.random.default_rng(5)
CASES: dict[str, tuple[bytes, str, np.ndarray]] = {
    "fp32": (models.perceptron(), "FP32", RNG.standard_normal((3, 4)).astype(np.float32)),
    "fp16": (models.identity(TensorProto.FLOAT16), "FP16", RNG.standard_normal((3, 4)).astype(np.float16)),
    "fp64": (models.identity(TensorProto.DOUBLE), "FP64", RNG.standard_normal((3, 4))),
    "int8": (models.identity(TensorProto.INT8), "INT8", RNG.integers(-128, 128, (3, 4)).astype(np.int8)),
    "int64": (models.identity(TensorProto.INT64), "INT64", RNG.integers(-(2**62), 2**62, (3, 4))),
    "uint64": (models.identity(TensorProto.UINT64), "UINT64", RNG.integers(0, 2**63, (3, 4)).astype(np.uint64)),
    "bool": (models.identity(TensorProto.BOOL), "BOOL", RNG.integers(0, 2, (3, 4)).astype(bool)),
    "bytes": (models.identity(TensorProto.STRING, ("n", 3)), "BYTES", WORDS),
    "large": (models.identity(), "FP32", RNG.standard_normal((200_000, 4)).astype(np.float32)),
    "empty": (models.identity(), "FP32", np.empty((0, 4), dtype=np.float32)),
}
MORE_MODELS = {"two": models.two_in_two_out(), "bf16": models.identity(TensorProto.BFLOAT16)}
CLIENTS = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@pytest.fixture(scope="module")
def address(front: Front) -> Iterator[str]:
    with serving(
        pool_of(
            {
                **{name: case[0] for name, case in CASES.items()},
                "two": models.two_in_two_out(),
                "bf16": models.identity(TensorProto.BFLOAT16),
            }
        ),
        front=front,
    ) as at:
        yield str(at)


@pytest.fixture(params=sorted(CLIENTS))
def kind(request: pytest.FixtureRequest) -> ModuleType:
    return CLIENTS[request.param]


@pytest.fixture
def client(kind: ModuleType, address: str) -> Iterator[Any]:
    client = kind.InferenceServerClient(address)
    yield client
    client.close()


def tensor(kind: ModuleType, name: str, array: np.ndarray, datatype: str) -> Any:
    made = kind.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


@pytest.mark.parametrize("case", sorted(CASES))
def test_client_gets_what_onnxruntime_answers(kind: ModuleType, client: Any, case: str) -> None:
    model, datatype, x = CASES[case]
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})

    answer = client.infer(case, [tensor(kind, "x", x, datatype)], request_id="id-7")

    got = answer.as_numpy("y")
    assert got.shape == expected.shape
    if datatype == "BYTES":
        assert [item.decode() for item in got.ravel()] == expected.ravel().tolist()
    else:
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "id-7"


@pytest.mark.parametrize("case", ["fp32", "int64", "bool", "bytes"])
@pytest.mark.parametrize("binary", [True, False])
def test_http_client_gets_the_same_as_json_and_as_binary(address: str, case: str, binary: bool) -> None:
    kind, (model, datatype, x) = tritonclient.http, CASES[case]
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    given = kind.InferInput("x", list(x.shape), datatype)
    given.set_data_from_numpy(x, binary_data=binary)

    with kind.InferenceServerClient(address) as client:
        answer = client.infer(case, [given], outputs=[kind.InferRequestedOutput("y", binary_data=not binary)])

    got = answer.as_numpy("y")
    if datatype == "BYTES":
        assert [x if isinstance(x, str) else x.decode() for x in got.ravel()] == expected.ravel().tolist()
    else:
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_client_may_compress_its_request(address: str, algorithm: str) -> None:
    kind, (_, datatype, x) = tritonclient.http, CASES["fp32"]

    with kind.InferenceServerClient(address) as client:
        plain = client.infer("fp32", [tensor(kind, "x", x, datatype)])
        packed = client.infer("fp32", [tensor(kind, "x", x, datatype)], request_compression_algorithm=algorithm)

    assert np.array_equal(packed.as_numpy("y"), plain.as_numpy("y"))


def test_client_chooses_outputs_in_its_own_order(kind: ModuleType, client: Any) -> None:
    a, b = np.array([1, 5]), np.array([1, 2])
    wanted = [kind.InferRequestedOutput("same"), kind.InferRequestedOutput("sum")]

    answer = client.infer("two", [tensor(kind, "b", b, "INT64"), tensor(kind, "a", a, "INT64")], outputs=wanted)

    assert answer.as_numpy("same").tolist() == [True, False]
    assert answer.as_numpy("sum").tolist() == [2, 7]


def test_client_sees_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("two")
    assert client.is_model_ready("two", "1")
    assert not client.is_model_ready("two", "2")
    assert not client.is_model_ready("absent")
    server, model = client.get_server_metadata(), client.get_model_metadata("two")
    if not isinstance(model, dict):
        server, model = client.get_server_metadata(as_json=True), client.get_model_metadata("two", as_json=True)
    assert server["name"] == "holdfast"
    assert model["name"] == "two"
    assert list(model["versions"]) == ["1"]
    assert [(t["name"], t["datatype"]) for t in model["outputs"]] == [("sum", "INT64"), ("same", "BOOL")]
    assert [int(size) for size in model["inputs"][0]["shape"]] == [-1]


def test_bf16_goes_through_bit_for_bit(kind: ModuleType, client: Any) -> None:
    x = np.array([[1.0, -2.5, 3.140625, float("inf")]], dtype=ml_dtypes.bfloat16)

    given = kind.InferInput("x", [1, 4], "BF16")
    given.set_data_from_numpy(x)
    answer = client.infer("bf16", [given])

    assert np.asarray(answer.as_numpy("y"), dtype=np.float32).tolist() == x.astype(np.float32).tolist()
    response = answer.get_response()
    assert (
        response["outputs"][0]["datatype"] if isinstance(response, dict) else response.outputs[0].datatype
    ) == "BF16"


def test_bf16_has_no_json_form(address: str) -> None:
    kind = tritonclient.http
    given = kind.InferInput("x", [1, 4], "BF16")
    given.set_data_from_numpy(np.zeros((1, 4), dtype=ml_dtypes.bfloat16))
    with kind.InferenceServerClient(address) as client, pytest.raises(InferenceServerException, match="no JSON form"):
        client.infer("bf16", [given], outputs=[kind.InferRequestedOutput("y", binary_data=False)])


FP32 = CASES["fp32"][2]
TURNED = np.zeros((4, 3), dtype=np.float32)
ERRORS: dict[str, tuple[str, str, np.ndarray, str, str]] = {
    # model, input, array, gRPC status, text
    "unknown_model": ("absent", "x", FP32, "NOT_FOUND", "Request for unknown model: 'absent' is not found"),
    "wrong_name": ("fp32", "z", FP32, "INVALID_ARGUMENT", "wrong inputs: expected x; got z"),
    "wrong_dtype": ("fp32", "x", FP32 > 0, "INVALID_ARGUMENT", "input 'x': expected float32, got bool"),
    "wrong_shape": ("fp32", "x", TURNED, "INVALID_ARGUMENT", "input 'x': expected shape [?, 4], got [4, 3]"),
}
HTTP_OF = {"NOT_FOUND": "404", "INVALID_ARGUMENT": "400"}


@pytest.mark.parametrize("defect", sorted(ERRORS))
def test_client_is_told_what_was_wrong(kind: ModuleType, client: Any, defect: str) -> None:
    model, name, array, status, text = ERRORS[defect]
    datatype = "BOOL" if array.dtype == bool else "FP32"

    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [tensor(kind, name, array, datatype)])

    assert refused.value.message() == text
    assert refused.value.status().removeprefix("StatusCode.") in (status, HTTP_OF[status])


def test_unoffered_calls_are_unimplemented_with_a_reason(kind: ModuleType, client: Any) -> None:
    calls = {
        client.get_trace_settings: "trace headers are passed through",
        client.get_log_settings: "log setting",
        client.get_cuda_shared_memory_status: "models run on the CPU",
    }
    for call, reason in calls.items():
        with pytest.raises(InferenceServerException, match=reason) as refused:
            call()
        assert refused.value.status().removeprefix("StatusCode.") in ("UNIMPLEMENTED", "501")


def test_forgetting_all_cuda_regions_is_done_for_there_are_none(client: Any) -> None:
    """Triton's example programs begin with it; of one region by its name nothing is known."""
    client.unregister_cuda_shared_memory()

    with pytest.raises(InferenceServerException, match="models run on the CPU"):
        client.unregister_cuda_shared_memory("r")
