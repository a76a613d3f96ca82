"""What may take long is done by a worker, when there is room for what comes out, and never for who has left."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from types import SimpleNamespace

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http_bench import HttpBench, asked, framed
from tests.fakes.native_bench import Writer

from holdfast.errors import AbandonedError
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.native.budget import Budget
from holdfast.serving.native.long_work import MAX_GROWTH, PACKED_BYTES, PARSED_BYTES, LongWork, packed_room, parsed_room
from holdfast.serving.oip import encode_request

MAX_BYTES = 10_000_000
TIMEOUT_S = 30.0
X = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
ZEROS = bytes(4_000_001)  # 4 kB when compressed; no whole number of elements
ZEROS_PACKED = zlib.compress(ZEROS, 9)


class Later(Executor):
    """Keeps what it is given until it is told to run it."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []

    def submit(self, work: Callable[[], object], /, *given: object, **named: object) -> None:  # type: ignore[override]
        self.work.append(lambda: work(*given, **named))

    def run(self) -> None:
        while self.work:
            self.work.pop(0)()


class Bench:
    """Some work with nothing else around it."""

    def __init__(self) -> None:
        self.later, self.budget, self.told = Later(), Budget(MAX_BYTES), list[object]()
        self.made = 0
        self.error: Exception | None = None
        backend = SimpleNamespace(
            options=SimpleNamespace(max_message_bytes=MAX_BYTES),
            budget=self.budget,
            executor=self.later,
            tick=SimpleNamespace(post=lambda callback: callback()),
        )
        self.work = LongWork(backend, self.do, self.told.append)  # type: ignore[arg-type]  # its part

    def do(self) -> bytes:
        self.made += 1
        if self.error is not None:
            raise self.error
        return b"made"


def test_what_is_short_wants_no_room_and_what_may_be_long_wants_as_much_as_may_come_out() -> None:
    assert (packed_room(PACKED_BYTES), parsed_room(PARSED_BYTES)) == (0, 0)
    assert packed_room(2_000) == 2_000 * MAX_GROWTH > len(zlib.decompress(ZEROS_PACKED)) * 2_000 // len(ZEROS_PACKED)
    assert parsed_room(PARSED_BYTES + 1) > PARSED_BYTES


def test_short_work_is_done_at_once() -> None:
    bench = Bench()

    bench.work.start(0)

    assert (bench.told, bench.later.work) == ([b"made"], [])


def test_long_work_is_done_elsewhere_within_the_budget() -> None:
    bench = Bench()

    bench.work.start(2_000)
    assert (bench.made, bench.told) == (0, [])
    assert bench.budget.left == MAX_BYTES - 2_000
    bench.later.run()

    assert bench.told == [b"made"]
    assert bench.budget.left == MAX_BYTES


def test_long_work_waits_for_room() -> None:
    bench = Bench()
    other = bench.budget.reserve(1, lambda: None)

    bench.work.start(10 * MAX_BYTES)
    assert bench.later.work == []
    other.release()
    bench.later.run()

    assert bench.told == [b"made"]


@pytest.mark.parametrize("is_running", [False, True], ids=["waiting", "running"])
def test_nothing_is_done_for_who_has_left(is_running: bool) -> None:
    bench = Bench()
    other = bench.budget.reserve(0 if is_running else 1, lambda: None)
    bench.work.start(MAX_BYTES)

    bench.work.dropped()
    other.release()
    bench.later.run()

    assert (bench.made, bench.told, bench.budget.left) == (0, [], MAX_BYTES)


def test_what_it_raises_is_told() -> None:
    bench = Bench()
    bench.error = ValueError("not compressed")

    bench.work.start(2_000)
    bench.later.run()

    assert bench.told == [bench.error]


@pytest.fixture
def served() -> Iterator[HttpBench]:
    bench = HttpBench({"m": prepare_session(ModelSource(models.scale(2.0)))})
    yield bench
    bench.close()


def answered(bench: HttpBench, written: Callable[[], bytes]) -> bytes:
    """What was written once the workers have told what they made."""
    told, deadline_s = b"", time.monotonic() + TIMEOUT_S
    while not (told := told + written()):
        assert time.monotonic() < deadline_s
        bench.front._loop.run_until_complete(asyncio.sleep(0))
    return told


def said(bench: HttpBench) -> bytes:
    """What a turn writes to the peer that speaks HTTP/1.1."""
    bench.turn()
    return bench.said()


def packed_call(message: bytes) -> bytes:
    return Writer().call(message, ("grpc-encoding", "gzip"), is_packed=True)


def test_compressed_message_is_answered_as_the_plain_one(served: HttpBench) -> None:
    message = encode_request(TensorRequest("m", "", "", {"x": X}))

    served.peer.receive(packed_call(gzip.compress(message)))

    assert (X * 2).tobytes() in answered(served, served.turn)


def deflated(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    packed = zlib.compress(body)
    lines = [line for line in head.decode().split("\r\n") if not line.startswith("Content-Length")]
    lines += ["Content-Encoding: deflate", f"Content-Length: {len(packed)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + packed


def test_compressed_body_of_http_is_answered_as_the_plain_one_and_in_its_turn(served: HttpBench) -> None:
    told = []
    for request in (asked(X), asked(X[:1]), deflated(asked(X)) + asked(X[:1])):
        served.http.receive(request)
        told.append(answered(served, lambda: said(served)))
    one, two, both = told
    if both == one:
        both += answered(served, lambda: said(served))

    assert both == one + two


def test_bombs_leave_the_loop_free_and_are_refused(served: HttpBench) -> None:
    later = Later()
    object.__setattr__(served.front._backend, "executor", later)  # frozen for everybody else

    served.http.receive(framed(zlib.compress(ZEROS), b"", "Content-Encoding: deflate", length=0))
    served.peer.receive(packed_call(gzip.compress(ZEROS)))
    assert (served.said(), served.turn(), len(later.work)) == (b"", b"", 2)

    later.run()
    assert b"400 Bad Request" in answered(served, lambda: said(served))


def test_large_body_that_is_not_what_it_says_is_refused(served: HttpBench) -> None:
    served.http.receive(framed(bytes(500_000), b"", "Content-Encoding: gzip", length=0))

    told = answered(served, lambda: said(served))

    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"the body is not gzip" in told
    assert served.front._backend.budget.left == served.front._backend.options.large_bytes


def test_long_json_leaves_the_loop_free_and_a_client_that_leaves_meanwhile_gets_nothing(served: HttpBench) -> None:
    later = Later()
    object.__setattr__(served.front._backend, "executor", later)  # frozen for everybody else
    numbers = json.dumps({"inputs": [{"name": "x", "shape": [20_000, 4], "datatype": "FP32", "data": [0.5] * 80_000}]})
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(numbers)}\r\n\r\n"

    served.http.receive((head + numbers).encode())
    assert (said(served), len(later.work), served.front._backend.in_flight.count) == (b"", 1, 1)
    served.http.lost()
    later.run()
    served.front._loop.run_until_complete(asyncio.sleep(0))

    assert said(served) == b""
    assert served.front._backend.in_flight.count == 0
    assert served.front._backend.budget.left == served.front._backend.options.large_bytes
    assert [event.outcome for event in served.tap.events] == [AbandonedError.code]
