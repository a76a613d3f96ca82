"""`holdfast example` and `holdfast serve` as a person runs them: real processes, real clients, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from onnx import TensorProto
from tests.fakes import served_models as models

from holdfast.inference.example_model import digit_templates

HOLDFAST = [sys.executable, "-m", "holdfast"]
TIMEOUT_S = 60


@contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its address; killed afterwards if it still runs."""
    command = [*HOLDFAST, "serve", "--json", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                pytest.fail(f"no ready line: {process.communicate(timeout=TIMEOUT_S)}")
            yield process, json.loads(line)["listen"]
        finally:
            process.kill()


def holdfast(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HOLDFAST, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    done = holdfast("example", str(path))
    assert done.returncode == 0, done.stderr
    return path


def ask(kind: object, address: str, model: str, x: np.ndarray, datatype: str, *outputs: str) -> list[np.ndarray]:
    with kind.InferenceServerClient(address) as client:  # type: ignore[attr-defined]  # a module
        tensor = kind.InferInput("pixels" if model == "digits" else "x", list(x.shape), datatype)  # type: ignore[attr-defined]
        tensor.set_data_from_numpy(x)
        answer = client.infer(model, [tensor])
    return [answer.as_numpy(name) for name in outputs]


def test_serving_tells_nobody(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's telemetry keeps what it is going to send below the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)  # this process has it from importing Holdfast

    with served(str(digits)) as (_, address):
        ask(tritonclient.grpc, address, "digits", digit_templates(), "FP32", "digit")

        assert list(home.iterdir()) == []


def test_example_is_served_to_unmodified_clients_bit_for_bit(digits: Path) -> None:
    x = digit_templates()
    expected = onnxruntime.InferenceSession(str(digits)).run(["digit", "probabilities"], {"pixels": x})

    with served(str(digits)) as (_, address):
        for kind in (tritonclient.grpc, tritonclient.http):
            got = ask(kind, address, "digits", x, "FP32", "digit", "probabilities")

            assert got[0].tolist() == list(range(10))
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    ("onnx_type", "datatype", "x"),
    [
        (TensorProto.FLOAT16, "FP16", np.array([[1.5, -0.0, np.inf, 6e-8]], dtype=np.float16)),
        (TensorProto.INT64, "INT64", np.array([[-(2**63), 0, 1, 2**63 - 1]])),
        (TensorProto.BOOL, "BOOL", np.array([[True, False, True, True]])),
        (TensorProto.STRING, "BYTES", np.array([["ä", "", "b\0c", "d"]], dtype=object)),
    ],
)
def test_every_kind_of_tensor_goes_through_a_real_process(
    tmp_path: Path, onnx_type: int, datatype: str, x: np.ndarray
) -> None:
    (tmp_path / "m.onnx").write_bytes(models.identity(onnx_type))
    (expected,) = onnxruntime.InferenceSession(models.identity(onnx_type)).run(None, {"x": x})

    with served(str(tmp_path / "m.onnx"), "--name", "same.1") as (_, address):
        for kind in (tritonclient.grpc, tritonclient.http):
            (got,) = ask(kind, address, "same.1", x, datatype, "y")

            if datatype == "BYTES":
                assert [item.decode() for item in got.ravel()] == expected.ravel().tolist()
            else:
                assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_code_0(digits: Path, number: signal.Signals) -> None:
    with served(str(digits)) as (process, address):
        with tritonclient.grpc.InferenceServerClient(address) as client:
            assert client.is_server_ready()

            process.send_signal(number)
            rest, errors = process.communicate(timeout=TIMEOUT_S)

    assert (process.returncode, rest, errors) == (0, "", "")


def test_what_it_prints_works_as_it_stands(digits: Path) -> None:
    command = [*HOLDFAST, "serve", "--listen", "127.0.0.1:0", str(digits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = []
            while not (lines and lines[-1].startswith("  print('digit'")):
                lines.append(process.stdout.readline())
                assert lines[-1], lines
            code = "".join(line[2:] for line in lines if line.startswith("  "))
            curl, python = code.split("\n", 1)

            by_python = subprocess.run(
                [sys.executable, "-c", python], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            )
            url, body = curl.removeprefix("curl -s ").rstrip("'").split(" -d '")
            with urllib.request.urlopen(url, data=body.encode(), timeout=TIMEOUT_S) as response:
                by_http = json.load(response)
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()

    assert "digit [" in by_python.stdout
    assert [output["name"] for output in by_http["outputs"]] == ["probabilities", "digit"]


def test_serving_process_holds_nothing_that_it_does_not_use(digits: Path, tmp_path: Path) -> None:
    """One gRPC and one HTTP request, then the serving process lists its own modules as it ends."""
    script = tmp_path / "watched.py"
    script.write_text(
        "import json, sys\n"
        "from holdfast.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, str(script), "serve", "--json", "--listen", "127.0.0.1:0", str(digits)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["listen"]
            for kind in (tritonclient.grpc, tritonclient.http):
                ask(kind, address, "digits", digit_templates(), "FP32", "digit")
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()

    loaded = set(json.loads(rest))
    assert {"holdfast", "onnxruntime"} <= loaded
    unused = {"flwr", "onnx", "torch", "sklearn", "starlette", "tritonclient", "holdfast_federation"}
    assert loaded & (unused | {"grpc", "cryptography"}) == set()  # 9 MB each
    assert loaded & {"ssl", "hashlib", "shutil", "asyncio"} == {"asyncio"}  # OpenSSL is 5 MB, formats of archives 0.5


BAD_FILES: dict[str, tuple[object, list[str], str, str]] = {
    # content, further arguments, error code, text
    "absent": (None, [], "HF-MODEL-001", "cannot be read: No such file"),
    "empty": (b"", [], "HF-MODEL-004", "not a model that ONNX Runtime can load"),
    "html": (b"<html>not found</html>", [], "HF-MODEL-001", "not an ONNX file"),
    "truncated": (models.perceptron()[:-3], [], "HF-MODEL-001", "may be truncated"),
    "hangs": (models.hangs_while_loading(), ["--trial-timeout-s", "4"], "HF-MODEL-004", "within 4 s"),
    "eats_memory": (models.eats_memory(), ["--trial-memory-mib", "256"], "HF-MODEL-004", "bytes of memory allowed"),
}


@pytest.mark.parametrize("defect", sorted(BAD_FILES))
def test_bad_model_file_is_refused_by_name(tmp_path: Path, defect: str) -> None:
    content, more, code, text = BAD_FILES[defect]
    path = tmp_path / "bad.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)

    done = holdfast("serve", str(path), "--listen", "127.0.0.1:0", "--json", *more)

    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert text in error["message"]
    assert "Traceback" not in done.stderr


def test_port_in_use_is_named(digits: Path) -> None:
    with served(str(digits)) as (_, address):
        done = holdfast("serve", str(digits), "--listen", address)

    assert done.returncode == 2
    assert f"port {address.rpartition(':')[2]} on 127.0.0.1 is in use" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--listen", "0.0.0.0:0"], "add --insecure"),
        (["--listen", "nonsense"], "expected HOST:PORT"),
        (["--threads", "0"], "expected --threads from 1"),
        (["--name", "a/b"], "cannot be a model's name"),
    ],
)
def test_wrong_argument_is_refused(digits: Path, arguments: list[str], text: str) -> None:
    done = holdfast("serve", str(digits), *arguments)

    assert done.returncode == 2
    assert text in done.stderr


def test_example_does_not_overwrite(digits: Path) -> None:
    before = digits.read_bytes()

    refused, forced = holdfast("example", str(digits)), holdfast("example", "--json", "--force", str(digits))

    assert refused.returncode == 2
    assert "exists; choose another name" in refused.stderr
    assert json.loads(forced.stdout) == {"path": str(digits), "bytes": len(before)}
