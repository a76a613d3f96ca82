"""`holdfast serve DIR` as an operator runs it: models come and go over the admin socket, with an unmodified client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tests.fakes import served_models as models
from tritonclient.utils import InferenceServerException

from holdfast.cli.command import EXIT_USAGE
from holdfast.cli.main import main
from holdfast.clock import SystemClock
from holdfast.trust.certificates import Authority, create_authority, create_csr, issue_device, issue_server
from holdfast.trust.keys import PrivateKey

HOLDFAST = [sys.executable, "-m", "holdfast"]
TIMEOUT_S = 60
X = np.ones((1, 4), dtype=np.float32)


@contextmanager
def served(*arguments: str) -> Iterator[dict[str, object]]:
    """What a serving process said when it was ready; killed afterwards."""
    command = [*HOLDFAST, "serve", "--json", "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                pytest.fail(f"no ready line: {process.communicate(timeout=TIMEOUT_S)}")
            yield json.loads(line)
        finally:
            process.kill()


def put(root: Path, name: str, version: int, data: bytes) -> None:
    (root / name / str(version)).mkdir(parents=True)
    (root / name / str(version) / "model.onnx").write_bytes(data)


def ask(client: tritonclient.grpc.InferenceServerClient, model: str) -> float:
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    return float(client.infer(model, [tensor]).as_numpy("y")[0, 0])


def test_operator_changes_models_while_clients_ask(tmp_path: Path) -> None:
    root, socket = tmp_path / "models", tmp_path / "admin.sock"
    put(root, "a", 1, models.scale(1.0))
    put(root, "broken", 1, b"not a model")

    with served(str(tmp_path), "--admin-socket", str(socket)) as said:
        states = {entry["name"]: entry["state"] for entry in said["models"]}  # type: ignore[attr-defined]  # a list
        assert states == {"a": "READY", "broken": "UNAVAILABLE"}
        assert socket.stat().st_mode & 0o777 == 0o600
        with (
            tritonclient.grpc.InferenceServerClient(str(said["listen"])) as client,
            tritonclient.grpc.InferenceServerClient(f"unix:{socket}") as admin,
        ):
            assert ask(client, "a") == 1.0
            put(root, "a", 2, models.scale(2.0))
            with pytest.raises(InferenceServerException, match="on the admin socket only"):
                client.load_model("a")
            admin.load_model("a")
            assert ask(client, "a") == 2.0
            admin.unload_model("a")
            assert not client.is_model_ready("a")
            index = {entry.name: entry for entry in client.get_model_repository_index().models}
            assert (index["a"].state, index["a"].reason) == ("UNAVAILABLE", "unloaded")
            assert "not an ONNX file" in index["broken"].reason


def test_tokens_are_asked_for_and_their_file_must_be_private(tmp_path: Path) -> None:
    put(tmp_path, "a", 1, models.scale(3.0))
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery\n")
    tokens.chmod(0o644)
    refused = subprocess.run(
        [*HOLDFAST, "serve", str(tmp_path), "--token-file", str(tokens)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert "can be read by others" in refused.stderr
    tokens.chmod(0o600)

    with served(str(tmp_path), "--token-file", str(tokens)) as said:
        tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(X)
        with tritonclient.grpc.InferenceServerClient(str(said["listen"])) as client:
            assert client.is_server_live()
            with pytest.raises(InferenceServerException) as unknown:
                client.infer("a", [tensor])
            assert unknown.value.status() == "StatusCode.UNAUTHENTICATED"
            answer = client.infer("a", [tensor], headers={"authorization": "Bearer correct-horse-battery"})
            assert answer.as_numpy("y")[0, 0] == 3.0


def test_clients_show_certificates_and_only_those_on_the_list_may_ask(tmp_path: Path) -> None:
    put(tmp_path / "models", "a", 1, models.scale(3.0))
    now_ns = SystemClock().utc_ns()
    key = PrivateKey.generate("ecdsa-p256")
    authority = Authority(key, create_authority(key, "example.org", now_ns))
    server_key = PrivateKey.generate("ecdsa-p256")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    (tmp_path / "server.key").write_bytes(server_key.to_pem())
    (tmp_path / "server.pem").write_bytes(issue_server(authority, server_key.public_key, ("127.0.0.1",), now_ns))
    for device in ("known", "other"):
        client_key = PrivateKey.generate("ecdsa-p256")
        (tmp_path / f"{device}.key").write_bytes(client_key.to_pem())
        certificate = issue_device(authority, create_csr(client_key, device), device, now_ns)
        (tmp_path / f"{device}.pem").write_bytes(certificate)
    flags = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    flags += ["--client-authority", str(tmp_path / "ca.pem"), "--allow-id", "spiffe://example.org/device/known"]

    with served(str(tmp_path / "models"), *flags) as said:

        def client(device: str) -> tritonclient.grpc.InferenceServerClient:
            return tritonclient.grpc.InferenceServerClient(
                str(said["listen"]),
                ssl=True,
                root_certificates=str(tmp_path / "ca.pem"),
                private_key=str(tmp_path / f"{device}.key"),
                certificate_chain=str(tmp_path / f"{device}.pem"),
            )

        with client("known") as known, client("other") as other:
            assert ask(known, "a") == 3.0
            with pytest.raises(InferenceServerException, match="not on the allow-list") as refused:
                ask(other, "a")
            assert refused.value.status() == "StatusCode.PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-key", "k"], "tls_certificate and tls_key go together"),
        (["--client-authority", "c"], "needs tls_certificate"),
        (["--allow-id", "spiffe://a/b"], "allow_ids needs client_authority"),
        (["--shared-memory"], "shared_memory needs admin_socket"),
        (["--threads", "2"], "NAME/session.toml"),
        (["--name", "x"], "each folder is a name"),
        (["--labels", "x"], "labels.txt beside session.toml"),
        (["--listen", "0.0.0.0:0"], "neither encryption nor access control"),
        (["--poll-s", "-1"], "expected --poll-s from 0"),
    ],
)
def test_flags_that_do_not_fit_together_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    assert main(["serve", str(tmp_path), *flags]) == EXIT_USAGE

    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_models_share_threads_and_keep_their_graphs(tmp_path: Path) -> None:
    put(tmp_path / "models", "a", 1, models.scale(3.0))
    put(tmp_path / "models", "b", 1, models.scale(4.0))
    (tmp_path / "serving.toml").write_text(f'shared_threads = 2\ngraph_cache = "{tmp_path}/graphs"\n')

    with served(str(tmp_path / "models"), "--settings", str(tmp_path / "serving.toml")) as said:
        with tritonclient.grpc.InferenceServerClient(str(said["listen"])) as client:
            assert (ask(client, "a"), ask(client, "b")) == (3.0, 4.0)

    assert len(list((tmp_path / "graphs").iterdir())) == 2
