"""What the scheduler makes of 32 requests that arrived together: beside a loop of single runs, and beside one batch.

No sockets and no decoding: requests of one row, ready as tensors, through `ModelScheduler.submit` on this thread. The
loop is what callers write, `session.run` per request; the batch is what nobody can beat, one run of 32 rows joined
before. The MLP is 784-512-256-10, the tiny one 16-32-4, weights from a seed, one thread. Answers are compared first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from benchmarks.harness import Block, Figures, Options, Outcome, compare
from benchmarks.serving_models import MLP, TINY, perceptron

from holdfast.clock import SystemClock
from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.protocols import Answer, Pending
from holdfast.serving.scheduler import ModelScheduler

PENDING = 32
TICKS = 200  # per block: 6400 requests, a few hundred milliseconds of the MLP
SEED = 0
MODELS = {"mlp": MLP, "tiny": TINY}


def run(options: Options) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for name, sizes in MODELS.items():
        model = perceptron(sizes, SEED)
        random = np.random.default_rng(1)
        rows = [random.standard_normal((1, sizes[0])).astype(np.float32) for _ in range(PENDING)]
        session, joined = _bare(model), np.concatenate(rows)
        scheduled = _scheduled(model, rows)
        _check(session, rows, scheduled())
        ticks = options.count(TICKS)
        ours = (f"scheduler, {PENDING} pending", _block(scheduled, ticks))

        def loop(session: onnxruntime.InferenceSession = session, rows: list[np.ndarray] = rows) -> None:
            for row in rows:
                session.run(None, {"x": row})

        def batch(session: onnxruntime.InferenceSession = session, joined: np.ndarray = joined) -> None:
            session.run(None, {"x": joined})

        outcomes += compare(f"scheduler/{name}-loop", ("single runs", _block(loop, ticks)), ours, options.rounds)
        best = (f"one batch of {PENDING}", _block(batch, ticks))
        outcomes += compare(f"scheduler/{name}-batch", best, ours, options.rounds)
    return outcomes


def _bare(model: bytes) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def _scheduled(model: bytes, rows: list[np.ndarray]) -> Callable[[], list[Answer]]:
    pool = ModelPool()
    pool.swap("m", "1", prepare_session(ModelSource(model)))
    scheduler = ModelScheduler(pool, SystemClock(), lambda call: call())

    def tick() -> list[Answer]:
        answers: list[Answer] = []
        scheduler.submit([Pending(TensorRequest("m", "", "", {"x": row}), None, answers.append) for row in rows])
        return answers

    return tick


def _check(session: onnxruntime.InferenceSession, rows: list[np.ndarray], answers: list[Answer]) -> None:
    for row, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, TensorResponse)
        assert answer.outputs["y"].tobytes() == session.run(None, {"x": row})[0].tobytes()


def _block(tick: Callable[[], object], ticks: int) -> Block:
    def block() -> Figures:
        cpu_before, before = time.process_time_ns(), time.perf_counter_ns()
        for _ in range(ticks):
            tick()
        took_ns, cpu_ns = time.perf_counter_ns() - before, time.process_time_ns() - cpu_before
        requests = ticks * PENDING
        return {"requests_per_s": requests * 1e9 / took_ns, "cpu_us": cpu_ns / requests / 1e3}

    return block
