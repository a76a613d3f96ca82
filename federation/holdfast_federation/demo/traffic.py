"""Live traffic to every device, from the first model to the end: what was answered, what failed, what was right.

A plain HTTP client of the Open Inference Protocol, one thread and one connection per device. A request fails if it is
not answered with status 200 and a well-formed output; a broken connection counts as a failure too.
"""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass

import numpy as np

from holdfast.clock import Clock
from holdfast.lifecycle import Stop
from holdfast_federation.demo.data import Share

PAUSE_S = 0.04  # about 20 requests a second and device: enough to meet a swap, and light on two cores
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Tally:
    """requests = answered + failed; `versions` = answers by model version."""

    answered: int
    failed: int
    correct: int
    versions: dict[str, int]
    first_failure: str


class Client(threading.Thread):
    """Asks one device for digits until stopped."""

    def __init__(self, address: str, model: str, samples: Share, clock: Clock) -> None:
        super().__init__(name=f"traffic-{address}", daemon=True)
        self._address = address
        self._path = f"/v2/models/{model}/infer"
        self._samples = samples
        self._stopping = Stop(clock)
        self._lock = threading.Lock()
        self._answered = self._failed = self._correct = 0
        self._versions: dict[str, int] = {}
        self._first_failure = ""

    def run(self) -> None:
        connection = self._connect()
        position = 0
        while not self._stopping.wait(PAUSE_S):
            image, label = self._samples.images[position], int(self._samples.labels[position])
            position = (position + 1) % len(self._samples.labels)
            try:
                digit, version = self._ask(connection, image.tolist())
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                connection.close()
                connection = self._connect()
                self._count_failure(f"{type(error).__name__}: {error}")
            else:
                self._count_answer(version, right=digit == label)
        connection.close()

    def stop(self) -> None:
        self._stopping.set()

    def tally(self) -> Tally:
        with self._lock:
            return Tally(self._answered, self._failed, self._correct, dict(self._versions), self._first_failure)

    def _connect(self) -> http.client.HTTPConnection:
        host, _, port = self._address.rpartition(":")
        return http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)

    def _ask(self, connection: http.client.HTTPConnection, image: list[float]) -> tuple[int, str]:
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, len(image)], "data": image}
        connection.request("POST", self._path, json.dumps({"inputs": [tensor]}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise ValueError(f"status {response.status}: {body[:200].decode(errors='replace')}")
        answer = json.loads(body)
        return int(np.argmax(answer["outputs"][0]["data"])), str(answer["model_version"])

    def _count_failure(self, reason: str) -> None:
        with self._lock:
            self._failed += 1
            self._first_failure = self._first_failure or reason

    def _count_answer(self, version: str, *, right: bool) -> None:
        with self._lock:
            self._answered += 1
            self._correct += right
            self._versions[version] = self._versions.get(version, 0) + 1


def accuracy_as_served(address: str, model: str, share: Share) -> float:
    """Share of `share` that a device reads right, asked over its serving port in one batch."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(share.images.shape),
        "data": share.images.ravel().tolist(),
    }
    try:
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
        response = connection.getresponse()
        answer = json.loads(response.read())
        scores = np.array(answer["outputs"][0]["data"]).reshape(answer["outputs"][0]["shape"])
    finally:
        connection.close()
    return float((scores.argmax(axis=1) == share.labels).mean())
