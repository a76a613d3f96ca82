"""Large bodies with raw tensors are read to a place of their own, aligned and used again; the answers are the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.http_bench import HttpBench, asked

from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.traits import Traits
from holdfast.serving.buffers import ALIGNMENT
from holdfast.serving.http1 import LARGE_BYTES

WIDE = 100_000  # numbers of a row: 400 kB, more than is read without asking for room
QUICK = Traits(run_s=1e-5, run_elements=WIDE, is_bounded=True)  # said, not measured: this machine may be busy
OK = b"HTTP/1.1 200 OK"


def bench_of(*, memoise: bool = True) -> HttpBench:
    session = load_session(ModelSource(models.identity(TensorProto.FLOAT, ("n", WIDE)))).measured(QUICK)
    return HttpBench({"m": session}, memoise=memoise)


@pytest.fixture
def bench() -> Iterator[HttpBench]:
    made = bench_of()
    yield made
    made.close()


def large(seed: int = 0, *fields: str) -> bytes:
    return asked(np.random.default_rng(seed).standard_normal((1, WIDE)).astype(np.float32), *fields, request_id="x")


def sent(bench: HttpBench, data: bytes, cut: int) -> bytes:
    """What comes back, read as connections read."""
    for at in range(0, len(data), cut):
        bench.http.receive_large(memoryview(data)[at : at + cut])
        bench.turn()
    return bench.said(b"")


@pytest.mark.parametrize("cut", [1 << 20, 100_000, 70_001])
def test_answers_are_the_same_however_large_bodies_come(bench: HttpBench, cut: int) -> None:
    data = large(1) + large(2) + b"GET /v2/health/live HTTP/1.1\r\n\r\n" + large(3)
    plain = bench_of(memoise=False)
    try:
        one_by_one = b"".join(
            plain.said(each) for each in (large(1), large(2), b"GET /v2/health/live HTTP/1.1\r\n\r\n", large(3))
        )
    finally:
        plain.close()

    told = sent(bench, data, cut)

    assert told.count(OK) == 4
    assert told == one_by_one


def test_tensors_of_large_bodies_are_aligned_and_not_copied(bench: HttpBench) -> None:
    addresses = set()

    for seed in range(3):
        assert OK in sent(bench, large(seed), 100_000)
        inputs = bench.tap.events.pop().inputs
        assert inputs is not None
        addresses.add(inputs["x"].ctypes.data)
        del inputs

    assert len(addresses) == 1  # the place is used again once nobody looks at it
    assert addresses.pop() % ALIGNMENT == 0


def test_tensors_that_somebody_keeps_stay_as_they_are(bench: HttpBench) -> None:
    for seed in range(3):
        assert OK in sent(bench, large(seed), 100_000)

    kept = [event.inputs["x"] for event in bench.tap.events if event.inputs is not None]

    assert [x.tobytes() for x in kept] == [large(seed)[-4 * WIDE :] for seed in range(3)]


def test_body_without_room_has_no_place(bench: HttpBench) -> None:
    backend = bench.front._backend
    taken = backend.budget.reserve(backend.options.large_bytes, lambda: None)
    data = large()

    bench.http.receive_large(memoryview(data)[:100_000])
    assert bench.http_wire.is_held
    assert backend.budget.buffers.kept_bytes == 0
    taken.release()
    bench.turn()

    assert not bench.http_wire.is_held
    assert OK in sent(bench, data[100_000:], 100_000)
    assert backend.budget.left == backend.options.large_bytes


@pytest.mark.parametrize(
    "change",
    [
        (b"Inference-Header-Content-Length: ", b"Inference-Header-Content-Length: x"),
        (b"Inference-Header-Content-Length: ", b"Inference-Header-Content-Length: 999999"),
        (b"/models/m/", b"/models/nobody/"),
        (b"/v2/models/m/infer", b"/v2/repository/index"),
        (b"POST", b"GET"),
        (b'"shape": [1, ', b'"shape": [2, '),
    ],
)
def test_refusals_of_large_bodies_are_the_same(bench: HttpBench, change: tuple[bytes, bytes]) -> None:
    data = large().replace(*change)
    plain = bench_of(memoise=False)
    try:
        whole = plain.said(data)
    finally:
        plain.close()

    assert len(data) > LARGE_BYTES
    assert sent(bench, data, 100_000) == whole
    assert whole.startswith(b"HTTP/1.1 4")


def test_peer_that_leaves_or_is_slow_gives_its_room_back(bench: HttpBench) -> None:
    backend = bench.front._backend

    for ends in ("lost", "slow"):
        bench.connect()
        bench.http.receive_large(memoryview(large())[:100_000])
        assert backend.budget.left < backend.options.large_bytes
        if ends == "lost":
            bench.http.lost()
        else:
            bench.clock.advance(backend.options.http1.body_timeout_s + 1)
            bench.http.is_overdue(bench.clock.monotonic_s())
            bench.http.receive_large(memoryview(large())[100_000:])
            assert b"HTTP/1.1 408" in bench.said(b"")
        assert backend.budget.left == backend.options.large_bytes
