"""Serves a model with `holdfast serve`, asks it over HTTP and gRPC, and compares with ONNX Runtime in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np

from holdfast.inference.example_model import digit_templates, digits_model
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.inference.tensors import Array, TensorRequest
from holdfast.serving.datatypes import DATATYPE_OF
from holdfast.serving.oip import decode_response, encode_request

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S = 30.0


@contextmanager
def served(path: Path) -> Iterator[str]:
    """A running server's HOST:PORT. With --json the first line it prints says where it listens."""
    command = [sys.executable, "-m", "holdfast", "serve", str(path), "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            if "error" in said:
                raise SystemExit(f"the server did not start: {said['error']['message']}")
            yield said["listen"]
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def ask_http(address: str, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One request as JSON, with nothing but the standard library."""
    tensors = [
        {"name": name, "datatype": DATATYPE_OF[array.dtype.name], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    url, body = f"http://{address}/v2/models/{model}/infer", json.dumps({"inputs": tensors}).encode()
    with urllib.request.urlopen(url, data=body, timeout=TIMEOUT_S) as response:
        outputs = json.load(response)["outputs"]
    dtype_of = {datatype: name for name, datatype in DATATYPE_OF.items()}
    return {
        output["name"]: np.array(output["data"], dtype_of[output["datatype"]]).reshape(output["shape"])
        for output in outputs
    }


def ask_grpc(address: str, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The same request in its binary form. `tritonclient.grpc` sends the same bytes."""
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(METHOD)
        answer: bytes = infer(encode_request(TensorRequest(model, "", "", inputs)), timeout=TIMEOUT_S)
    return dict(decode_response(answer).outputs)


def zeros(session: ModelSession) -> dict[str, Array]:
    """One sample of zeros for a model that we know nothing about."""
    return {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in session.inputs}


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments[0]) if arguments else Path(folder) / "digits.onnx"
        if not arguments:
            path.write_bytes(digits_model())
        session = load_session(ModelSource.from_file(path))
        inputs: Mapping[str, Array] = zeros(session) if arguments else {"pixels": digit_templates()}
        expected = session.run(inputs)
        same = True
        with served(path) as address:
            print(f"{path.name} is served on {address}")
            for transport, ask in (("HTTP", ask_http), ("gRPC", ask_grpc)):
                answer = ask(address, path.stem, inputs)
                equal = all(answer[name].tobytes() == expected[name].tobytes() for name in expected)
                same = same and equal
                print(f"{transport}: {', '.join(answer)}; {'same bits as' if equal else 'DIFFERS from'} ONNX Runtime")
        if not arguments:
            print(f"digits recognised: {answer['digit'].tolist()}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
