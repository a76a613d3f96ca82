"""What the server adds to a model that takes milliseconds: one stream over gRPC beside `session.run` in this process.

The encoder has 4 layers, hidden 256, 4 heads, 128 tokens; ResNet-18 takes 3 x 224 x 224. One request at a time, 16
different ones, answers checked; loop and server on the same core. The aim is 0.95 times the requests per second.
The loop never waits, so that its caches stay warm, and nothing runs beside it; a server waits for its client after
every answer, on a core whose other half may be the client's. What that alone costs, whatever a server does, is told by
`the least`, a program that reads nothing (`peers/least.py`): A of the second comparison.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import cycle

from benchmarks.harness import NotRun, Options, Outcome, compare
from benchmarks.in_process import bare, looped
from benchmarks.replay import NoCompilerError, built, replaying
from benchmarks.serving_calls import varied_calls
from benchmarks.serving_models import MODELS, repository
from benchmarks.serving_native import replayed
from benchmarks.serving_subjects import holdfast, program

from holdfast.serving.oip import decode_request

NAMES = ("encoder", "resnet18")
CALLS = 16
BLOCK_S = 1.5
ROUNDS = 9


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("serving/deep", str(error))]
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    with ExitStack() as stack:
        folder = stack.enter_context(repository(NAMES))
        server = stack.enter_context(holdfast(folder))
        for name in NAMES:
            greeting, calls = varied_calls((name,), count=CALLS, rows=(1,))
            replay = stack.enter_context(replaying(server.address, greeting, calls))
            session, inputs = bare(MODELS[name]()), cycle(decode_request(call.message).inputs for call in calls)
            loop = looped(lambda session=session, inputs=inputs: session.run(None, next(inputs)), 1, options, BLOCK_S)
            there = replayed(server, replay, options, in_flight=1, seconds=BLOCK_S, cpu_is="cpu_us")
            words = (name, str(len(greeting)), str(len(calls[0].frames)))
            least = stack.enter_context(program("peers.least", folder, words=words))
            counted = stack.enter_context(replaying(least.address, greeting, calls, warm=False))
            floor = replayed(least, counted, options, in_flight=1, seconds=BLOCK_S, cpu_is="cpu_us")
            ours = ("gRPC, one stream", there)
            outcomes += compare(f"serving/{name}", ("session.run in a loop", loop), ours, rounds)
            outcomes += compare(f"serving/{name}, the least", ("octets counted, no protocol", floor), ours, rounds)
    return outcomes
