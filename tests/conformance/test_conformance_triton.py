"""What Triton's own example programs do, step by step, with its unmodified clients: strings, regions, control, async.

One test for each kind of them. Not among them: CUDA, sequences and decoupled models, which are refused with a reason.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto
from tests.conformance.conftest import Target
from tests.fakes import served_models as models
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, serialized_byte_size

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import load_session
from holdfast.serving.authorisation import rules_of
from holdfast.serving.repository import FolderRepository
from holdfast.serving.server import Address, Server, ServerOptions

X = np.arange(8, dtype=np.float32).reshape(2, 4)
WORDS = np.array([b"0", b"one", "größer".encode(), b""], dtype=object)
KINDS = {"grpc": tritonclient.grpc, "http": tritonclient.http}
REPOSITORY = {
    "double": models.scale(2.0),
    "words": models.identity(TensorProto.STRING, ("n",)),
    "small": models.identity(TensorProto.INT8),
    "numbers": models.identity(TensorProto.INT32),
    "two": models.two_in_two_out(),
}


@dataclass(frozen=True, slots=True)
class Site:
    """A server with everything on offer: its open port and its admin socket."""

    port: str
    admin: str


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    for name, data in REPOSITORY.items():
        folder = tmp_path / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(data)
    pool, socket = ModelPool(), tmp_path / "admin.sock"
    repository = FolderRepository(tmp_path / "models", pool, lambda source, settings: load_session(source))
    repository.load_all()
    rules = rules_of(model_control=True, shared_memory=True)
    options = ServerOptions(Address("127.0.0.1", 0), rules=rules, admin_socket=socket)
    server = Server(pool, options=options, repository=repository)
    yield Site(str(server.start()), f"unix:{socket}")
    server.stop(2.0)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]


@dataclass(frozen=True, slots=True)
class Regions:
    """Two regions of a client's own: one to give tensors in, one to get them back in."""

    given: Any
    taken: Any
    keys: tuple[str, str]
    size: int


@pytest.fixture
def regions() -> Iterator[Regions]:
    keys = (f"/holdfast-given-{os.getpid()}", f"/holdfast-taken-{os.getpid()}")
    given, taken = (shm.create_shared_memory_region(key, key, 256) for key in keys)
    yield Regions(given, taken, keys, 256)
    shm.destroy_shared_memory_region(given)
    shm.destroy_shared_memory_region(taken)


def register(site: Site, regions: Regions) -> None:
    """As every example begins: forget what an earlier one left, then register."""
    with tritonclient.grpc.InferenceServerClient(site.admin) as admin:
        admin.unregister_system_shared_memory()
        admin.unregister_cuda_shared_memory()
        for name, key in zip(("given", "taken"), regions.keys, strict=True):
            admin.register_system_shared_memory(name, key, regions.size)


def given(kind: Any, array: np.ndarray, datatype: str, **how: Any) -> Any:
    tensor = kind.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **how)
    return tensor


def test_health_and_metadata(kind: Any, site: Site) -> None:
    extra = {"query_params": {"test_1": 1, "test_2": 2}} if kind is tritonclient.http else {"headers": {"test": "1"}}
    with kind.InferenceServerClient(site.port) as client:
        assert client.is_server_live(**extra)
        assert client.is_server_ready()
        assert client.is_model_ready("double")
        client.get_server_metadata()
        client.get_model_metadata("double", **extra)
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_http_mixes_json_and_binary_with_query_and_headers(site: Site, algorithm: str | None) -> None:
    kind = tritonclient.http
    a, b = np.array([1, 5]), np.array([1, 2])
    tensors = [kind.InferInput(name, [2], "INT64") for name in ("a", "b")]
    tensors[0].set_data_from_numpy(a, binary_data=False)
    tensors[1].set_data_from_numpy(b, binary_data=True)
    wanted = [kind.InferRequestedOutput("sum", binary_data=True), kind.InferRequestedOutput("same", binary_data=False)]
    how: dict[str, Any] = {"query_params": {"test_1": 1}, "headers": {"x-test": "1"}}
    how |= {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}

    with kind.InferenceServerClient(site.port, verbose=False) as client:
        for outputs in (wanted, None):
            answer = client.infer("two", tensors, outputs=outputs, **how)
            assert answer.as_numpy("sum").tolist() == [2, 7]
            assert answer.as_numpy("same").tolist() == [True, False]
        assert len(client.get_inference_statistics("two", headers={"x-test": "1"})["model_stats"]) == 1
        with pytest.raises(InferenceServerException) as refused:
            client.infer("wrong_model_name", tensors)
        assert refused.value.message().startswith("Request for unknown model")


def test_https_with_the_clients_own_options(secured: Target) -> None:
    options = {"ca_certs": str(secured.authority)}
    with tritonclient.http.InferenceServerClient(str(secured), ssl=True, ssl_options=options) as client:
        answer = client.infer("double", [given(tritonclient.http, X, "FP32")])

    assert answer.as_numpy("y").tolist() == (2 * X).tolist()


def test_strings(kind: Any, site: Site) -> None:
    with kind.InferenceServerClient(site.port) as client:
        answer = client.infer("words", [given(kind, WORDS, "BYTES")])

    assert answer.as_numpy("y").tolist() == WORDS.tolist()


def test_aio_over_grpc(site: Site) -> None:
    async def talk() -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(site.port) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("double")
            assert (await client.get_model_metadata("double")).name == "double"
            many = [client.infer("double", [given(tritonclient.grpc, X + n, "FP32")]) for n in range(20)]
            for n, answer in enumerate(await asyncio.gather(*many)):
                assert answer.as_numpy("y").tolist() == (2 * (X + n)).tolist()
            words = await client.infer("words", [given(tritonclient.grpc, WORDS, "BYTES")])
            assert words.as_numpy("y").tolist() == WORDS.tolist()
        async with tritonclient.grpc.aio.InferenceServerClient(site.admin) as admin:
            await admin.unload_model("double")
            assert not await admin.is_model_ready("double")
            await admin.load_model("double")
            assert await admin.is_model_ready("double")

    asyncio.run(talk())


def test_aio_over_http(site: Site) -> None:
    async def talk() -> None:
        async with tritonclient.http.aio.InferenceServerClient(site.port) as client:
            assert await client.is_server_live(query_params={"test_1": 1})
            assert await client.is_model_ready("double")
            assert (await client.get_model_metadata("double"))["name"] == "double"
            assert len(await client.get_model_repository_index()) == len(REPOSITORY)
            many = [client.infer("double", [given(tritonclient.http, X + n, "FP32")]) for n in range(20)]
            for n, answer in enumerate(await asyncio.gather(*many)):
                assert answer.as_numpy("y").tolist() == (2 * (X + n)).tolist()
            words = await client.infer("words", [given(tritonclient.http, WORDS, "BYTES")])
            assert words.as_numpy("y").tolist() == WORDS.tolist()
            with pytest.raises(InferenceServerException, match="admin socket only"):
                await client.load_model("double")

    asyncio.run(talk())


def test_the_same_objects_with_and_without_shared_memory(kind: Any, site: Site, regions: Regions) -> None:
    register(site, regions)
    shm.set_shared_memory_region(regions.given, [X])
    tensor, wanted = kind.InferInput("x", [2, 4], "FP32"), kind.InferRequestedOutput("y")

    with kind.InferenceServerClient(site.port) as client:
        for turn in range(4):
            if turn % 2 == 0:
                tensor.set_shared_memory("given", X.nbytes)
                wanted.set_shared_memory("taken", X.nbytes)
                client.infer("double", [tensor], outputs=[wanted])
                got = shm.get_contents_as_numpy(regions.taken, np.float32, [2, 4]).copy()
                assert got.tolist() == (2 * X).tolist()
            else:
                tensor.set_data_from_numpy(X + turn)
                wanted.unset_shared_memory()
                answer = client.infer("double", [tensor], outputs=[wanted])
                assert answer.as_numpy("y").tolist() == (2 * (X + turn)).tolist()


def test_strings_in_shared_memory(kind: Any, site: Site, regions: Regions) -> None:
    register(site, regions)
    packed = serialize_byte_tensor(WORDS)
    size = serialized_byte_size(packed)
    shm.set_shared_memory_region(regions.given, [packed])
    tensor, wanted = kind.InferInput("x", [len(WORDS)], "BYTES"), kind.InferRequestedOutput("y")
    tensor.set_shared_memory("given", size)
    wanted.set_shared_memory("taken", size)

    with kind.InferenceServerClient(site.port) as client:
        client.infer("words", [tensor], outputs=[wanted])

    assert shm.get_contents_as_numpy(regions.taken, np.object_, [len(WORDS)]).tolist() == WORDS.tolist()


@pytest.mark.parametrize(
    "how",
    [
        {
            "keepalive_options": tritonclient.grpc.KeepAliveOptions(
                keepalive_time_ms=2**31 - 1, keepalive_timeout_ms=20_000, http2_max_pings_without_data=2
            )
        },
        {
            "channel_args": [
                ("grpc.max_send_message_length", 1024 * 1024),
                ("grpc.max_receive_message_length", 1024 * 1024),
                ("grpc.keepalive_time_ms", 2**31 - 1),
                ("grpc.http2.max_pings_without_data", 2),
                ("grpc.dns_enable_srv_queries", 1),
            ]
        },
    ],
    ids=["keepalive", "custom_args"],
)
def test_channel_arguments(site: Site, how: dict[str, Any]) -> None:
    with tritonclient.grpc.InferenceServerClient(site.port, **how) as client:
        answer = client.infer("double", [given(tritonclient.grpc, X, "FP32")], headers={"test": "1"})

    assert answer.as_numpy("y").tolist() == (2 * X).tolist()


@pytest.mark.parametrize(
    ("model", "datatype", "field", "values", "dtype"),
    [
        ("numbers", "INT32", "int_contents", [0, -7, 2**31 - 1, 5], np.int32),
        ("small", "INT8", "int_contents", [0, -128, 127, 5], np.int8),
        ("double", "FP32", "fp32_contents", [0.0, 1.5, -2.0, 3.0], np.float32),
        ("words", "BYTES", "bytes_contents", WORDS.tolist(), None),
    ],
)
def test_explicit_contents_through_the_stub(
    site: Site, model: str, datatype: str, field: str, values: list, dtype: Any
) -> None:
    shape = [len(values)] if datatype == "BYTES" else [1, len(values)]
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, field).extend(values)
    request.outputs.add(name="y")

    with grpc.insecure_channel(site.port) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
        request.model_version = "wrong_specification"
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)

    (raw,) = answer.raw_output_contents
    if dtype is None:
        assert raw == serialize_byte_tensor(WORDS).item()
    else:
        factor = 2 if model == "double" else 1
        assert np.frombuffer(raw, dtype).tolist() == [factor * value for value in values]
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "wrong_specification" in refused.value.details()


def test_model_control(site: Site) -> None:
    with tritonclient.grpc.InferenceServerClient(site.admin) as admin:
        assert len(admin.get_model_repository_index().models) == len(REPOSITORY)
        admin.load_model("double")
        assert admin.is_model_ready("double")
        for how in ({"config": '{"max_batch_size":"16"}'}, {"config": "{}", "files": {"file:" + "A" * 256: b"a"}}):
            with pytest.raises(InferenceServerException) as refused:
                admin.load_model("double", **how)
            assert refused.value.status() == "StatusCode.PERMISSION_DENIED"
        admin.unload_model("double")
        assert not admin.is_model_ready("double")
        with pytest.raises(InferenceServerException, match="failed to load"):
            admin.load_model("wrong_model_name")
        assert admin.is_server_live()
