"""What compiling saves: the same server as it is installed without asking, and from a wheel that was compiled.

`make compiled` makes the second one, in `.venv-compiled`; both run the same sources, which is checked first. Calls,
generators and cores are those of serving_native, serving_clients and serving_throughput.
"""

from __future__ import annotations

import filecmp
import subprocess
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

from benchmarks.clients.cpp_client import ClientMissingError, build
from benchmarks.h2load import H2LOAD, h2loaded
from benchmarks.harness import NotRun, Options, Outcome, compare
from benchmarks.in_process import bare, looped
from benchmarks.replay import NoCompilerError, built, replaying
from benchmarks.serving_calls import varied_calls
from benchmarks.serving_clients import core_client
from benchmarks.serving_models import MODELS, repository
from benchmarks.serving_native import BLOCK_S, IN_FLIGHT, ROUNDS, TINY_MODELS, replayed
from benchmarks.serving_subjects import ROOT, Served, holdfast, program

from holdfast.serving.oip import decode_request

PYTHON = ROOT / ".venv-compiled" / "bin" / "python"
_WHERE = "import holdfast, pathlib; print(pathlib.Path(holdfast.__file__).parent)"


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("serving/compiled", str(error))]
    if (reason := why_not()) is not None:
        return [NotRun("serving/compiled", reason)]
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    with ExitStack() as stack:
        folder = stack.enter_context(repository((*TINY_MODELS, "mlp")))
        plain = stack.enter_context(holdfast(folder))
        compiled = stack.enter_context(holdfast(folder, python=str(PYTHON)))
        grpcio = stack.enter_context(program("peers.grpcio_sync", folder))
        outcomes += _varied(stack, grpcio, plain, compiled, rounds, options)
        outcomes += _mlp(stack, compiled, rounds, options)
        if H2LOAD is None:
            outcomes.append(NotRun("compiled/repeated", "h2load (nghttp2-client) is not installed"))
        else:
            a, b = h2loaded(plain, options), h2loaded(compiled, options)
            outcomes += compare("compiled/repeated", ("native front", a), ("compiled", b), rounds)
        outcomes += _core(plain, compiled, rounds, options)
    return outcomes


def why_not() -> str | None:
    """Why there is nothing to compare; None if there is."""
    if not PYTHON.exists():
        return "`make compiled` was not run"
    where = subprocess.run([PYTHON, "-c", _WHERE], cwd="/", capture_output=True, text=True, check=True).stdout.strip()
    ours = ROOT / "runtime" / "holdfast"
    sources = [str(path.relative_to(ours)) for path in ours.rglob("*.py")]
    _, changed, missing = filecmp.cmpfiles(ours, Path(where), sources, shallow=False)
    return f"{(changed + missing)[0]} changed since `make compiled`" if changed or missing else None


def _varied(
    stack: ExitStack, grpcio: Served, plain: Served, compiled: Served, rounds: int, options: Options
) -> list[Outcome]:
    greeting, calls = varied_calls(TINY_MODELS)
    a, b, c = (
        replayed(each, stack.enter_context(replaying(each.address, greeting, calls)), options)
        for each in (grpcio, plain, compiled)
    )
    told = compare("compiled/varied", ("native front", b), ("compiled", c), rounds)
    return [*told, *compare("compiled/varied, grpcio", ("grpcio, sync", a), ("compiled", c), rounds)]


def _mlp(stack: ExitStack, compiled: Served, rounds: int, options: Options) -> list[Outcome]:
    greeting, calls = varied_calls(("mlp",), rows=(1,))
    replay = stack.enter_context(replaying(compiled.address, greeting, calls))
    session, turns = bare(MODELS["mlp"]()), cycle([decode_request(call.message).inputs for call in calls])
    one = looped(lambda: session.run(None, next(turns)), 1, options, BLOCK_S)
    there = (f"compiled, {IN_FLIGHT} streams", replayed(compiled, replay, options, cpu_is="cpu_us"))
    return compare("compiled/mlp, one row", ("session.run in a loop", one), there, rounds)


def _core(plain: Served, compiled: Served, rounds: int, options: Options) -> list[Outcome]:
    try:
        build()
    except ClientMissingError as error:
        return [NotRun("compiled/c++ client", str(error).partition("\n")[0])]
    _, calls = varied_calls(TINY_MODELS, rows=(1,))
    outcomes: list[Outcome] = []
    for in_flight in (32, 1):
        a, b = (core_client(each, calls, in_flight, options) for each in (plain, compiled))
        name = f"compiled/c++ client, {in_flight} in flight"
        outcomes += compare(name, ("native front", a), ("compiled", b), rounds)
    return outcomes
