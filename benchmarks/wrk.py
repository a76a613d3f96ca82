"""wrk (Debian: wrk): one binary request over HTTP/1.1, on one connection or on many, as fast as it is answered."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile

from benchmarks.harness import Block, Figures
from benchmarks.http_request import HttpRequest, oip_request
from benchmarks.process import CLIENT_CORE, cpu_ns
from benchmarks.serving_subjects import Served

WRK = shutil.which("wrk")
BLOCK_S = 1.0  # wrk counts whole seconds


def wrk_loaded(server: Served, request: HttpRequest | None = None, *, connections: int) -> Block:
    """Every answer must have status 200; the first one is compared with the model's own, before."""
    request = request or oip_request("tiny0")
    request.check(server.address)

    def block() -> Figures:
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(request.lua())
            script.flush()
            words = ["-t", "1", "-c", str(connections), "-d", f"{BLOCK_S:g}s", "--latency", "-s", script.name]
            before = cpu_ns(server.pid)
            told = _run([*words, f"http://{server.address}{request.path}"])
            spent = cpu_ns(server.pid) - before
        count = int(_number(r"([0-9]+) requests in", told))
        return {"server_cpu_us": spent / count / 1e3, "requests_per_s": _number(r"Requests/sec: *([0-9.]+)", told)}

    return block


def _run(words: list[str]) -> str:
    command = ["taskset", "-c", str(CLIENT_CORE), str(WRK), *words]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"wrk: {told}")
    return told


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk: {text}")
    return float(found[1])
