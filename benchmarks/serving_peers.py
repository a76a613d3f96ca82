"""Ours beside other servers: the same models, the same machine, checked answers, what each spends per request.

`python -m benchmarks.peers.install` installs them; one that is not there is told as not run. Each runs the same predict
function on stock ONNX Runtime (ours: its own session), one thread, on the server's core; while one is measured the
others are stopped. One request of one row, over and over from h2load: 1 and 32 in flight, over gRPC on one connection,
over HTTP/1.1 on as many connections. CPU and memory are those of a server with all its processes and both models. gRPC
and HTTP are measured where a server has both. The figures do not say what else a server is good for.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from benchmarks.h2load import H2LOAD, h1loaded, h2loaded, message_for
from benchmarks.harness import Block, Figures, NotRun, Options, Outcome, outcomes, take_turns_of
from benchmarks.http_request import HttpRequest, list_request, oip_json_request, oip_request, ones, raw_request
from benchmarks.peers.install import python_of, reason_against
from benchmarks.process import pss_mb, signal_tree
from benchmarks.serving_calls import METHOD
from benchmarks.serving_models import repository
from benchmarks.serving_subjects import Served, holdfast, program

from holdfast.serving.oip import decode_response

MODELS = {"tiny": "tiny0", "MLP": "mlp"}
WIDTHS = (1, 32)
ROUNDS = 5
BLOCK_S = 0.4
OURS = "holdfast, gRPC"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server, and what it speaks. `http`: makes its request for a model; None: gRPC."""

    name: str
    module: str
    environment: str = ""
    http: Callable[[str], HttpRequest] | None = None


PEERS = (
    Peer("grpcio, sync", "grpcio_sync"),
    Peer("grpc.aio", "grpc_aio"),
    Peer("uvicorn, raw ASGI", "uvicorn_asgi", "uvicorn", raw_request),
    Peer("MLServer, gRPC", "mlserver_runtime", "mlserver"),
    Peer("MLServer, JSON", "mlserver_runtime", "mlserver", oip_json_request),
    Peer("KServe, gRPC", "kserve_model", "kserve"),
    Peer("KServe, HTTP binary", "kserve_model", "kserve", oip_request),
    Peer("LitServe, JSON", "litserve_api", "litserve", list_request),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server and how to ask it."""

    name: str
    served: Served
    http: Callable[[str], HttpRequest] | None


def run(options: Options) -> list[Outcome]:
    if H2LOAD is None:
        return [NotRun("peers", "h2load (nghttp2-client) is not installed")]
    made: list[Outcome] = []
    with ExitStack() as stack:
        folder = stack.enter_context(repository(tuple(MODELS.values())))
        ours = stack.enter_context(holdfast(folder))
        subjects = [Subject(OURS, ours, None), Subject("holdfast, HTTP binary", ours, oip_request)]
        running: dict[str, tuple[Served, Served]] = {}
        for peer in PEERS:
            reason = reason_against(peer.environment) if peer.environment else ""
            if not reason and peer.module not in running:
                try:
                    running[peer.module] = stack.enter_context(_started(peer, folder))
                except RuntimeError as error:
                    reason = f"does not start: {error}"
            if reason:
                made.append(NotRun(f"peers/{peer.name}", reason))
            else:
                subjects.append(Subject(peer.name, running[peer.module][peer.http is not None], peer.http))
        for title, model in MODELS.items():
            for width in WIDTHS:
                made += _beside_ours(f"peers/{title}, {width} in flight", subjects, (model, width), options)
    return made


@contextmanager
def _started(peer: Peer, folder: Path) -> Iterator[tuple[Served, Served]]:
    """A peer, stopped until it is asked: as it is reached over gRPC, and over HTTP."""
    python = {"python": str(python_of(peer.environment))} if peer.environment else {}
    with program(f"peers.{peer.module}", folder, **python) as served:
        first, _, second = served.address.partition(" ")
        signal_tree(served.pid, signal.SIGSTOP)
        try:
            yield Served(served.pid, first), Served(served.pid, second or first)
        finally:
            signal_tree(served.pid, signal.SIGCONT)


def _beside_ours(name: str, subjects: list[Subject], what: tuple[str, int], options: Options) -> list[Outcome]:
    blocks = [_block(subject, what, options) for subject in subjects]
    of_ours, *others = take_turns_of(blocks, 1 if options.quick else ROUNDS)
    made: list[Outcome] = []
    for subject, figures in zip(subjects[1:], others, strict=True):
        made += outcomes(name, (subject.name, figures), (OURS, of_ours))
    return made


def _block(subject: Subject, what: tuple[str, int], options: Options) -> Block:
    model, width = what
    served = subject.served
    with _awake(served):
        if subject.http is not None:
            measure = h1loaded(served, options, subject.http(model), connections=width, seconds=BLOCK_S)
        else:
            _check(served, model)
            measure = h2loaded(served, options, model, streams=width, seconds=BLOCK_S)

    def block() -> Figures:
        with _awake(served):
            figures = dict(measure())
            if (model, width) == (MODELS["tiny"], WIDTHS[-1]):
                figures["pss_mb"] = pss_mb(served.pid)
            return figures

    return block


def _check(served: Served, model: str) -> None:
    """Ask once over gRPC. Raises: RuntimeError: not the model's own answer."""
    with grpc.insecure_channel(served.address) as channel:
        answer = channel.unary_unary(METHOD)(message_for(model), timeout=20.0)
    got = decode_response(answer).outputs["y"]
    if not np.allclose(got, ones(model)[1], rtol=1e-5, atol=1e-6):
        raise RuntimeError(f"{served.address} answered with another tensor than the model's own")


@contextmanager
def _awake(served: Served) -> Iterator[None]:
    signal_tree(served.pid, signal.SIGCONT)
    try:
        yield
    finally:
        signal_tree(served.pid, signal.SIGSTOP)
