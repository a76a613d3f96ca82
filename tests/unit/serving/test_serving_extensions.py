"""Unmodified clients use Triton's extensions: streams, classification, configuration, statistics, codings, health."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from grpc_health.v1 import health_pb2
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, call, pool_of, serving
from tritonclient.utils import InferenceServerException

from holdfast.serving.server import Address, Front

X = np.array([[1, 2, 3, 4], [-4, -3, -2, -1]], dtype=np.float32)
MODELS = {"double": models.scale(2.0), "two": models.two_in_two_out()}
CLIENTS = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@pytest.fixture(scope="module")
def address(front: Front) -> Iterator[str]:
    with serving(pool_of(MODELS), front=front) as at:
        yield str(at)


@pytest.fixture(params=sorted(CLIENTS))
def kind(request: pytest.FixtureRequest) -> ModuleType:
    return CLIENTS[request.param]


@pytest.fixture
def client(kind: ModuleType, address: str) -> Iterator[Any]:
    client = kind.InferenceServerClient(address)
    yield client
    client.close()


def tensor(kind: ModuleType, array: np.ndarray = X) -> Any:
    made = kind.InferInput("x", list(array.shape), "FP32")
    made.set_data_from_numpy(array)
    return made


def test_stream_answers_each_request_in_order_and_goes_on_after_an_error(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, model in enumerate(["double", "absent", "double"]):
            client.async_stream_infer(model, [tensor(tritonclient.grpc)], request_id=str(number))
        got = [answers.get(timeout=TIMEOUT_S) for _ in range(3)]
        client.stop_stream()

    assert [error is None for _, error in got] == [True, False, True]
    assert "Request for unknown model: 'absent'" in got[1][1].message()
    assert got[0][0].get_response().id == "0"
    assert got[2][0].get_response().id == "2"
    assert got[2][0].as_numpy("y").tolist() == (2 * X).tolist()
    assert got[2][0].get_response().parameters["triton_final_response"].bool_param


def test_aio_client_infers_and_streams(address: str) -> None:
    async def talk() -> tuple[Any, list[Any]]:
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            single = await client.infer("double", [tensor(tritonclient.grpc)])

            async def requests() -> Any:
                for _ in range(2):
                    yield {"model_name": "double", "inputs": [tensor(tritonclient.grpc)]}

            streamed = [result async for result, _ in client.stream_infer(requests())]
            return single, streamed

    single, streamed = asyncio.run(talk())

    for result in (single, *streamed):
        assert result.as_numpy("y").tolist() == (2 * X).tolist()
    assert len(streamed) == 2


def test_async_calls_answer(address: str) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address) as client:
        client.async_infer("double", [tensor(tritonclient.grpc)], lambda result, error: answers.put(result))
        over_grpc = answers.get(timeout=TIMEOUT_S)
    with tritonclient.http.InferenceServerClient(address, concurrency=2) as client:
        waiting = [client.async_infer("double", [tensor(tritonclient.http)]) for _ in range(2)]
        over_http = [one.get_result() for one in waiting]

    for result in (over_grpc, *over_http):
        assert result.as_numpy("y").tolist() == (2 * X).tolist()


def test_classification_gives_the_best_classes_of_each_row(kind: ModuleType, client: Any) -> None:
    wanted = [kind.InferRequestedOutput("y", class_count=2)]

    answer = client.infer("double", [tensor(kind)], outputs=wanted)

    texts = [item if isinstance(item, str) else item.decode() for item in answer.as_numpy("y").ravel()]
    assert answer.as_numpy("y").shape == (2, 2)
    assert texts == ["8.000000:3", "6.000000:2", "-2.000000:3", "-4.000000:2"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_answer_is_compressed_where_asked(address: str, algorithm: str) -> None:
    x = np.zeros((500, 4), dtype=np.float32)
    with tritonclient.http.InferenceServerClient(address) as client:
        answer = client.infer(
            "double", [tensor(tritonclient.http, x)], response_compression_algorithm=algorithm, request_id="7"
        )

    assert np.array_equal(answer.as_numpy("y"), x)


def test_configuration_names_the_tensors(kind: ModuleType, client: Any) -> None:
    got = client.get_model_config("two") if kind is tritonclient.http else client.get_model_config("two", as_json=True)
    config = got.get("config", got)

    assert config["name"] == "two"
    assert config["platform"] == "onnxruntime_onnx"
    assert [(t["name"], t["data_type"]) for t in config["output"]] == [("sum", "TYPE_INT64"), ("same", "TYPE_BOOL")]
    assert [int(version) for version in config["version_policy"]["specific"]["versions"]] == [1]


def test_statistics_count_rows_runs_and_failures(kind: ModuleType, client: Any) -> None:
    def stats() -> dict[str, Any]:
        arguments = {} if kind is tritonclient.http else {"as_json": True}
        (only,) = client.get_inference_statistics("double", **arguments)["model_stats"]
        return only

    before = stats()
    client.infer("double", [tensor(kind)])
    with pytest.raises(InferenceServerException):
        client.infer("double", [tensor(kind, X[:, :2])])
    after = stats()

    def grew(*path: str) -> int:
        old, new = before, after
        for key in path:
            old, new = old.get(key, {}), new[key]
        return int(new) - int(old or 0)

    assert grew("inference_count") == 2
    assert grew("execution_count") == 1
    assert grew("inference_stats", "success", "count") == 1
    assert grew("inference_stats", "fail", "count") == 1
    assert grew("inference_stats", "success", "ns") > 0
    assert int(after["last_inference"]) > 0
    assert "2" in [str(batch["batch_size"]) for batch in after["batch_stats"]]


def test_index_tells_what_is_served_and_loading_is_refused(kind: ModuleType, client: Any) -> None:
    got = client.get_model_repository_index()
    names = [m["name"] for m in got] if kind is tritonclient.http else [m.name for m in got.models]

    assert names == ["double", "two"]
    for refuse in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="not offered by this server") as refused:
            refuse("double")
        assert refused.value.status().removeprefix("StatusCode.") in ("PERMISSION_DENIED", "403")


def test_metadata_advertises_only_what_is_offered(kind: ModuleType, client: Any) -> None:
    got = client.get_server_metadata()
    extensions = got["extensions"] if kind is tritonclient.http else list(got.extensions)

    assert "classification" in extensions
    assert not {"system_shared_memory", "cuda_shared_memory", "model_repository", "trace", "logging", "sequence"} & set(
        extensions
    )


def test_health_service_is_the_standard_one(address: str) -> None:
    where = Address.parse(address)
    for service in ("", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        answer = health_pb2.HealthCheckResponse.FromString(call(where, request, "/grpc.health.v1.Health/Check"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
