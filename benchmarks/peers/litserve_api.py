"""LitServe: lists in JSON, one worker per model, as its documentation begins."""

from __future__ import annotations

import litserve
import numpy as np
from benchmarks.peers.models import Models, free_port, models_of_command_line, say_when_open


class OnnxApi(litserve.LitAPI):
    def __init__(self, name: str) -> None:
        super().__init__(api_path=f"/{name}")
        self._name = name
        self._models: Models | None = None

    def setup(self, device: str) -> None:
        self._models = models_of_command_line()

    def decode_request(self, request: dict[str, object]) -> np.ndarray:
        return np.asarray(request["x"], dtype=np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        assert self._models is not None
        return self._models.predict(self._name, x)

    def encode_response(self, y: np.ndarray) -> dict[str, object]:
        return {"y": y.tolist()}


if __name__ == "__main__":
    port = free_port()
    say_when_open(port)
    server = litserve.LitServer(
        [OnnxApi(name) for name in models_of_command_line().names()], accelerator="cpu", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)
