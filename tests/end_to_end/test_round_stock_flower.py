"""A customer's own SuperLink with an unmodified Flower app trains through our workers, if the site allows it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.round_lab import Device, RoundLab

from holdfast.clock import SystemClock
from holdfast.policy.evaluate import ALLOWED, UNSIGNED_RUN, Decision
from holdfast.wire.messages import RoundOffer
from holdfast_federation.rounds.superlink import QUIET, SuperLinkAddress, is_answering, prepare_folder

BIN = Path(sys.executable).parent
DEADLINE_S = 240.0

PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "stock"
version = "1.0.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "customer"
[tool.flwr.app.components]
serverapp = "stock.server_app:app"
clientapp = "stock.client_app:app"
[tool.flwr.app.config]
start = ""
result = ""
"""
SERVER_APP = """
import json
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    with np.load(context.run_config["start"]) as archive:
        layers = [archive[name] for name in archive.files]
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(layers), num_rounds=2, timeout=60)
    said = {
        "train": [dict(m) for m in result.train_metrics_clientapp.values()],
        "evaluate": [dict(m) for m in result.evaluate_metrics_clientapp.values()],
    }
    with open(context.run_config["result"], "w") as file:
        json.dump(said, file)
"""
CLIENT_APP = """
from flwr.clientapp import ClientApp

app = ClientApp()  # never runs: our workers answer with handlers of their own
"""


class StockSuperLink:
    """`flower-superlink` as its makers meant it: it starts the app's server side by itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        prepare_folder(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = SuperLinkAddress("127.0.0.1", port, (folder / "tls.crt").read_bytes())
        home = folder / "home"
        home.mkdir()
        certificate = folder / "tls.crt"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "site"\n[superlink.site]\naddress = "127.0.0.1:{port}"\n'
            f'root-certificates = "{certificate}"\ninsecure = false\n'
        )
        self.environment = os.environ | QUIET | {"FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
        command = [
            *(str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
            *("--ssl-ca-certfile", str(certificate), "--ssl-certfile", str(certificate)),
            *("--ssl-keyfile", str(folder / "tls.key"), "--enable-supernode-auth"),
            *("--disable-runtime-dependency-installation", "--database", str(folder / "state.db")),
        ]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        wait_for(lambda: is_answering(self.address))

    def flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def wait_for(condition) -> None:
    clock, pause = SystemClock(), threading.Event()
    end_s = clock.monotonic_s() + DEADLINE_S
    while not condition():
        assert clock.monotonic_s() < end_s
        clock.wait(pause, 0.1)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RoundLab]:
    lab = RoundLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[StockSuperLink]:
    stock = StockSuperLink(tmp_path / "stock")
    yield stock
    stock.stop()


def join(lab: RoundLab, stock: StockSuperLink, *, unsigned_runs: bool) -> list[Device]:
    """Two devices whose workers stay connected to the customer's SuperLink."""

    def decide(offer: RoundOffer, signed: bool | None) -> Decision:
        if signed is None and not unsigned_runs:
            return Decision(False, UNSIGNED_RUN, "rounds.unsigned_runs = false")
        return ALLOWED

    lab.superlinks["customer"] = lambda: stock.address
    devices = []
    for name in ("a", "b"):
        device = lab.add_device(
            name, decision=decide, superlink="customer", stay=True, unsigned_bundle_digest=lab.bundle.digest
        )
        public = lab.folder / name / "node.pub"
        public.write_text(lab.devices.get(name).flower_public_key)
        stock.flwr("supernode", "register", str(public), "site", "--name", name, "--format", "json")
        device.host.start_unsigned()
        devices.append(device)
    wait_for(lambda: stock.flwr("supernode", "ls", "site", "--format", "json").count('"online"') >= 2)
    return devices


def run_app(lab: RoundLab, stock: StockSuperLink) -> dict[str, list[dict[str, float]]]:
    app = stock.folder / "app"
    (app / "stock").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "stock" / "__init__.py").write_text("")
    (app / "stock" / "server_app.py").write_text(SERVER_APP)
    (app / "stock" / "client_app.py").write_text(CLIENT_APP)
    weights = np.frombuffer(lab.bundle.files["weights.bin"], dtype="<f4")
    layers, at = {}, 0
    for number, parameter in enumerate(lab.bundle.manifest.parameters):
        count = int(np.prod(parameter.shape))
        layers[f"{number:03d}"] = weights[at : at + count].reshape(parameter.shape)
        at += count
    np.savez(stock.folder / "start.npz", **layers)
    result = stock.folder / "result.json"
    stock.flwr("run", str(app), "site", "-c", f'start="{stock.folder / "start.npz"}" result="{result}"')
    wait_for(lambda: result.exists() or '"finished:' in stock.flwr("ls", "site", "--format", "json"))
    return json.loads(result.read_text()) if result.exists() else {"train": [], "evaluate": []}


@pytest.mark.slow
def test_an_unmodified_fedavg_app_trains_through_our_workers_if_the_site_allows_unsigned_runs(
    lab: RoundLab, stock: StockSuperLink
):
    devices = join(lab, stock, unsigned_runs=True)

    said = run_app(lab, stock)

    assert len(said["train"]) == 2
    losses = [figures["train_loss"] for figures in said["train"]]
    assert losses[1] < losses[0]
    assert len(said["evaluate"]) == 2
    assert all(answer.accepted for device in devices for answer in device.answers)


@pytest.mark.slow
def test_an_unsigned_run_is_refused_by_default(lab: RoundLab, stock: StockSuperLink):
    devices = join(lab, stock, unsigned_runs=False)

    said = run_app(lab, stock)

    assert not any(said["train"])
    codes = {answer.reason_code for device in devices for answer in device.answers}
    assert codes == {UNSIGNED_RUN}
