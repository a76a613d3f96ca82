"""KServe's Python client against a server: `python kserve_client.py HOST:PORT`, in .venv-conformance.

Both of its clients, gRPC and REST, with explicit, raw and binary tensors; what is wrong raises. Prints what it got.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

X = np.array([[1, 2.5, -3, 4], [0, 1, 2, 3]], dtype=np.float32)
WORDS = np.array(["größer", "", "x" * 300], dtype=object)


def request(model: str, array: np.ndarray, datatype: str, *, is_binary: bool) -> InferRequest:
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    outputs = [RequestedOutput("y", {"binary_data": True})] if is_binary and datatype != "BYTES" else None
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="seven", request_outputs=outputs)


def check(response: object, expected: np.ndarray) -> None:
    (output,) = response.outputs  # type: ignore[attr-defined]  # an InferResponse
    got = output.as_numpy()
    assert response.id == "seven", response.id  # type: ignore[attr-defined]
    if expected.dtype == object:
        assert [x.decode() if isinstance(x, bytes) else x for x in got.ravel()] == expected.tolist(), got
    else:
        assert got.dtype == expected.dtype, got.dtype
        assert np.array_equal(got, expected), got


async def over_grpc(target: str) -> list[str]:
    async with InferenceGRPCClient(target) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("double")
        for is_binary in (False, True):
            check(await client.infer(request("double", X, "FP32", is_binary=is_binary)), 2 * X)
            check(await client.infer(request("words", WORDS, "BYTES", is_binary=is_binary)), WORDS)
        many = [client.infer(request("double", X + n, "FP32", is_binary=True)) for n in range(50)]
        for n, response in enumerate(await asyncio.gather(*many)):
            check(response, 2 * (X + n))
        try:
            await client.infer(request("absent", X, "FP32", is_binary=True))
        except grpc.RpcError as error:
            return [error.code().name, error.details()]
    raise AssertionError("a model that is not there answered")


async def over_rest(target: str, *, is_http2: bool) -> list[str]:
    base = f"http://{target}"
    transport = httpx.AsyncHTTPTransport(http1=not is_http2, http2=is_http2)
    client = InferenceRESTClient(RESTConfig(transport=transport, protocol="v2", http2=is_http2))
    try:
        assert await client.is_server_live(base)
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, "double")
        for is_binary in (False, True):
            check(
                await client.infer(base, request("double", X, "FP32", is_binary=is_binary), model_name="double"), 2 * X
            )
        check(await client.infer(base, request("words", WORDS, "BYTES", is_binary=False), model_name="words"), WORDS)
        try:
            await client.infer(base, request("absent", X, "FP32", is_binary=False), model_name="absent")
        except httpx.HTTPStatusError as error:
            return [str(error.response.status_code), error.response.json()["error"]]
    finally:
        await client.close()
    raise AssertionError("a model that is not there answered")


def main() -> None:
    logging.disable(logging.CRITICAL)
    target = sys.argv[1]
    told = {
        "grpc": asyncio.run(over_grpc(target)),
        "http/1.1": asyncio.run(over_rest(target, is_http2=False)),
        "http/2": asyncio.run(over_rest(target, is_http2=True)),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
