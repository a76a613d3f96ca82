"""Calls that share a run with nobody: large tensors and shared memory, answered as on the whole way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hpack
import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.fakes import served_models as models
from tests.fakes.native_bench import NativeBench, Writer
from tests.fakes.shared_calls import shared_request

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.inference.traits import Traits
from holdfast.serving import oip, oip_pb2
from holdfast.serving.authorisation import rules_of
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import (
    HEADERS,
    reset,
)
from holdfast.serving.native.backend import PeerFacts
from holdfast.serving.shared_memory import SharedMemory

WIDE = 80_000  # numbers of a row: 320 kB, above a stream's window, and too large to be probed in batches
BYTES = WIDE * 4


def wide(kind: str) -> bytes:
    """y = kind(x, ...), float32[n, WIDE]."""
    inputs = {"Add": ["x", "x"], "Identity": ["x"]}[kind]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDE]) for name in "xy")
    return models.model_bytes(helper.make_graph([helper.make_node(kind, inputs, ["y"])], "wide", [x], [y]))


class Bench(NativeBench):
    """Serves two models with wide rows, and "few" with short ones."""

    def __init__(self, folder: Path, *, memoise: bool = True, facts: PeerFacts | None = None) -> None:
        pool = ModelPool()
        quick = Traits(run_s=1e-5, run_elements=WIDE, is_bounded=True)  # said, not measured: this machine may be busy
        for name, kind in (("double", "Add"), ("same", "Identity")):
            pool.swap(name, "1", load_session(ModelSource(wide(kind))).measured(quick))
        pool.swap("few", "1", prepare_session(ModelSource(models.scale(2.0))))
        super().__init__(pool, memoise=memoise, rules=rules_of(shared_memory=True), facts=facts)
        regions = self.server._table.regions_for(is_local=True, is_admin=False)
        assert regions is not None
        regions._folder = folder
        self.regions: SharedMemory = regions
        self.writer, self._decoder = Writer(), hpack.Decoder()

    @property
    def whole_ways(self) -> int:
        """How many calls went the whole way."""
        return self.scheduler.taken

    def ask(self, message: bytes, cut: int = 1 << 16) -> tuple[str, bytes]:
        """The status of a call and its message; the octets come in pieces of `cut`."""
        told, sent_frames = b"", self.frames(message)
        for at in range(0, len(sent_frames), cut):
            self.peer.receive_large(memoryview(sent_frames)[at : at + cut])
            told += self.turn()
        return self._read(told)

    def frames(self, message: bytes) -> bytes:
        """A call on the next stream."""
        return self.writer.call(message)

    def _read(self, data: bytes) -> tuple[str, bytes]:
        status, body = "", b""
        while data:
            size, kind = int.from_bytes(data[:3], "big"), data[3]
            payload, data = data[9 : 9 + size], data[9 + size :]
            if kind == 0:
                body += payload
            elif kind == HEADERS:
                status = dict(self._decoder.decode(payload)).get("grpc-status", status)
        return status, body[5:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What stands for /dev/shm: an object with room for two tensors."""
    (tmp_path / "k").write_bytes(bytes(2 * BYTES))
    return tmp_path


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    made = Bench(folder)
    made.regions.register("r", "k", 0, 2 * BYTES)
    yield made
    made.close()


def tensor(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, WIDE)).astype(np.float32)


def put(folder: Path, x: np.ndarray, offset: int = 0) -> None:
    with (folder / "k").open("r+b") as file:
        file.seek(offset)
        file.write(x.tobytes())


def shared(
    model: str = "double",
    request_id: str = "1",
    *,
    shape: tuple[int, ...] = (1, WIDE),
    offset: int = 0,
    size: int = BYTES,
    out: int = -1,
) -> bytes:
    return shared_request(model, request_id, shape, size=size, offset=offset, out=out)


def sent(model: str, x: np.ndarray, request_id: str = "1") -> bytes:
    return oip.encode_request(TensorRequest(model, "", request_id, {"x": x}))


@pytest.mark.parametrize("cut", [1 << 12, 1 << 16, 250_000])
@pytest.mark.parametrize("model", ["double", "same"])
def test_large_tensor_is_answered_without_the_whole_way(bench: Bench, model: str, cut: int) -> None:
    for seed in range(3):
        x = tensor(seed)

        status, message = bench.ask(sent(model, x, f"id-{seed}"), cut)

        answer = oip.decode_response(message)
        assert (status, answer.request_id, answer.version) == ("0", f"id-{seed}", "1")
        assert np.array_equal(answer.outputs["y"], x * (2 if model == "double" else 1))
    assert bench.whole_ways == 0


@pytest.mark.parametrize("way", ["octets", "shared memory"])
def test_model_that_takes_another_shape_after_a_swap_is_asked_anew(bench: Bench, folder: Path, way: str) -> None:
    x = tensor(1)
    put(folder, x)
    message = sent("double", x) if way == "octets" else shared()
    assert bench.ask(message)[0] == "0"

    bench.pool.swap("double", "1", prepare_session(ModelSource(models.scale(2.0))))

    assert bench.ask(message)[0] == "3"  # INVALID_ARGUMENT
    assert bench.whole_ways == 1


def test_call_that_is_cancelled_in_the_turn_in_which_it_was_whole_is_not_answered(bench: Bench) -> None:
    sent_frames = bench.frames(sent("double", tensor(1)))
    bench.peer.receive(sent_frames[:200_000])
    bench.turn()

    bench.peer.receive(sent_frames[200_000:] + reset(bench.writer.stream_id, ErrorCode.CANCEL))
    told = bench.turn()

    assert told == b""
    assert not bench.wire.is_closed
    assert bench.ask(sent("double", tensor(2)))[0] == "0"


def test_what_lies_in_shared_memory_is_read_anew_for_the_same_request(bench: Bench, folder: Path) -> None:
    for seed in range(4):
        x = tensor(seed)
        put(folder, x)

        status, message = bench.ask(shared())

        assert (status, oip.decode_response(message).outputs["y"].tolist()) == ("0", (2 * x).tolist())
    assert bench.whole_ways == 0


def test_nobody_changes_a_tensor_that_was_read_and_no_two_requests_share_one(bench: Bench, folder: Path) -> None:
    wanted = []
    for seed in range(6):
        x = tensor(seed)
        put(folder, x, seed % 2 * BYTES)
        assert bench.ask(shared("same", str(seed), offset=seed % 2 * BYTES))[0] == "0"
        wanted.append(x)
    put(folder, np.zeros(2 * WIDE, np.float32))

    for event, x in zip(bench.tap.events, wanted, strict=True):  # a tap that keeps the arrays keeps them as they were
        assert event.inputs is not None
        assert event.outputs is not None
        assert np.array_equal(event.inputs["x"], x)
        assert np.array_equal(event.outputs["y"], x)
    assert bench.whole_ways == 0


def test_answer_that_goes_to_shared_memory_is_written_there(bench: Bench, folder: Path) -> None:
    x = tensor(1)
    put(folder, x)

    status, message = bench.ask(shared(out=BYTES))

    answer = oip_pb2.ModelInferResponse.FromString(message)
    assert (status, list(answer.raw_output_contents)) == ("0", [b""])
    assert answer.outputs[0].parameters["shared_memory_offset"].int64_param == BYTES
    assert (folder / "k").read_bytes()[BYTES:] == (2 * x).tobytes()
    assert bench.whole_ways == 0


def test_object_that_is_cut_short_between_two_requests_fails_the_second_alone(bench: Bench, folder: Path) -> None:
    assert bench.ask(shared())[0] == "0"
    os.truncate(folder / "k", BYTES - 1)
    assert bench.ask(shared())[0] == "3"  # INVALID_ARGUMENT
    os.truncate(folder / "k", 2 * BYTES)
    put(folder, tensor(5))

    status, message = bench.ask(shared())

    assert (status, oip.decode_response(message).outputs["y"].tolist()) == ("0", (2 * tensor(5)).tolist())


def test_region_that_is_gone_is_not_remembered(bench: Bench) -> None:
    assert bench.ask(shared())[0] == "0"

    bench.regions.unregister("r")

    assert bench.ask(shared())[0] == "5"  # NOT_FOUND


def test_slot_outside_the_region_is_refused_again_and_again(bench: Bench) -> None:
    assert [bench.ask(shared(offset=2 * BYTES - 16))[0] for _ in range(3)] == ["3", "3", "3"]


def test_peer_from_another_machine_reads_no_shared_memory(folder: Path) -> None:
    bench = Bench(folder, facts=PeerFacts(is_local=False))
    bench.regions.register("r", "k", 0, 2 * BYTES)

    try:
        assert [bench.ask(shared())[0] for _ in range(2)] == ["12", "12"]  # UNIMPLEMENTED
    finally:
        bench.close()


@pytest.mark.parametrize(
    "message",
    [
        lambda x: shared("absent"),
        lambda x: shared(size=BYTES - 4),
        lambda x: shared("few", shape=(3, 4), size=48),
        lambda x: sent("absent", x),
        lambda x: sent("double", x.astype(np.float64)),
        lambda x: sent("double", x.reshape(-1, 8)),
        lambda x: sent("double", x)[:-4],
        lambda x: sent("double", x) + b"\x3a\x00",
        lambda x: oip.encode_request(TensorRequest("double", "", "", {"x": x}, ("y", "y"))),
        lambda x: oip.encode_request(TensorRequest("double", "7", "", {"x": x})),
    ],
    ids=[
        "unknown model in shared memory",
        "another size than the shape's",
        "rows that may mix",
        "unknown model",
        "wrong datatype",
        "wrong shape",
        "too few octets",
        "a tensor too many",
        "an output twice",
        "unknown version",
    ],
)
def test_answers_are_those_of_the_whole_way(folder: Path, message: Callable[[np.ndarray], bytes]) -> None:
    told = []
    for memoise in (True, False):
        bench = Bench(folder, memoise=memoise)
        bench.regions.register("r", "k", 0, 2 * BYTES)
        told.append([bench.ask(message(tensor(3))) for _ in range(2)])
        bench.close()

    assert told[0] == told[1]
