"""What the server adds to a model: gRPC and HTTP requests to `holdfast serve`, beside the same call in this process.

One client, one request in flight, a Python client that sends ready bytes; loopback. `server cpu` is the CPU time of the
server's process per request (user and kernel, from /proc, in steps of 10 ms over a whole block).
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from benchmarks.harness import Block, Figures, Options, Outcome, compare, timed

from holdfast.inference.example_model import digit_templates, digits_model
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.oip import encode_request

REQUESTS = 2_000  # per block: about a second, so that 10 ms steps of CPU time are 1 %
METHOD = "/inference.GRPCInferenceService/ModelInfer"
READY_TIMEOUT_S = 60
JIFFY_US = 1e6 / os.sysconf("SC_CLK_TCK")


def run(options: Options) -> list[Outcome]:
    pixels = digit_templates()[:1]
    session = load_session(ModelSource(digits_model()))
    count = options.count(REQUESTS)

    def here() -> Figures:
        return timed(lambda: session.run({"pixels": pixels}), count)

    outcomes: list[Outcome] = []
    with served() as (pid, address):
        for name, client in (("serving/grpc", grpc_client), ("serving/http", http_client)):
            with client(address, pixels) as ask:
                ask()
                there = _with_server_cpu(ask, pid, count)
                outcomes += compare(name, ("in process", here), (f"{name[8:]}, one client", there), options.rounds)
    return outcomes


@contextmanager
def served() -> Iterator[tuple[int, str]]:
    """A `holdfast serve` of the example model: its process id and address; ended afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        path.write_bytes(digits_model())
        command = [sys.executable, "-m", "holdfast", "serve", str(path), "--listen", "127.0.0.1:0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield process.pid, json.loads(process.stdout.readline())["listen"]
            finally:
                process.terminate()
                process.wait(READY_TIMEOUT_S)


@contextmanager
def grpc_client(address: str, pixels: np.ndarray) -> Iterator[Callable[[], object]]:
    data = encode_request(TensorRequest("digits", "", "", {"pixels": pixels}))
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(METHOD)
        yield lambda: infer(data, timeout=READY_TIMEOUT_S)


@contextmanager
def http_client(address: str, pixels: np.ndarray) -> Iterator[Callable[[], object]]:
    """Binary tensors after a JSON header, as tritonclient sends them, on one kept connection."""
    head = {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "FP32",
                "shape": list(pixels.shape),
                "parameters": {"binary_data_size": pixels.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(head).encode()
    body, headers = header + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(header))}
    connection = http.client.HTTPConnection(address, timeout=READY_TIMEOUT_S)

    def ask() -> bytes:
        connection.request("POST", "/v2/models/digits/infer", body, headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"HTTP status {answer.status}: {data[:200]!r}")
        return data

    try:
        yield ask
    finally:
        connection.close()


def _with_server_cpu(ask: Callable[[], object], pid: int, count: int) -> Block:
    def block() -> Figures:
        before = _cpu_us(pid)
        figures = timed(ask, count)
        return {
            "p50_us": figures["p50_us"],
            "p99_us": figures["p99_us"],
            "server_cpu_us": (_cpu_us(pid) - before) / count,
        }

    return block


def _cpu_us(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * JIFFY_US  # utime, stime: proc(5) fields 14 and 15
