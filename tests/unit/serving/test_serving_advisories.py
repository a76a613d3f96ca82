"""One test per class of defect that inference servers were warned about in public: what was attacked there holds here.

Path escape through repository names and through shared memory keys stands in test_serving_repository.py and
test_serving_shared_memory.py.
"""

from __future__ import annotations

import json
import logging
import struct
import tracemalloc

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.offer import Counter, counter
from tests.fakes.serving import pool_of

from holdfast.errors import HoldfastError, InvalidTensorError
from holdfast.inference.session import ModelSession
from holdfast.serving import oip_pb2
from holdfast.serving.oip_json import MAX_JSON_BYTES
from holdfast.serving.rpc import MODEL_INFER
from holdfast.serving.service import InferenceService

MANY_BYTES = 8 * 1024**2  # far more than any refusal may take


@pytest.fixture(scope="module")
def desk() -> Counter:
    return counter(pool_of({"m": models.scale(2.0), "s": models.identity(8, ("n",))}))


def refused(desk: Counter, message: oip_pb2.ModelInferRequest) -> str:
    """Why a request is refused, which must not take memory."""
    data = message.SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(HoldfastError) as error:
            desk.grpc(MODEL_INFER, data)
        assert tracemalloc.get_traced_memory()[1] < MANY_BYTES
    finally:
        tracemalloc.stop()
    return str(error.value)


@pytest.mark.parametrize(
    "shape",
    [[2**40], [2**62, 4], [2**31, 2**31, 4], [2**63 - 1, 2**63 - 1], [-1, 4], [-(2**63), 4], [0, 2**62], [2**62, 0]],
)
def test_declared_shape_takes_no_memory(desk: Counter, shape: list[int]) -> None:
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b""])
    message.inputs.add(name="x", datatype="FP32", shape=shape)

    assert "input 'x'" in refused(desk, message)


@pytest.mark.parametrize("size", [2**32 - 1, 2**31, 5])
def test_declared_length_of_a_text_takes_no_memory(desk: Counter, size: int) -> None:
    message = oip_pb2.ModelInferRequest(model_name="s", raw_input_contents=[struct.pack("<I", size) + b"abcd"])
    message.inputs.add(name="x", datatype="BYTES", shape=[1])

    assert f"declares {size} bytes, 4 are left" in refused(desk, message)


def test_sizes_that_overflow_32_or_64_bits_are_not_taken_for_small_ones(desk: Counter) -> None:
    """2^32 elements of four bytes are 2^34 bytes, not 0; 2^62 of them are 2^64, not 0."""
    for elements in (2**30, 2**32, 2**62):
        message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b""])
        message.inputs.add(name="x", datatype="FP32", shape=[elements])
        assert "input 'x'" in refused(desk, message)


@pytest.mark.parametrize("size", ["-1", "18446744073709551615", "9223372036854775808", "1e3", "0x10", "١"])
def test_header_length_is_a_plain_number_inside_the_body(desk: Counter, size: str) -> None:
    body = b'{"inputs": []}'

    response = desk.http("POST", "/v2/models/m/infer", body, {"inference-header-content-length": size})

    assert response.status == 400


@pytest.mark.parametrize("size", [-1, 2**63, 2**64, 1.0, True, "16", None])
def test_binary_size_is_a_whole_number_inside_the_body(desk: Counter, size: object) -> None:
    parameters = {"binary_data_size": size}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": parameters}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(header))}

    assert desk.http("POST", "/v2/models/m/infer", header + bytes(16), headers).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"inputs": ' + b"9" * 5_000 + b"}",
        b'{"id": "' + b"x" * MAX_JSON_BYTES + b'"}',
        b'{"inputs": [' + b"{}," * 2_000 + b"{}]}",
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [' + b"1," * 5_000 + b'1], "data": []}]}',
        b'{"inputs": 1e999}',
        b'{"inputs": NaN}',
    ],
    ids=["deep-list", "deep-object", "many-digits", "oversized", "many-inputs", "many-axes", "infinity", "nan"],
)
def test_hostile_json_is_refused(desk: Counter, body: bytes) -> None:
    response = desk.http("POST", "/v2/models/m/infer", body)

    assert response.status == 400
    assert len(response.body) < 1_000


def test_names_do_not_come_back_at_length(desk: Counter) -> None:
    name = "x" * 100_000

    message = oip_pb2.ModelInferRequest(model_name=name, model_version=name)
    assert len(refused(desk, message)) < 1_000
    assert len(desk.http("GET", f"/v2/models/{name}").body) < 1_000
    assert len(desk.http("GET", f"/{name}").body) < 1_000


@pytest.mark.parametrize(
    "text", ["a\nERROR forged line", "a\r\n\r\nHTTP/1.1 200 OK", "\x1b[2J\x1b[31m", "a\0b", "%0a%0d"]
)
def test_nothing_that_a_client_says_reaches_the_log_or_a_header(
    desk: Counter, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    caplog.set_level(logging.DEBUG)
    message = oip_pb2.ModelInferRequest(model_name=text, model_version=text, id=text)
    message.inputs.add(name=text, datatype=text, shape=[1])

    with pytest.raises(HoldfastError):
        desk.grpc(MODEL_INFER, message.SerializeToString())
    for path in (f"/v2/models/{text}", f"/{text}", f"/v2/models/m/versions/{text}/config"):
        response = desk.http("GET", path, b"", {"traceparent": text, "accept-encoding": text})
        assert response.status in (404, 400, 200)
        for name, value in response.headers.items():
            assert name.isprintable()
            assert value.isprintable()
        json.loads(response.body)

    assert caplog.records == []


def test_our_own_bug_tells_the_client_an_id_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = counter(pool_of({"m": models.scale(2.0)}))

    def fail(*_arguments: object) -> bool:
        raise AssertionError("secret path /srv/models")

    monkeypatch.setattr(InferenceService, "is_model_ready", fail)
    response = desk.http("GET", "/v2/models/m/ready")

    assert response.status == 500
    assert b"secret" not in response.body
    (record,) = caplog.records
    assert record.__dict__["error_id"] in response.body.decode()


def test_output_that_json_cannot_carry_is_refused(desk: Counter) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [3e38, 0, 0, 0]}]})

    response = desk.http("POST", "/v2/models/m/infer", body.encode())

    assert response.status == 400
    assert "NaN or infinity" in json.loads(response.body)["error"]


def test_index_outside_a_table_is_the_models_error_not_a_read_of_memory() -> None:
    desk = counter(pool_of({"g": models.gather()}))
    for index in (3, -4, 2**62, -(2**62)):
        tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [index]}
        response = desk.http("POST", "/v2/models/g/infer", json.dumps({"inputs": [tensor]}).encode())
        assert response.status == 500
        assert "failed on these inputs" in json.loads(response.body)["error"]


def test_classes_asked_for_take_no_more_than_there_are(desk: Counter) -> None:
    wanted = {"name": "y", "parameters": {"classification": 2**31 - 1}}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()

    (output,) = json.loads(desk.http("POST", "/v2/models/m/infer", body).body)["outputs"]

    assert output["shape"] == [1, 4]


def test_session_refuses_before_the_runtime_sees_it() -> None:
    session: ModelSession = pool_of({"m": models.scale(1.0)}).get("m").session

    with pytest.raises(InvalidTensorError):
        session.run({"x": np.zeros((0, 0), dtype=np.float32)})
