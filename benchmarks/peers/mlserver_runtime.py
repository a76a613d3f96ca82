"""MLServer with a runtime of its own for ONNX: in its main process, as its worker processes do not start everywhere."""

from __future__ import annotations

import asyncio

import numpy as np
from benchmarks.peers.models import free_port, models_of_command_line, say_when_open
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

MODELS = models_of_command_line()


class Runtime(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        y = NumpyCodec.encode_output("y", MODELS.predict(self.name, x))
        return InferenceResponse(model_name=self.name, model_version="1", id=payload.id, outputs=[y])


async def main() -> None:
    http, grpc = free_port(), free_port()
    settings = Settings(
        host="127.0.0.1",
        http_port=http,
        grpc_port=grpc,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
        load_models_at_startup=False,
        logging_settings={"version": 1, "disable_existing_loggers": True},
    )
    say_when_open(grpc, http)
    await MLServer(settings).start([ModelSettings(name=name, implementation=Runtime) for name in MODELS.names()])


if __name__ == "__main__":
    asyncio.run(main())
