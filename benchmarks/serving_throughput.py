"""The MLP over 32 streams beside the loop that callers write, and beside one batch that nobody can beat.

784-512-256-10, 256 different requests, answers checked. The loop is `session.run` per request in this process; the
batch is one run of 32 requests joined beforehand. Both run on the server's core, and there is no client then: over the
socket the client has a core of its own, if there are two. `cpu` is what the server, or the loop, spends per request.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import cycle

import numpy as np
from benchmarks.harness import NotRun, Options, Outcome, compare
from benchmarks.in_process import bare, looped
from benchmarks.replay import NoCompilerError, built, replaying
from benchmarks.serving_calls import ROWS, varied_calls
from benchmarks.serving_models import MODELS, repository
from benchmarks.serving_native import IN_FLIGHT, replayed
from benchmarks.serving_subjects import holdfast

from holdfast.serving.oip import decode_request

BLOCK_S = 0.7
ROUNDS = 9


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("serving/mlp", str(error))]
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    session = bare(MODELS["mlp"]())
    with ExitStack() as stack:
        server = stack.enter_context(holdfast(stack.enter_context(repository(("mlp",)))))
        for name, rows in (("one row", (1,)), ("1 to 8 rows", ROWS)):
            greeting, calls = varied_calls(("mlp",), rows=rows)
            replay = stack.enter_context(replaying(server.address, greeting, calls))
            there = (f"gRPC, {IN_FLIGHT} streams", replayed(server, replay, options, cpu_is="cpu_us"))
            inputs = [decode_request(call.message).inputs for call in calls]
            turns, joined = cycle(inputs), np.concatenate([each["x"] for each in inputs[:IN_FLIGHT]])
            one = looped(lambda turns=turns: session.run(None, next(turns)), 1, options, BLOCK_S)
            all_at_once = looped(lambda x=joined: session.run(None, {"x": x}), IN_FLIGHT, options, BLOCK_S)
            outcomes += compare(f"serving/mlp, {name}", ("session.run in a loop", one), there, rounds)
            best = (f"one batch of {IN_FLIGHT}", all_at_once)
            outcomes += compare(f"serving/mlp, {name}, batch", best, there, rounds)
    return outcomes
