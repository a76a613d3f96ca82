"""What a request costs the server: CPU time of its process per ModelInfer, native front beside grpcio, on one core.

The server runs on core 0, the client on the last core; CPU time is read from schedstat (nanoseconds, all threads).
`varied`: 256 different calls (three models, 1 to 8 rows, random values, a fresh id, traceparent and deadline in each),
framed beforehand as C-core frames them (no Huffman, varying fields not indexed), replayed by a socket with 32 in
flight; every answer is compared with the model's own before the measurement, and counted during it. `churn`: the same,
framed as Go does (Huffman, everything indexed, so that the header table changes with every call). `repeated`: one call
over and over from h2load, 32 streams on one connection.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hpack
import numpy as np
from benchmarks.harness import Block, Figures, NotRun, Options, Outcome, compare
from benchmarks.serving_models import MLP, TINY, perceptron

from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.http2.frames import PREFACE, Setting, frame, settings, window_update
from holdfast.serving.oip import decode_response, encode_request

CALLS = 256
IN_FLIGHT = 32
FRAME_BYTES = 16_384
ROUNDS_PER_BLOCK = 40  # times the 256 calls
H2LOAD_REQUESTS = 40_000
METHOD = "/inference.GRPCInferenceService/ModelInfer"
WAIT_S = 60.0
CLIENT_CORE = max(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Call:
    """One request, framed but for its stream id, and what it must be answered with."""

    block: bytes
    body: bytes
    expected: np.ndarray
    request_id: str


class Replay:
    """Sends calls with 32 in flight over one connection, in step with the answers."""

    def __init__(self, address: str, first: bytes) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = settings({Setting.INITIAL_WINDOW_SIZE: 2**20, Setting.HEADER_TABLE_SIZE: 0})
        self._socket.sendall(PREFACE + greeting + window_update(0, 2**31 - 70_000))
        self._stream_id = 1
        self._rest = b""
        self.answers: dict[int, bytes] = {}
        self._exchange([frame(1, 4, 1, first), frame(0, 1, 1, b"\0\0\0\0\0")], 1)

    def run(self, calls: list[Call], *, keep: bool = False) -> dict[int, bytes]:
        """All calls once. Returns the answers by place in the list if they are to be kept."""
        first_id = self._stream_id + 2
        self.answers = {}
        parts = []
        for call in calls:
            self._stream_id += 2
            parts.append(frame(1, 4, self._stream_id, call.block) + data_frames(self._stream_id, call.body))
        self._exchange(parts, len(parts), keep=keep)
        return {(stream_id - first_id) // 2: answer for stream_id, answer in self.answers.items()}

    def close(self) -> None:
        self._socket.close()

    def _exchange(self, parts: list[bytes], expected: int, *, keep: bool = False) -> None:
        sent = min(IN_FLIGHT, len(parts)) if expected > 1 else len(parts)
        self._socket.sendall(b"".join(parts[:sent]))
        ended = 0
        while ended < expected:
            data = self._rest + self._socket.recv(1 << 18)
            at, came = 0, 0
            while len(data) - at >= 9:
                size = int.from_bytes(data[at : at + 3], "big")
                if len(data) - at < 9 + size:
                    break
                kind, flags = data[at + 3], data[at + 4]
                if kind == 0 and keep:
                    stream_id = int.from_bytes(data[at + 5 : at + 9], "big")
                    self.answers[stream_id] = self.answers.get(stream_id, b"") + data[at + 9 : at + 9 + size]
                elif kind in (3, 7):
                    raise RuntimeError(f"the server ended a stream or the connection: {data[at : at + 9 + size]!r}")
                elif kind == 1 and flags & 1:
                    came += 1
                elif kind == 6 and not flags & 1:
                    self._socket.sendall(frame(6, 1, 0, data[at + 9 : at + 17]))
                elif kind == 4 and not flags & 1:
                    self._socket.sendall(frame(4, 1, 0))
                at += 9 + size
            self._rest = data[at:]
            ended += came
            if came and sent < len(parts):
                self._socket.sendall(b"".join(parts[sent : sent + came]))
                sent += came


def run(options: Options) -> list[Outcome]:
    rounds = 5 if not options.quick else 1
    outcomes: list[Outcome] = []
    with served("grpcio") as grpcio, served("native") as native, served("native-plain") as plain:
        for name, style, models in (
            ("varied", "c-core", ("tiny0", "tiny1", "tiny2")),
            ("churn", "go", ("tiny0", "tiny1", "tiny2")),
            ("varied mlp", "c-core", ("mlp",)),
        ):
            a = replayed(grpcio, style, models, options)
            b = replayed(native, style, models, options)
            outcomes += compare(f"serving/{name}", ("grpcio, sync", a), ("native front", b), rounds)
            if name == "varied":
                c = replayed(plain, style, models, options)
                outcomes += compare("serving/memory", ("native, no memory of heads", c), ("native", b), rounds)
        if shutil.which("h2load") is None:
            return [*outcomes, NotRun("serving/repeated", "h2load (nghttp2-client) is not installed")]
        a, b = h2loaded(grpcio, options), h2loaded(native, options)
        outcomes += compare("serving/repeated", ("grpcio, sync", a), ("native front", b), rounds)
    return outcomes


@contextmanager
def served(front: str) -> Iterator[tuple[int, str]]:
    """A server on core 0: its process id and address; ended afterwards."""
    command = [sys.executable, "-m", "benchmarks.serving_child", front, str(min(os.sched_getaffinity(0)))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, process.stdout.readline().strip()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(WAIT_S)


def replayed(server: tuple[int, str], style: str, models: tuple[str, ...], options: Options) -> Block:
    pid, address = server
    times = options.count(ROUNDS_PER_BLOCK)

    def block() -> Figures:
        first, calls = varied_calls(style, models)
        replay = Replay(address, first)
        try:
            # the first calls are checked; a changing header table cannot be replayed, so those calls are used up then
            checked, calls = (calls[:CALLS], calls[CALLS:]) if style == "go" else (calls, calls)
            for place, answer in replay.run(checked, keep=True).items():
                got = decode_response(answer[5:])
                if got.request_id != checked[place].request_id or not np.array_equal(
                    got.outputs["y"], checked[place].expected
                ):
                    raise RuntimeError(f"call {place} was answered with another tensor than the model's own")
            rounds = [calls] * (1 if style == "go" else times)
            before, start = cpu_ns(pid), time.perf_counter()
            for each in rounds:
                replay.run(each)
            took, spent = time.perf_counter() - start, cpu_ns(pid) - before
        finally:
            replay.close()
        count = sum(map(len, rounds))
        return {"server_cpu_us": spent / count / 1e3, "requests_per_s": count / took}

    return block


def varied_calls(style: str, models: tuple[str, ...]) -> tuple[bytes, list[Call]]:
    """The block of a first call, which fills the header table, and 256 calls after it."""
    rng = np.random.default_rng(7)
    sizes = {name: MLP if name == "mlp" else TINY for name in models}
    seeds = {"tiny0": 0, "tiny1": 1, "tiny2": 2, "mlp": 3}
    sessions = {name: load_session(ModelSource(perceptron(sizes[name], seeds[name]))) for name in models}
    encoder = hpack.Encoder()
    huffman = style == "go"
    fixed = [
        (":scheme", "http"),
        (":method", "POST"),
        (":authority", "127.0.0.1:8080"),
        (":path", METHOD),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-c++/1.51.1 grpc-c/29.0.0 (linux; chttp2)"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
    ]
    first = encoder.encode(fixed, huffman=huffman)
    kind = hpack.HeaderTuple if style == "go" else hpack.NeverIndexedHeaderTuple
    calls = []
    for index in range(CALLS if style != "go" else CALLS * 20):
        name = models[index % len(models)]
        x = rng.standard_normal((1 + index % 8, sizes[name][0])).astype(np.float32)
        request_id = secrets.token_hex(8)
        message = encode_request(TensorRequest(name, "", request_id, {"x": x}))
        varying = [
            kind("grpc-timeout", f"{5_000 + index}m"),
            kind("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"),
        ]
        block = encoder.encode([*fixed, *varying], huffman=huffman)
        body = b"\0" + len(message).to_bytes(4, "big") + message
        calls.append(Call(block, body, sessions[name].run({"x": x})["y"], request_id))
    return first, calls


def data_frames(stream_id: int, body: bytes) -> bytes:
    """The body in frames of the default size, the last one ending the stream."""
    starts = range(0, len(body), FRAME_BYTES)
    return b"".join(
        frame(0, int(at + FRAME_BYTES >= len(body)), stream_id, body[at : at + FRAME_BYTES]) for at in starts
    )


def h2loaded(server: tuple[int, str], options: Options) -> Block:
    pid, address = server
    count = options.count(H2LOAD_REQUESTS)
    message = encode_request(TensorRequest("tiny0", "", "id", {"x": np.ones((1, TINY[0]), dtype=np.float32)}))

    def block() -> Figures:
        with tempfile.NamedTemporaryFile() as body:
            Path(body.name).write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
            command = ["taskset", "-c", str(CLIENT_CORE), "h2load", "-n", str(count), "-c", "1", "-m", str(IN_FLIGHT)]
            command += ["-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers"]
            before = cpu_ns(pid)
            told = subprocess.run(
                [*command, f"http://{address}{METHOD}"], capture_output=True, text=True, check=True
            ).stdout
            spent = cpu_ns(pid) - before
        if f"{count} succeeded" not in told:
            raise RuntimeError(f"h2load: {told}")
        rate = re.search(r"([0-9.]+) req/s", told)
        assert rate is not None
        return {"server_cpu_us": spent / count / 1e3, "requests_per_s": float(rate[1])}

    return block


def cpu_ns(pid: int) -> int:
    """CPU time of a process, all threads (proc(5), schedstat: the first field)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return total
