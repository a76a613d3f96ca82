"""Minutes of connections that end badly, of swaps and cancelled calls: nothing is kept, and no good client notices."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.conformance.programs import ROOT
from tests.conformance.rude_peers import RUDE, be_rude, be_rude_over_tls, break_a_handshake
from tests.fakes.serving import INFER, TIMEOUT_S

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.native.front import WORKERS
from holdfast.serving.server import Address

SECONDS = float(os.environ.get("SOAK_SECONDS", "90"))
WARM_UP_ROUNDS = 12  # what the allocator and the tables of the codecs settle in
ROUND_SWAPS = 2
RSS_GROWTH_BYTES = 8 * 1024**2  # after warm-up, over all rounds: thousands of connections of 1 KiB would be more
POLL_S = 0.2
SETTLE_S = 30.0  # for what was dropped to be noticed: deadlines of slow calls, a sweep


class SoakServer:
    """The process under test."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.soak_server", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        told = self._read()
        self.plain, self.tls, self.authority = (
            Address.parse(told["plain"]),
            Address.parse(told["tls"]),
            Path(told["ca"]),
        )

    def ask(self, what: str) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        told: dict[str, int] = self._read()
        return told

    def stop(self) -> int:
        try:
            self._process.communicate(timeout=TIMEOUT_S)
        finally:
            self._process.kill()
        return self._process.returncode

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class GoodClient(threading.Thread):
    """Calls and checks without end, on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(daemon=True)
        self._infer = channel.unary_unary(INFER)
        self._is_over = threading.Event()
        self.calls = 0
        self.failures: list[str] = []

    def run(self) -> None:
        for number in itertools.count():
            if self._is_over.wait(0.005):
                return
            x = np.full((1 + number % 4, 4), number % 1_000, dtype=np.float32)
            try:
                answer = oip.decode_response(
                    self._infer(oip.encode_request(TensorRequest("m", "", str(number), {"x": x})), timeout=TIMEOUT_S)
                )
            except grpc.RpcError as error:
                self.failures.append(f"call {number}: {error.code()} {error.details()}")
            else:
                self.calls += 1
                if answer.request_id != str(number) or not np.array_equal(answer.outputs["y"], 2 * x):
                    self.failures.append(f"call {number} was answered wrongly")

    def stop(self) -> None:
        self._is_over.set()
        self.join(TIMEOUT_S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SoakServer]:
    server = SoakServer(tmp_path)
    yield server
    assert server.stop() == 0


def one_round(server: SoakServer) -> int:
    """Every way to be rude a few times, and two swaps between. How many connections that were."""
    count = 0
    for turn in range(3):
        for how in RUDE:
            be_rude(server.plain, how, reset=turn > 0 or how == "takes_no_answer")  # else it is held for a minute
            be_rude(server.plain, how, reset=True)
            if turn == 0:
                be_rude_over_tls(server.tls, server.authority, how)
                break_a_handshake(server.tls)
                count += 2
            count += 2
        if turn < ROUND_SWAPS:
            server.ask("swap")
    return count


def settled(server: SoakServer, good: int) -> dict[str, int]:
    """What is held once everything but the good clients' connections is gone."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        held = server.ask("count")
        is_quiet = held["connections"] == good and held["requests"] <= good and not held["long_calls"]
        if is_quiet or time.monotonic() > deadline:
            return held
        time.sleep(POLL_S)


def test_nothing_is_kept_of_thousands_of_rude_connections(server: SoakServer) -> None:
    trust = grpc.ssl_channel_credentials(server.authority.read_bytes())
    with grpc.insecure_channel(str(server.plain)) as plain, grpc.secure_channel(str(server.tls), trust) as secure:
        good = [GoodClient(plain), GoodClient(secure)]
        for client in good:
            client.start()
        for _ in range(WARM_UP_ROUNDS):
            one_round(server)
        before, count, rounds = settled(server, len(good)), 0, 0
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            count += one_round(server)
            rounds += 1
        for client in good:
            client.stop()
        after = settled(server, len(good))

    print(json.dumps({"connections": count, "good_calls": [c.calls for c in good], "before": before, "after": after}))
    assert [client.failures for client in good] == [[], []]
    assert min(client.calls for client in good) > 100
    assert after["swaps"] - before["swaps"] == ROUND_SWAPS * rounds
    assert {name: after[name] for name in ("connections", "requests", "long_calls", "budget_taken")} == {
        "connections": len(good), "requests": 0, "long_calls": 0, "budget_taken": 0,
    }  # fmt: skip
    assert after["tasks"] <= before["tasks"]
    assert after["files"] <= before["files"]
    assert (
        after["threads"] <= before["threads"] + 2 * WORKERS
    )  # two servers; a pool starts its threads as it needs them
    assert after["rss_bytes"] - before["rss_bytes"] < RSS_GROWTH_BYTES
