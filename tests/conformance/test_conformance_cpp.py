"""gRPC's own C core, from C++: every answer byte for byte what in-process encoding gives."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.clients import cpp_client
from benchmarks.clients.cpp_client import CppFigures, CppOptions
from tests.conformance.conftest import MODELS, Target
from tests.conformance.programs import program

from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving import oip

RNG = np.random.default_rng(7)


def exchange_of(model: str, number: int, rows: int) -> tuple[bytes, bytes]:
    """A request, and the answer it must get."""
    x = RNG.standard_normal((rows, 4)).astype(np.float32)
    outputs = load_session(ModelSource(MODELS[model])).run({"x": x})
    request_id = f"call-{number}"
    return (
        oip.encode_request(TensorRequest(model, "", request_id, {"x": x})),
        oip.encode_response(TensorResponse(model, "1", request_id, outputs)),
    )


VARIED = [exchange_of(("double", "perceptron")[n % 2], n, 1 + n % 8) for n in range(256)]
LARGE = [exchange_of("identity", n, rows) for n, rows in enumerate((37_632, 400_000, 20_000))]  # 602 kB, 6.4 MB, 320 kB


def ask(target: Target, exchanges: list[tuple[bytes, bytes]], options: CppOptions) -> CppFigures:
    program("make")
    if target.authority is not None:
        more = (*options.arguments, "--ca", str(target.authority))
        options = CppOptions(options.requests, options.in_flight, options.channels, options.warm_up, more)
    requests, answers = zip(*exchanges, strict=True)
    return cpp_client.run(str(target), requests, answers, options)


CASES = {
    "one_by_one": CppOptions(500, in_flight=1),
    "thirty_two_in_flight": CppOptions(20_000, warm_up=100),
    "deadline_and_trace_in_each": CppOptions(5_000, arguments=("--traceparent", "--deadline-ms", "30000")),
    "more_than_the_stream_limit": CppOptions(5_000, in_flight=500),
    "eight_connections": CppOptions(5_000, in_flight=64, channels=8),
    "gzip": CppOptions(2_000, arguments=("--gzip",)),
    "pings_all_the_time": CppOptions(5_000, arguments=("--keepalive-ms", "10")),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_cpp_client_gets_every_answer(target: Target, case: str) -> None:
    told = ask(target, VARIED, CASES[case])

    assert (told.errors, told.first_error) == (0, "")
    assert told.requests == CASES[case].requests


@pytest.mark.parametrize("arguments", [(), ("--gzip",)], ids=["plain", "gzip"])
def test_cpp_client_gets_large_tensors(target: Target, arguments: tuple[str, ...]) -> None:
    told = ask(target, LARGE, CppOptions(30, in_flight=6, arguments=arguments))

    assert (told.errors, told.first_error) == (0, "")


def test_cpp_client_is_told_the_status(plain: Target) -> None:
    requests = [oip.encode_request(TensorRequest("absent", "", "", {"x": np.ones((1, 4), np.float32)}))]

    told = cpp_client.run(str(plain), requests, options=CppOptions(100))

    assert told.statuses == {"5": 100}
    assert told.first_error == "Request for unknown model: 'absent' is not found"


def test_deadline_ends_a_run_that_would_not_end(plain: Target) -> None:
    requests = [oip.encode_request(TensorRequest("slow", "", "", {"x": np.ones(1, np.float32)}))]

    told = cpp_client.run(str(plain), requests, options=CppOptions(8, 4, arguments=("--deadline-ms", "300")))

    assert told.statuses == {"4": 8}
    assert ask(plain, VARIED, CppOptions(256)).errors == 0
