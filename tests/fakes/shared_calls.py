"""Requests for tensors in shared memory, as clients write them."""

from __future__ import annotations

from holdfast.serving import oip_pb2


def shared_request(
    model: str,
    request_id: str,
    shape: tuple[int, ...],
    *,
    size: int,
    offset: int = 0,
    out: int = -1,
) -> bytes:
    """A request for a tensor in region "r". `out`: where the answer is to go, if it is."""
    message = oip_pb2.ModelInferRequest(model_name=model, id=request_id)
    place = message.inputs.add(name="x", datatype="FP32", shape=shape).parameters
    place["shared_memory_region"].string_param = "r"
    place["shared_memory_byte_size"].int64_param = size
    place["shared_memory_offset"].int64_param = offset
    if out >= 0:
        wanted = message.outputs.add(name="y").parameters
        wanted["shared_memory_region"].string_param = "r"
        wanted["shared_memory_byte_size"].int64_param = size
        wanted["shared_memory_offset"].int64_param = out
    return message.SerializeToString()
