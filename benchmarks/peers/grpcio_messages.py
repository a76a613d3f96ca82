"""ModelInfer as one writes it by hand on grpcio: messages of protobuf's C library, the predict function, no limits."""

from __future__ import annotations

import numpy as np
from benchmarks.peers.models import Models

from holdfast.serving import oip_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def infer(models: Models, data: bytes) -> bytes:
    """One request to one answer, both serialised."""
    request = oip_pb2.ModelInferRequest.FromString(data)
    x = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(request.inputs[0].shape)
    y = models.predict(request.model_name, x)
    answer = oip_pb2.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    answer.outputs.add(name="y", datatype="FP32", shape=y.shape)
    answer.raw_output_contents.append(y.tobytes())
    return answer.SerializeToString()
