"""A request over HTTP with its right answer: as the Open Inference Protocol has it, or as a peer wants it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from benchmarks.in_process import bare
from benchmarks.serving_models import MODELS, input_shape

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What to POST, and how the answer's tensor is read."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    expected: np.ndarray
    read: Callable[[Mapping[str, str], bytes], np.ndarray]

    def check(self, address: str) -> None:
        """Ask once. Raises: RuntimeError: not the model's own answer."""
        connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self.path, self.body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"HTTP status {answer.status}: {data[:200]!r}")
        got = self.read({name.lower(): value for name, value in answer.getheaders()}, data)
        if not np.allclose(got.ravel(), self.expected.ravel(), rtol=1e-5, atol=1e-6):  # JSON rounds
            raise RuntimeError(f"{address}{self.path} answered with another tensor than the model's own")

    def lua(self) -> str:
        """The same for wrk."""
        body = "".join(f"\\{byte:03d}" for byte in self.body)
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in self.headers.items())
        return f'wrk.method = "POST"\nwrk.body = "{body}"\n{headers}\n'


def ones(model: str) -> tuple[np.ndarray, np.ndarray]:
    """One row of ones, and the model's answer to it."""
    x = np.ones((1, *input_shape(model)), dtype=np.float32)
    y: np.ndarray = bare(MODELS[model]()).run(None, {"x": x})[0]
    return x, y


def oip_request(model: str) -> HttpRequest:
    """Binary tensors both ways, after a JSON header, as tritonclient sends them."""
    x, y = ones(model)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }

    def read(answered: Mapping[str, str], data: bytes) -> np.ndarray:
        return np.frombuffer(data[int(answered["inference-header-content-length"]) :], dtype=np.float32)

    return HttpRequest(f"/v2/models/{model}/infer", headers, header + x.tobytes(), y, read)


def oip_json_request(model: str) -> HttpRequest:
    """The protocol's JSON form, for peers without binary tensors."""
    x, y = ones(model)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}

    def read(_: Mapping[str, str], data: bytes) -> np.ndarray:
        return np.asarray(json.loads(data)["outputs"][0]["data"], dtype=np.float32)

    body = json.dumps({"inputs": [tensor]}).encode()
    return HttpRequest(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, body, y, read)


def raw_request(model: str) -> HttpRequest:
    """Nothing but the bytes of the tensor, both ways: the least that a hand-written server can take."""
    x, y = ones(model)
    headers = {"Content-Type": "application/octet-stream"}
    return HttpRequest(f"/{model}", headers, x.tobytes(), y, lambda _, data: np.frombuffer(data, dtype=np.float32))


def list_request(model: str) -> HttpRequest:
    """A list in JSON, both ways."""
    x, y = ones(model)

    def read(_: Mapping[str, str], data: bytes) -> np.ndarray:
        return np.asarray(json.loads(data)["y"], dtype=np.float32)

    body = json.dumps({"x": x.tolist()}).encode()
    return HttpRequest(f"/{model}", {"Content-Type": "application/json"}, body, y, read)
