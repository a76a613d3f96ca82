"""h2load of nghttp2 (Debian: nghttp2-client): one request over and over, many streams on one connection or on many.

It does not look at gRPC's status, so the same request is asked once before, and its answer checked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from benchmarks.harness import Block, Figures, Options
from benchmarks.http_request import HttpRequest
from benchmarks.process import CLIENT_CORE, cpu_ns
from benchmarks.serving_calls import METHOD, grpc_body
from benchmarks.serving_models import input_shape
from benchmarks.serving_subjects import Served

from holdfast.inference.tensors import TensorRequest
from holdfast.serving.oip import encode_request

H2LOAD = shutil.which("h2load")
BLOCK_S = 0.7
PILOT = 500  # requests before the first block, to know how many make one


def message_for(model: str) -> bytes:
    """One row of ones."""
    x = np.ones((1, *input_shape(model)), dtype=np.float32)
    return encode_request(TensorRequest(model, "", "id", {"x": x}))


def h2loaded(
    server: Served,
    options: Options,
    model: str = "tiny0",
    *,
    streams: int = 32,
    connections: int = 1,
    scheme: str = "http",
    seconds: float = BLOCK_S,
    cpu_is: str = "server_cpu_us",
) -> Block:
    """Blocks of about the same time, whatever the server's speed. `cpu_is` names what the server spends."""
    body, url = grpc_body(message_for(model)), f"{scheme}://{server.address}{METHOD}"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    width = ["-c", str(connections), "-m", str(streams)]
    rate = [0.0]

    def block() -> Figures:
        count = int(rate[0] * options.seconds(seconds)) if rate[0] else PILOT
        count = max(count, connections * streams)
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(body)
            before = cpu_ns(server.pid)
            rate[0] = h2load(["-n", str(count), *width, "-d", file.name, *headers, url], count)
            spent = cpu_ns(server.pid) - before
        return {cpu_is: spent / count / 1e3, "requests_per_s": rate[0]}

    block()
    return block


def h1loaded(
    server: Served, options: Options, request: HttpRequest, *, connections: int, seconds: float = BLOCK_S
) -> Block:
    """The same over HTTP/1.1. The first answer is compared with the model's own, before."""
    request.check(server.address)
    headers = [word for name, value in request.headers.items() for word in ("-H", f"{name}: {value}")]
    url = f"http://{server.address}{request.path}"
    rate = [0.0]

    def block() -> Figures:
        count = max(int(rate[0] * options.seconds(seconds)) if rate[0] else PILOT, 2 * connections)
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(request.body)
            before = cpu_ns(server.pid)
            words = ["--h1", "-n", str(count), "-c", str(connections), "-d", file.name]
            rate[0] = h2load([*words, *headers, url], count)
            spent = cpu_ns(server.pid) - before
        return {"server_cpu_us": spent / count / 1e3, "requests_per_s": rate[0]}

    block()
    return block


def h2load(words: list[str], count: int) -> float:
    """Requests per second of one run. Raises: RuntimeError: not every request was answered with 200."""
    command = ["taskset", "-c", str(CLIENT_CORE), str(H2LOAD), *words]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([0-9.]+) req/s", told)
    if f"{count} succeeded" not in told or found is None:
        raise RuntimeError(f"h2load: {told}")
    return float(found[1])
