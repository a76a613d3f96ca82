"""Unmodified clients use Triton's extensions: streams, classification, configuration, statistics, codings, health."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, call, pool_of, serving
from tritonclient.utils import InferenceServerException

from holdfast.errors import UsageError
from holdfast.serving import reflection_v1_pb2, reflection_v1alpha_pb2
from holdfast.serving.rpc import HEALTH
from holdfast.serving.server import Address, Front, Server, ServerOptions

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
    for service in ("", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        answer = health_pb2.HealthCheckResponse.FromString(call(Address.parse(address), request, HEALTH + "Check"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="absent").SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        call(Address.parse(address), unknown, HEALTH + "Check")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_watcher_is_told_when_the_server_drains(front: Front) -> None:
    options = ServerOptions(Address("127.0.0.1", 0), front=front)
    server = Server(pool_of(MODELS), options=options)
    address = server.start()
    with grpc.insecure_channel(str(address)) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        first = next(watch).status
        stopping = threading.Thread(target=server.stop, args=(5.0,))
        stopping.start()
        second = next(watch).status
        watch.cancel()
        stopping.join()

    assert first == health_pb2.HealthCheckResponse.SERVING
    assert second == health_pb2.HealthCheckResponse.NOT_SERVING


def test_watcher_of_an_unknown_service_is_told_so(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="absent"), timeout=TIMEOUT_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


@pytest.mark.parametrize(("version", "module"), [("v1", reflection_v1_pb2), ("v1alpha", reflection_v1alpha_pb2)])
def test_reflection_tells_every_call_and_its_messages(address: str, version: str, module: ModuleType) -> None:
    ask = module.ServerReflectionRequest
    questions = [
        ask(list_services=""),
        ask(file_containing_symbol="inference.GRPCInferenceService.ModelInfer"),
        ask(file_by_filename="holdfast/serving/health.proto"),
        ask(file_containing_symbol="absent.Service"),
        ask(all_extension_numbers_of_type="inference.ModelInferRequest"),
    ]
    with grpc.insecure_channel(address) as channel:
        talk = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
        answers = talk(iter([question.SerializeToString() for question in questions]), timeout=TIMEOUT_S)
        told = [module.ServerReflectionResponse.FromString(data) for data in answers]

    services = [service.name for service in told[0].list_services_response.service]
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} < set(services)
    (file,) = told[1].file_descriptor_response.file_descriptor_proto
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file)
    assert pool.FindMethodByName("inference.GRPCInferenceService.ModelInfer").input_type.name == "ModelInferRequest"
    assert len(told[2].file_descriptor_response.file_descriptor_proto) == 1
    assert [answer.error_response.error_code for answer in told[3:]] == [5, 12]
    assert told[3].original_request.file_containing_symbol == "absent.Service"


def test_trace_context_comes_back_with_the_answer(address: str) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with grpc.insecure_channel(address) as channel:
        _, got = channel.unary_unary("/inference.GRPCInferenceService/ServerLive").with_call(
            b"", timeout=TIMEOUT_S, metadata=[("traceparent", trace)]
        )

    metadata = dict(got.initial_metadata()) | dict(got.trailing_metadata())
    assert metadata["traceparent"] == trace


def test_every_further_address_answers_like_the_first(front: Front) -> None:
    here = Address("127.0.0.1", 0)
    server = Server(pool_of(MODELS), options=ServerOptions(here, (here, here), front=front))
    server.start()
    try:
        assert len({address.port for address in server.addresses}) == 3
        for address in server.addresses:
            for kind in CLIENTS.values():
                with kind.InferenceServerClient(str(address)) as client:
                    assert client.infer("double", [tensor(kind)]).as_numpy("y").tolist() == (2 * X).tolist()
    finally:
        server.stop(2.0)


def test_address_in_use_leaves_none_open(front: Front) -> None:
    here = Address("127.0.0.1", 0)
    first = Server(pool_of(MODELS), options=ServerOptions(here, front=front))
    taken = first.start()
    try:
        second = Server(pool_of(MODELS), options=ServerOptions(here, (taken,), front=front))
        with pytest.raises(UsageError, match="in use by another program"):
            second.start()
        second.stop(1.0)
    finally:
        first.stop(2.0)
