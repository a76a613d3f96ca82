"""What is compressed and may grow large is expanded on a worker, when there is room, and never for who has left."""

from __future__ import annotations

import asyncio
import gzip
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

from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.native.budget import Budget
from holdfast.serving.native.expansion import AT_ONCE_BYTES, MAX_GROWTH, Expansion
from holdfast.serving.oip import encode_request

MAX_BYTES = 10_000_000
TIMEOUT_S = 30.0
X = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
ZEROS = bytes(4_000_001)  # 4 kB when compressed; no whole number of elements


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
    """An expansion of `size` octets with nothing else around it."""

    def __init__(self, size: int, budget: int = MAX_BYTES) -> None:
        self.later, self.budget, self.told = Later(), Budget(budget), list[object]()
        self.made = 0
        backend = SimpleNamespace(
            options=SimpleNamespace(max_message_bytes=MAX_BYTES),
            budget=self.budget,
            executor=self.later,
            tick=SimpleNamespace(post=lambda callback: callback()),
        )
        self.expansion = Expansion(backend, size, self.expand, self.told.append)  # type: ignore[arg-type]  # its part

    def expand(self) -> bytes:
        self.made += 1
        return b"whole"


def test_small_body_is_expanded_at_once() -> None:
    bench = Bench(AT_ONCE_BYTES)

    bench.expansion.start()

    assert (bench.told, bench.later.work) == ([b"whole"], [])


def test_large_body_is_expanded_elsewhere_within_the_budget() -> None:
    bench = Bench(2_000)

    bench.expansion.start()
    assert (bench.made, bench.told) == (0, [])
    assert bench.budget.left == MAX_BYTES - 2_000 * MAX_GROWTH
    bench.later.run()

    assert bench.told == [b"whole"]
    assert bench.budget.left == MAX_BYTES


def test_expansion_waits_for_room() -> None:
    bench = Bench(1_000_000)
    other = bench.budget.reserve(1, lambda: None)

    bench.expansion.start()
    assert bench.later.work == []
    other.release()
    bench.later.run()

    assert bench.told == [b"whole"]


@pytest.mark.parametrize("is_running", [False, True], ids=["waiting", "running"])
def test_nothing_is_done_for_who_has_left(is_running: bool) -> None:
    bench = Bench(1_000_000)
    other = bench.budget.reserve(0 if is_running else 1, lambda: None)
    bench.expansion.start()

    bench.expansion.dropped()
    other.release()
    bench.later.run()

    assert (bench.made, bench.told, bench.budget.left) == (0, [], MAX_BYTES)


def test_what_expanding_raises_is_told() -> None:
    bench, error = Bench(2_000), ValueError("not compressed")

    def fail() -> bytes:
        raise error

    bench.expansion._expand = fail
    bench.expansion.start()
    bench.later.run()

    assert bench.told == [error]


@pytest.fixture
def served() -> Iterator[HttpBench]:
    bench = HttpBench({"m": prepare_session(ModelSource(models.scale(2.0)))})
    yield bench
    bench.front._executor.shutdown()
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
