"""A customer's own SuperLink with an unmodified `flwr run` app trains through real agents, if the site allows it.

Nothing stands in for anything: agents and coordinator are processes of the command line, the SuperLink and the app are
Flower's own, and the yes or no is the policy that the site signed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.plant import MODEL, POLICY, Plant, wait_for

from holdfast.bundle.verify import read_bundle
from holdfast.evidence.entries import parse_entries
from holdfast.evidence.layout import read_evidence
from holdfast.policy.evaluate import UNSIGNED_RUN
from holdfast.wire.messages import Report, RoundAnswer
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
        wait_for(lambda: is_answering(self.address), "the stock SuperLink", DEADLINE_S)

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

    def register(self, name: str, public_key: Path) -> None:
        """The customer lets a device's node key in."""
        self.flwr("supernode", "register", str(public_key), "site", "--name", name, "--format", "json")

    def online(self) -> int:
        return self.flwr("supernode", "ls", "site", "--format", "json").count('"online"')

    def settings(self) -> str:
        """What the coordinator must know of it."""
        path = json.dumps(str(self.folder / "tls.crt"))
        return f'\n[[superlink]]\nname = "customer"\naddress = "{self.address.authority}"\ncertificate = {path}\n'

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait(30)


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[StockSuperLink]:
    stock = StockSuperLink(tmp_path / "stock")
    try:
        yield stock
    finally:
        stock.stop()


def join(plant: Plant, stock: StockSuperLink) -> None:
    """Two agents whose settings name the customer's SuperLink; returns when their workers are online there."""
    plant.prepare(settings=stock.settings())
    plant.publish()
    for name in ("ward-a", "ward-b"):
        agent = plant.enrol(name)
        agent.environment = {"HOLDFAST_SUPERLINK": "customer", "HOLDFAST_SUPERLINK_MODEL": MODEL}
        stock.register(name, agent.state / "identity" / "flower.pub")
    plant.serve()
    wait_for(lambda: stock.online() >= 2, "the workers to come online", DEADLINE_S)


def run_app(plant: Plant, stock: StockSuperLink) -> dict[str, list[dict[str, float]]]:
    """The customer's app, from the weights of the served model. Its own metrics; none if it failed."""
    app = stock.folder / "app"
    (app / "stock").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "stock" / "__init__.py").write_text("")
    (app / "stock" / "server_app.py").write_text(SERVER_APP)
    (app / "stock" / "client_app.py").write_text(CLIENT_APP)
    bundle = read_bundle((plant.folder / "plain-1.bundle").read_bytes())
    weights = np.frombuffer(bundle.files["weights.bin"], dtype="<f4")
    layers, at = {}, 0
    for number, parameter in enumerate(bundle.manifest.parameters):
        count = int(np.prod(parameter.shape))
        layers[f"{number:03d}"] = weights[at : at + count].reshape(parameter.shape)
        at += count
    np.savez(stock.folder / "start.npz", **layers)
    result = stock.folder / "result.json"
    stock.flwr("run", str(app), "site", "-c", f'start="{stock.folder / "start.npz"}" result="{result}"')

    def ended() -> bool:
        return result.exists() or '"finished:' in stock.flwr("ls", "site", "--format", "json")

    wait_for(ended, "the app to end", DEADLINE_S)
    return json.loads(result.read_text()) if result.exists() else {"train": [], "evaluate": []}


def answers(plant: Plant) -> list[RoundAnswer]:
    """What the devices said to the runs, out of the evidence, which is verified against all roots."""
    for agent in plant.agents.values():
        agent.end()
    assert plant.stop_coordinator() == 0
    assert plant.verdict()["authenticated"] is True
    entries = parse_entries(read_evidence((plant.folder / "all.evidence").read_bytes()).entries)
    reports = [entry.fact for entry in entries if isinstance(entry.fact, Report)]
    return [report.round_answer for report in reports if report.round_answer is not None]


@pytest.mark.slow
def test_an_unmodified_fedavg_app_trains_through_agents_whose_site_signed_that(
    tmp_path: Path, stock: StockSuperLink
) -> None:
    with Plant(tmp_path, f"{POLICY}unsigned_runs = true\n") as plant:
        join(plant, stock)

        said = run_app(plant, stock)

        assert len(said["train"]) == 2
        losses = [figures["train_loss"] for figures in said["train"]]
        assert losses[1] < losses[0]
        assert len(said["evaluate"]) == 2
        given = answers(plant)
        assert len(given) >= 2 * 2  # each device, once for training and once for evaluation at least
        assert all(answer.accepted and answer.run_id.startswith("unsigned-") for answer in given)


@pytest.mark.slow
def test_an_unsigned_run_is_refused_by_a_policy_that_does_not_name_it(tmp_path: Path, stock: StockSuperLink) -> None:
    with Plant(tmp_path) as plant:
        join(plant, stock)

        said = run_app(plant, stock)

        assert not any(said["train"])
        assert not any(said["evaluate"])
        given = answers(plant)
        assert {(answer.accepted, answer.reason_code, answer.policy_rule) for answer in given} == {
            (False, UNSIGNED_RUN, "rounds.unsigned_runs = false")
        }
