"""What a field device feels of a server that is mostly idle: CPU, latency, memory, start; and while something happens.

`holdfast serve` as it stands. CPU share is CPU time of the server and its children by wall time, in percent of one
core, at so many requests a second, one row each. Latency counts from when a request was due. `swap`: the model is
loaded anew over the admin socket, again and again, first in its disposable child as always, under 200 requests a
second; the aim is three times the quiet p99. `training`: a worker trains beside, with the walls, the priority and the
one thread of a federated round. `memory` and `start` are of fresh processes, the files in the page cache: from spawn
to the first answer that says ready; beside them Python with ONNX Runtime and the same model, and nothing else.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import onnx
from benchmarks.harness import Block, Figures, NotRun, Options, Outcome, compare, outcomes, take_turns_of
from benchmarks.process import cpu_ns, pss_mb, started
from benchmarks.replay import CACHE, NoCompilerError, Replay, built, replaying
from benchmarks.serving_calls import varied_calls
from benchmarks.serving_models import MODELS, put_model, repository
from benchmarks.serving_subjects import ROOT, Served, holdfast, program

from holdfast.serving import oip_pb2

RATES = (1, 10, 100)
SHARE_S = 2.5  # a block; five of them are 12.5 s at each rate
LOAD_PER_S = 200
DISTURBED_S = 2.0
ONE_CLIENT_S = 1.0
ROUNDS, FRESH_ROUNDS = 5, 5
MANY_MODELS = 20
LOAD_MODEL = "/inference.GRPCInferenceService/RepositoryModelLoad"
READY_S = 30.0
ALL_CORES = frozenset(os.sched_getaffinity(0))
BARE = """
import sys, onnxruntime, numpy
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.ones((1, 16), dtype=numpy.float32)})
print("ready", flush=True)
sys.stdin.read()
"""


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("device", str(error))]
    rounds = 1 if options.quick else ROUNDS
    return [
        *_idle(options, rounds),
        *_disturbed(options, rounds),
        *_fresh(1 if options.quick else FRESH_ROUNDS),
    ]


def _idle(options: Options, rounds: int) -> list[Outcome]:
    """CPU share at low rates, and the latency of one client."""
    with ExitStack() as stack:
        folder = stack.enter_context(repository(("tiny0",)))
        server = stack.enter_context(holdfast(folder))
        grpcio = stack.enter_context(program("peers.grpcio_sync", folder))
        greeting, calls = varied_calls(("tiny0",), rows=(1,))
        ours, theirs = (stack.enter_context(replaying(each.address, greeting, calls)) for each in (server, grpcio))
        shares = [_share(server, ours, rate, options) for rate in RATES]
        made: list[Outcome] = []
        for rate, figures in zip(RATES, take_turns_of(shares, rounds), strict=True):
            made += outcomes(f"device/{rate} per s", None, ("holdfast serve", figures))
        a, b = ("grpcio, sync", _one_client(theirs, options)), ("native front", _one_client(ours, options))
        return made + compare("device/one client", a, b, rounds)


def _share(server: Served, replay: Replay, rate: int, options: Options) -> Block:
    def block() -> Figures:
        count = max(1, round(rate * options.seconds(SHARE_S)))
        before, start = cpu_ns(server.pid), time.perf_counter_ns()
        told = replay.open(rate, count)
        time.sleep(max(0.0, count / rate - (time.perf_counter_ns() - start) / 1e9))  # the last one's own share of time
        share = (cpu_ns(server.pid) - before) / (time.perf_counter_ns() - start)
        return {"cpu_percent": 100 * share, "p50_us": told["p50_us"], "p99_us": told["p99_us"]}

    return block


def _one_client(replay: Replay, options: Options) -> Block:
    def block() -> Figures:
        told = replay.closed(1, seconds=options.seconds(ONE_CLIENT_S))
        return {"p50_us": told["p50_us"], "p99_us": told["p99_us"]}

    return block


def _disturbed(options: Options, rounds: int) -> list[Outcome]:
    """Latency of a steady load, quiet and while something else happens; nothing is pinned."""
    with ExitStack() as stack:
        folder = stack.enter_context(repository(("mlp",)))
        admin = Path(stack.enter_context(tempfile.TemporaryDirectory()), "admin.sock")
        server = stack.enter_context(holdfast(folder, "--admin-socket", str(admin), cores=ALL_CORES))
        greeting, calls = varied_calls(("mlp",), rows=(1,))
        replay = stack.enter_context(replaying(server.address, greeting, calls, cores=ALL_CORES))
        trainer = stack.enter_context(_trainer())

        def quiet() -> dict[str, float]:
            told = replay.open(LOAD_PER_S, round(LOAD_PER_S * options.seconds(DISTURBED_S)))
            return {"p50_us": told["p50_us"], "p99_us": told["p99_us"], "slowest_us": told["max_us"]}

        def swapping() -> Figures:
            with _swaps(folder, admin) as count:
                told = quiet()
            return {**told, "swaps": float(count[0])}

        def training() -> Figures:
            trainer.send_signal(signal.SIGCONT)
            try:
                return quiet()
            finally:
                trainer.send_signal(signal.SIGSTOP)

        still = ("quiet, 200 per s", quiet)
        return [
            *compare("device/swap", still, ("swapped without a pause", swapping), rounds),
            *compare("device/training", still, ("training beside", training), rounds),
        ]


@contextmanager
def _swaps(folder: Path, admin: Path) -> Iterator[list[int]]:
    """Write the model anew, in other bytes of the same meaning, and load it, without a pause; the list counts."""
    ended, count = threading.Event(), [0]
    place, model = folder / "mlp" / "1" / "model.onnx", onnx.load_from_string(MODELS["mlp"]())
    request = oip_pb2.RepositoryModelLoadRequest(model_name="mlp").SerializeToString()

    def swap() -> None:
        with grpc.insecure_channel(f"unix:{admin}") as channel:
            load = channel.unary_unary(LOAD_MODEL)
            while not ended.is_set():
                model.doc_string = str(time.perf_counter_ns())
                place.with_suffix(".new").write_bytes(model.SerializeToString())
                place.with_suffix(".new").replace(place)
                load(request, timeout=READY_S)
                count[0] += 1

    thread = threading.Thread(target=swap, name="swaps")
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()
        if not count[0]:
            raise RuntimeError("no model was swapped; the reason stands above")


@contextmanager
def _trainer() -> Iterator[subprocess.Popen[str]]:
    """A worker that trains for ever; stopped until it is told to go on."""
    with started([sys.executable, "-m", "benchmarks.serving_trainer"], ALL_CORES, cwd=ROOT) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "training":
            raise RuntimeError("the trainer did not start; its reason stands above")
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)


def _fresh(rounds: int) -> list[Outcome]:
    """Start and memory of processes that were not there before."""
    with tempfile.TemporaryDirectory() as name:
        one, many, file = Path(name, "one"), Path(name, "many"), Path(name, "tiny0.onnx")
        file.write_bytes(MODELS["tiny0"]())
        for index in range(MANY_MODELS):
            put_model(many, f"tiny{index}", MODELS["tiny0"]())
        put_model(one, "tiny0", MODELS["tiny0"]())
        bare = [sys.executable, "-c", BARE, str(file)]
        a, b = ("Python and ONNX Runtime alone", _start(bare)), ("holdfast serve FILE", _start(_serve(file)))
        made = compare("device/start", a, b, rounds)
        single, twenty = _start(_serve(one)), _start(_serve(many))
        made += compare(f"device/{MANY_MODELS} models", ("1 model", single), (f"{MANY_MODELS} models", twenty), rounds)
        return made


def _serve(models: Path) -> list[str]:
    return [sys.executable, "-m", "holdfast", "serve", str(models), "--listen", "127.0.0.1:0", "--json"]


def _start(command: Sequence[str]) -> Block:
    """From spawn to ready, and the memory after some thousand requests."""

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")  # compiled once, as an installed package is

    def block() -> Figures:
        start = time.perf_counter_ns()
        with started(command, ALL_CORES, environment=environment) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line.startswith("{"):
                _ask_ready(json.loads(line)["listen"])
            took_ns = time.perf_counter_ns() - start
            if line.startswith("{"):
                _warm(json.loads(line)["listen"])
            return {"seconds": took_ns / 1e9, "pss_mb": pss_mb(process.pid)}

    return block


def _ask_ready(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=READY_S)
    try:
        connection.request("GET", "/v2/health/ready")
        if connection.getresponse().status != 200:
            raise RuntimeError("the server said that it was ready, and then that it was not")
    finally:
        connection.close()


def _warm(address: str) -> None:
    greeting, calls = varied_calls(("tiny0",), rows=(1,))
    with replaying(address, greeting, calls) as replay:
        replay.closed(32, count=5_000)
