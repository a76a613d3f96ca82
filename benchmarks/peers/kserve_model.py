"""KServe's model server with a model of its own for ONNX, gRPC and HTTP, one worker."""

from __future__ import annotations

import logging

import numpy as np
from benchmarks.peers.models import free_port, models_of_command_line, say_when_open
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

MODELS = models_of_command_line()


class OnnxModel(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: object = None, response_headers: object = None
    ) -> InferResponse:
        x = payload.inputs[0].as_numpy().astype(np.float32, copy=False)
        y = MODELS.predict(self.name, x)
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(payload.id or "", self.name, [output], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    http, grpc = free_port(), free_port()
    say_when_open(grpc, http)
    ModelServer(http_port=http, grpc_port=grpc, enable_grpc=True, workers=1, access_log_format=None).start(
        [OnnxModel(name) for name in MODELS.names()]
    )
