"""What a request costs the server: CPU time of its process per ModelInfer, native front beside grpcio, on one core.

The server runs on the first core, the generator on the last one; CPU time is read from schedstat (nanoseconds, all
threads). The server is `holdfast serve` as it stands, statistics and limits on.
`varied`: 256 different calls (three models, 1 to 8 rows, random values, a fresh id, traceparent and deadline in each),
framed beforehand as C-core frames them and replayed with 32 in flight on one connection. `churn`: the same, framed as
Go does, so that the header table changes with every call. Every answer is checked. `repeated`: one call over and over
from h2load, 32 streams on one connection. The grpcio beside it is what one writes by hand: no statistics, no limits.
`a loop`: the same requests as `session.run` in a process, one by one: what a machine's time is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle

import numpy as np
from benchmarks.h2load import H2LOAD, h2loaded
from benchmarks.harness import Block, Figures, NotRun, Options, Outcome, compare
from benchmarks.in_process import bare, looped
from benchmarks.process import cpu_ns
from benchmarks.replay import NoCompilerError, Replay, built, replaying
from benchmarks.serving_calls import Call, varied_calls
from benchmarks.serving_models import MODELS, input_shape, repository
from benchmarks.serving_subjects import Served, holdfast, program

from holdfast.inference.tensors import Array
from holdfast.serving.oip import decode_request

IN_FLIGHT = 32
BLOCK_S = 0.7
CHURN_CALLS = 5_120  # a changing header table cannot be replayed: so many calls are made once
TINY_MODELS = ("tiny0", "tiny1", "tiny2")
ROUNDS = 7


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("serving/varied", str(error))]
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    with ExitStack() as stack:
        folder = stack.enter_context(repository((*TINY_MODELS, "mlp")))
        grpcio = stack.enter_context(program("peers.grpcio_sync", folder))
        native = stack.enter_context(holdfast(folder))
        plain = stack.enter_context(program("serving_child", folder))
        for name, models in (("varied", TINY_MODELS), ("varied mlp", ("mlp",))):
            greeting, calls = varied_calls(models)
            replays = {
                each.pid: stack.enter_context(replaying(each.address, greeting, calls))
                for each in (grpcio, native, plain)
            }
            of = {each.pid: replayed(each, replays[each.pid], options) for each in (grpcio, native, plain)}
            a, b = ("grpcio, sync", of[grpcio.pid]), ("native front", of[native.pid])
            outcomes += compare(f"serving/{name}", a, b, rounds)
            if name == "varied":
                c = ("native, no memory of heads", of[plain.pid])
                outcomes += compare("serving/memory", c, ("native", of[native.pid]), rounds)
                loop = one_by_one([_input_of(call) for call in calls], options)
                b = ("native front", replayed(native, replays[native.pid], options, cpu_is="cpu_us"))
                outcomes += compare("serving/varied, a loop", ("session.run in a loop", loop), b, rounds)
        a, b = ("grpcio, sync", churned(grpcio, TINY_MODELS)), ("native front", churned(native, TINY_MODELS))
        outcomes += compare("serving/churn", a, b, min(rounds, 5))
        if H2LOAD is None:
            return [*outcomes, NotRun("serving/repeated", "h2load (nghttp2-client) is not installed")]
        a, b = ("grpcio, sync", h2loaded(grpcio, options)), ("native front", h2loaded(native, options))
        outcomes += compare("serving/repeated", a, b, rounds)
        loop = one_by_one([("tiny0", np.ones((1, *input_shape("tiny0")), np.float32))], options)
        b = ("native front", h2loaded(native, options, cpu_is="cpu_us"))
        outcomes += compare("serving/repeated, a loop", ("session.run in a loop", loop), b, rounds)
    return outcomes


def one_by_one(inputs: Sequence[tuple[str, Array]], options: Options) -> Block:
    """Requests in this process, a run each: (model, rows)."""
    sessions = {name: bare(MODELS[name]()) for name in {name for name, _ in inputs}}
    turns = cycle([(sessions[name], {"x": x}) for name, x in inputs])

    def once() -> None:
        session, feed = next(turns)
        session.run(None, feed)

    return looped(once, 1, options, BLOCK_S)


def _input_of(call: Call) -> tuple[str, Array]:
    request = decode_request(call.message)
    return request.model, request.inputs["x"]


def replayed(
    server: Served,
    replay: Replay,
    options: Options,
    *,
    in_flight: int = IN_FLIGHT,
    seconds: float = BLOCK_S,
    cpu_is: str = "server_cpu_us",
) -> Block:
    """The calls over and over for a while. `cpu_is` names what the server spends, for whom it stands beside."""

    def block() -> Figures:
        before = cpu_ns(server.pid)
        told = replay.closed(in_flight, seconds=options.seconds(seconds))
        return _figures(told, cpu_ns(server.pid) - before, cpu_is)

    return block


def churned(server: Served, models: Sequence[str]) -> Block:
    """New calls every time, on a new connection."""

    def block() -> Figures:
        greeting, calls = varied_calls(models, "go", count=CHURN_CALLS)
        with replaying(server.address, greeting, calls, warm=False) as replay:
            before = cpu_ns(server.pid)
            told = replay.closed(IN_FLIGHT, count=len(calls))
            spent = cpu_ns(server.pid) - before
            replay.check()
        return _figures(told, spent, "server_cpu_us")

    return block


def _figures(told: Figures, spent_ns: int, cpu_is: str) -> Figures:
    return {
        cpu_is: spent_ns / told["answered"] / 1e3,
        "requests_per_s": told["answered"] / told["seconds"],
    }
