"""What a request costs the server when clients that are not ours send it: gRPC's C++ client, and HTTP from wrk.

The C++ client is gRPC's own C core, 256 different calls of one row, 32 in flight on one channel and one at a time;
every status and every answer is checked, byte by byte. The aim is 12 us of the server's CPU with 32 in flight. wrk
sends one binary request over HTTP/1.1, on one connection and on 32. A client spends more CPU per call than the server.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import grpc
from benchmarks.clients.cpp_client import ClientMissingError, CppOptions, build
from benchmarks.clients.cpp_client import run as send
from benchmarks.harness import Block, Figures, NotRun, Options, Outcome, compare
from benchmarks.process import CLIENT_CORE, cpu_ns
from benchmarks.serving_calls import METHOD, Call, check_answers, grpc_body, varied_calls
from benchmarks.serving_models import repository
from benchmarks.serving_subjects import Served, holdfast, program
from benchmarks.wrk import WRK, wrk_loaded

MODELS = ("tiny0", "tiny1", "tiny2")
BLOCK_S = 0.7
PILOT = 1_000
ROUNDS = 7


def run(options: Options) -> list[Outcome]:
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    with ExitStack() as stack:
        folder = stack.enter_context(repository(MODELS))
        native = stack.enter_context(holdfast(folder))
        grpcio = stack.enter_context(program("peers.grpcio_sync", folder))
        _, calls = varied_calls(MODELS, rows=(1,))
        try:
            build()
        except ClientMissingError as error:
            outcomes.append(NotRun("serving/c++ client", str(error).partition("\n")[0]))
        else:
            for in_flight in (32, 1):
                a, b = (core_client(each, calls, in_flight, options) for each in (grpcio, native))
                name = f"serving/c++ client, {in_flight} in flight"
                outcomes += compare(name, ("grpcio, sync", a), ("native front", b), rounds)
        if WRK is None or shutil.which("taskset") is None:
            return [*outcomes, NotRun("serving/http, wrk", "wrk is not installed")]
        one, many = (wrk_loaded(native, connections=width) for width in (1, 32))
        outcomes += compare("serving/http, wrk", ("1 connection", one), ("32 connections", many), rounds)
    return outcomes


def core_client(server: Served, calls: list[Call], in_flight: int, options: Options) -> Block:
    """Blocks of about the same time; the answers are asked for, and compared with the model's, once before."""
    messages = [call.message for call in calls]
    with grpc.insecure_channel(server.address) as channel:
        ask = channel.unary_unary(METHOD)
        answers = [ask(message, timeout=10.0) for message in messages]
    check_answers(calls, [grpc_body(answer) for answer in answers])
    rate = [0.0]

    def block() -> Figures:
        count = max(PILOT, int(rate[0] * options.seconds(BLOCK_S)))
        chosen = CppOptions(count, in_flight, warm_up=4 * in_flight, prefix=("taskset", "-c", str(CLIENT_CORE)))
        before = [0]

        def note() -> None:
            before[0] = cpu_ns(server.pid)

        told = send(server.address, messages, answers, chosen, note)
        spent = cpu_ns(server.pid) - before[0]
        if told.errors:
            raise RuntimeError(f"the C++ client got {told.errors} wrong answers: {told.first_error}")
        rate[0] = told.requests / told.wall_s
        return {
            "server_cpu_us": spent / told.requests / 1e3,
            "requests_per_s": rate[0],
            "p50_us": told.p50_us,
            "p99_us": told.p99_us,
        }

    return block
