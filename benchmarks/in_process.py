"""The model without a server: stock ONNX Runtime in this process, one thread, on the servers' core."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnxruntime
from benchmarks.harness import Block, Options
from benchmarks.process import SERVER_CORE, on_core


def bare(model: bytes) -> onnxruntime.InferenceSession:
    """A session as a careful caller opens it: one thread, nothing else set."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def looped(once: Callable[[], object], requests: int, options: Options, seconds: float) -> Block:
    """Call `once`, which answers so many requests, for a while."""

    def block() -> dict[str, float]:
        calls, clock = 0, time.perf_counter_ns
        with on_core(SERVER_CORE):
            cpu_before, start = time.thread_time_ns(), clock()
            end = start + int(options.seconds(seconds) * 1e9)
            while clock() < end or not calls:
                once()
                calls += 1
            took_ns, cpu_ns = clock() - start, time.thread_time_ns() - cpu_before
        count = calls * requests
        return {"requests_per_s": count * 1e9 / took_ns, "cpu_us": cpu_ns / count / 1e3}

    return block
