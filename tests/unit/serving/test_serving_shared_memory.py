"""System shared memory: an unmodified client sends and gets tensors through it, and nobody reaches anything else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.utils.shared_memory as shm
from tests.fakes import served_models as models
from tests.fakes.serving import pool_of
from tritonclient.utils import InferenceServerException

from holdfast.errors import ConflictError, HoldfastError, RequestError, UnknownRegionError, UsageError
from holdfast.serving.authorisation import rules_of
from holdfast.serving.listening import listen_unix
from holdfast.serving.parameters import RegionSlice
from holdfast.serving.server import Address, Front, Server, ServerOptions
from holdfast.serving.shared_memory import MAX_REGIONS, SharedMemory

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def server(tmp_path: Path, front: Front) -> Iterator[tuple[str, Path]]:
    """A server with an admin socket: its address and the socket's path."""
    socket = tmp_path / "admin.sock"
    options = ServerOptions(
        Address("127.0.0.1", 0), rules=rules_of(shared_memory=True), admin_socket=socket, front=front
    )
    server = Server(pool_of({"double": models.scale(2.0)}), options=options)
    address = server.start()
    yield str(address), socket
    server.stop(2.0)
    assert not socket.exists()


@pytest.fixture
def region() -> Iterator[tuple[Any, str]]:
    """A client's shared memory: room for an input and an output."""
    key = f"/holdfast-test-{os.getpid()}"
    handle = shm.create_shared_memory_region("r", key, 2 * X.nbytes)
    yield handle, key
    shm.destroy_shared_memory_region(handle)


def asked(region_name: str = "r", size: int = X.nbytes, offset: int = 0) -> tuple[list[Any], list[Any]]:
    kind = tritonclient.grpc
    tensor, wanted = kind.InferInput("x", [2, 4], "FP32"), kind.InferRequestedOutput("y")
    tensor.set_shared_memory(region_name, size, offset)
    wanted.set_shared_memory(region_name, X.nbytes, X.nbytes)
    return [tensor], [wanted]


def test_tensors_go_through_shared_memory(server: tuple[str, Path], region: tuple[Any, str]) -> None:
    (address, socket), (handle, key) = server, region
    shm.set_shared_memory_region(handle, [X])
    inputs, outputs = asked()

    with (
        tritonclient.grpc.InferenceServerClient(address) as client,
        tritonclient.grpc.InferenceServerClient(f"unix:{socket}") as admin,
    ):
        admin.register_system_shared_memory("r", key, 2 * X.nbytes)
        status = admin.get_system_shared_memory_status().regions["r"]
        answer = client.infer("double", inputs, outputs=outputs)
        got = shm.get_contents_as_numpy(handle, np.float32, [2, 4], offset=X.nbytes).copy()
        admin.unregister_system_shared_memory("r")
        assert not admin.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'r'"):
            client.infer("double", inputs, outputs=outputs)

    assert (status.key, status.byte_size) == (key, 2 * X.nbytes)
    assert got.tolist() == (2 * X).tolist()
    output = answer.get_output("y")
    assert output.parameters["shared_memory_region"].string_param == "r"
    assert answer.get_response().raw_output_contents == [b""]


@pytest.mark.parametrize("call", ["register_system_shared_memory", "unregister_system_shared_memory"])
def test_clients_of_the_open_port_register_nothing(
    server: tuple[str, Path], region: tuple[Any, str], call: str
) -> None:
    arguments = ("r", region[1], X.nbytes) if "un" not in call[:2] else ("r",)

    with (
        tritonclient.grpc.InferenceServerClient(server[0]) as client,
        pytest.raises(InferenceServerException, match="on the admin socket only") as refused,
    ):
        getattr(client, call)(*arguments)

    assert refused.value.status() == "StatusCode.PERMISSION_DENIED"


def test_object_that_shrinks_after_it_was_registered_harms_nobody(
    server: tuple[str, Path], region: tuple[Any, str]
) -> None:
    (address, socket), (_, key) = server, region
    inputs, outputs = asked()

    with (
        tritonclient.grpc.InferenceServerClient(address) as client,
        tritonclient.grpc.InferenceServerClient(f"unix:{socket}") as admin,
    ):
        admin.register_system_shared_memory("r", key, 2 * X.nbytes)
        os.truncate(f"/dev/shm{key}", 0)
        with pytest.raises(InferenceServerException, match="shorter than when it was registered"):
            client.infer("double", inputs, outputs=outputs)
        assert client.is_server_live()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What stands for /dev/shm: an object of 64 bytes."""
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "k").write_bytes(bytes(range(64)))
    (tmp_path / "secret").write_bytes(b"s" * 64)
    return folder


@pytest.mark.parametrize(
    "key", ["../secret", "/../secret", "/a/../../secret", "..", ".", "", "/", "k\0", "k\n", "x" * 300, "//k", "absent"]
)
def test_key_that_is_no_plain_name_opens_nothing(folder: Path, key: str) -> None:
    with pytest.raises(RequestError):
        SharedMemory(folder).register("r", key, 0, 1)


def test_links_and_special_files_are_not_opened(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")

    for key in ("link", "folder", "pipe"):
        with pytest.raises(RequestError):
            SharedMemory(folder).register("r", key, 0, 0)


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (2**63, 2**63), (2**64 - 1, 2), (1, 2**64 - 1)])
def test_region_larger_than_its_object_is_refused(folder: Path, offset: int, size: int) -> None:
    with pytest.raises(RequestError, match="its object has 64"):
        SharedMemory(folder).register("r", "k", offset, size)


@pytest.mark.parametrize(("offset", "size"), [(0, 33), (32, 1), (2**62, 8), (8, 2**62), (2**63 - 1, 2**63 - 1)])
def test_slice_outside_its_region_is_refused(folder: Path, offset: int, size: int) -> None:
    regions = SharedMemory(folder, max_tensor_bytes=2**64)
    regions.register("r", "k", 16, 32)

    with pytest.raises(RequestError, match="do not lie in its 32 bytes"):
        regions.read(RegionSlice("r", offset, size))
    with pytest.raises(RequestError, match="do not lie in its 32 bytes"):
        regions.write(RegionSlice("r", offset, size), b"")


def test_slices_are_counted_from_the_regions_own_offset(folder: Path) -> None:
    regions = SharedMemory(folder)
    regions.register("r", "/k", 16, 32)

    regions.write(RegionSlice("r", 4, 8), b"new")

    assert regions.read(RegionSlice("r", 3, 5)) == bytes([19]) + b"new" + bytes([23])
    assert (folder / "k").read_bytes()[:20] == bytes(range(20))


def test_sparse_object_does_not_make_us_take_memory(folder: Path) -> None:
    os.truncate(folder / "k", 2**40)
    regions = SharedMemory(folder)
    regions.register("r", "k", 0, 2**40)

    with pytest.raises(RequestError, match="at most 1073741824 are taken"):
        regions.read(RegionSlice("r", 0, 2**40))


def test_output_that_does_not_fit_is_refused(folder: Path) -> None:
    regions = SharedMemory(folder)
    regions.register("r", "k", 0, 64)

    with pytest.raises(RequestError, match="an output of at most 4 bytes, got 5"):
        regions.write(RegionSlice("r", 0, 4), b"12345")


def test_names_are_unique_and_few(folder: Path) -> None:
    regions = SharedMemory(folder)
    regions.register("r", "k", 0, 8)
    regions.register("r", "k", 0, 8)  # the same again is no error
    with pytest.raises(ConflictError):
        regions.register("r", "k", 0, 9)
    for number in range(MAX_REGIONS - 1):
        regions.register(str(number), "k", 0, 8)
    with pytest.raises(RequestError, match="more than 64"):
        regions.register("one more", "k", 0, 8)

    regions.unregister("")

    assert regions.status() == {}
    with pytest.raises(UnknownRegionError):
        regions.status("r")


def test_files_are_closed(folder: Path) -> None:
    regions = SharedMemory(folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        regions.register("r", "k", 0, 8)
        regions.unregister("r")
        with pytest.raises(HoldfastError):
            regions.register("r", "k", 0, 65)

    assert len(os.listdir("/proc/self/fd")) == before


def test_admin_socket_is_private_and_replaces_only_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, _ = listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="in use by another server"):
        listen_unix(path)
    first.close()

    listen_unix(path)[0].close()

    path.unlink()
    path.write_text("precious")
    with pytest.raises(UsageError, match="cannot listen"):
        listen_unix(path)
    assert path.read_text() == "precious"
