"""An unmodified client of Triton loads, reloads and unloads models over the admin socket, and not on the open port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.fakes import served_models as models
from tritonclient.utils import InferenceServerException

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import load_session
from holdfast.serving.authorisation import rules_of
from holdfast.serving.repository import FolderRepository
from holdfast.serving.server import Address, Front, Server, ServerOptions

X = np.ones((1, 4), dtype=np.float32)


def put(root: Path, version: int, data: bytes) -> None:
    """A version of the model "a" on disk, whole at once."""
    folder = root / "a" / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coming").write_bytes(data)
    os.replace(folder / "coming", folder / "model.onnx")


@pytest.fixture
def clients(
    tmp_path: Path, front: Front
) -> Iterator[tuple[triton.InferenceServerClient, triton.InferenceServerClient, Path]]:
    """A client of the open port, one of the admin socket, and the repository, which holds nothing yet."""
    root, socket, pool = tmp_path / "models", tmp_path / "admin.sock", ModelPool()
    root.mkdir()
    repository = FolderRepository(root, pool, lambda source, settings: load_session(source))
    options = ServerOptions(
        Address("127.0.0.1", 0), rules=rules_of(model_control=True), admin_socket=socket, front=front
    )
    server = Server(pool, options=options, repository=repository)
    address = server.start()
    with triton.InferenceServerClient(str(address)) as client, triton.InferenceServerClient(f"unix:{socket}") as admin:
        yield client, admin, root
    server.stop(2.0)


def factor(client: triton.InferenceServerClient, version: str = "") -> float:
    """What the served model multiplies by."""
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    return float(client.infer("a", [tensor], model_version=version).as_numpy("y")[0, 0])


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    return {f"{model.name}/{model.version}": model.state for model in client.get_model_repository_index().models}


def test_client_loads_reloads_and_unloads(
    clients: tuple[triton.InferenceServerClient, triton.InferenceServerClient, Path],
) -> None:
    client, admin, root = clients
    put(root, 1, models.scale(3.0))

    admin.load_model("a")
    assert factor(client) == 3.0
    assert client.is_model_ready("a")
    put(root, 2, models.scale(5.0))
    admin.load_model("a")
    assert factor(client) == 5.0
    assert states(client)["a/2"] == "READY"
    admin.unload_model("a")

    assert not client.is_model_ready("a")
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'a' has no available versions"):
        factor(client)


def test_client_is_told_why_a_model_is_not_loaded_and_a_good_version_is_served(
    clients: tuple[triton.InferenceServerClient, triton.InferenceServerClient, Path],
) -> None:
    client, admin, root = clients
    put(root, 2, b"not a model")
    for name, reason in (("a", "failed to load 'a', .*not an ONNX file"), ("absent", "failed to load 'absent'")):
        with pytest.raises(InferenceServerException, match=reason):
            admin.load_model(name)
    put(root, 1, models.scale(3.0))

    admin.load_model("a")

    assert factor(client) == 3.0
    assert states(client) == {"a/1": "READY", "a/2": "UNAVAILABLE"}
    assert not client.is_model_ready("a", "2")
    with pytest.raises(InferenceServerException, match="model: 'a' version 2 is not at ready state") as refused:
        factor(client, "2")
    assert refused.value.status() == "StatusCode.UNAVAILABLE"


def test_open_port_controls_nothing(
    clients: tuple[triton.InferenceServerClient, triton.InferenceServerClient, Path],
) -> None:
    client, admin, root = clients
    put(root, 1, models.scale(3.0))
    admin.load_model("a")

    for control in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as refused:
            control("a")
        assert refused.value.status() == "StatusCode.PERMISSION_DENIED"
    with pytest.raises(InferenceServerException) as refused:
        admin.load_model("a", config="{}", files={"file:1/model.onnx": models.scale(9.0)})

    assert refused.value.status() == "StatusCode.PERMISSION_DENIED"
    assert factor(client) == 3.0
