"""A whole small plant for tests: keys of everybody, a coordinator process, agent processes with samples, one model.

What is started, killed and watched are real processes of the command line. Commands that only prepare or ask run
inside the test process through the same `main`, which saves a second each.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tests.fakes import served_models
from tests.fakes.coordinator_process import CoordinatorProcess

from holdfast.cli.main import main
from holdfast.clock import SystemClock
from holdfast_federation.admin.client import AdminClient

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
MODEL, PURPOSE = "plain", "improve"
FEATURES, CLASSES = 4, 3
POLICY = """
site = "north"
valid_days = 30
[reports]
operational = true
data = true
minimum_rows = 20
[rounds]
purposes = ["improve"]
handlers = ["train", "evaluate"]
minimum_cohort = 1
minimum_rows = 10
require_clip = true
"""
FINAL = ("done", "failed")


def holdfast(*arguments: str, code: int = 0) -> dict[str, object]:
    """One command in this process, its answer as JSON."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = main([*arguments, "--json"])
    assert got == code, (arguments, out.getvalue(), err.getvalue())
    answer = json.loads(out.getvalue())
    assert isinstance(answer, dict)
    return answer


def wait_for(condition: Callable[[], object], what: Callable[[], str] | str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until it holds; fails with `what` when the time is up."""
    clock, never = SystemClock(), threading.Event()
    until_s = clock.monotonic_s() + deadline_s
    while not condition():
        assert clock.monotonic_s() < until_s, f"not in time: {what if isinstance(what, str) else what()}"
        clock.wait(never, 0.05)


def clouds(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in four dimensions that a small network can tell apart: float32[count, 4], int64[count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.eye(CLASSES, FEATURES, dtype=np.float32) * 3
    return (centres[labels] + rng.standard_normal((count, FEATURES)) * 0.5).astype(np.float32), labels


def processes_with(text: str) -> dict[int, str]:
    """Process id -> command line of every running process whose command line holds `text`; this one left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command:  # a zombie has no command line
                found[int(folder.name)] = command
    return found


class Agent:
    """`holdfast agent run` on one state folder. `module`: what runs instead of `holdfast`."""

    def __init__(self, folder: Path, name: str, device_id: str) -> None:
        self.folder, self.name, self.device_id = folder, name, device_id
        self.state, self.log = folder / name, folder / f"{name}.log"
        self.data = folder / f"{name}.npz"
        self.more: Sequence[str] = ()
        self.environment: Mapping[str, str] = {}
        self.module = "holdfast"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", self.module, "agent", "run", str(self.state), "--listen", "127.0.0.1:0"),
            *("--policy", str(self.folder / "north" / "policy-1.json"), "--data", str(self.data)),
            *("--window-s", "0.5", "--data-window-s", "0.5", "--check-in-interval-s", "0.2", *self.more),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        roots = os.pathsep.join([str(ROOT), *sys.path])
        environment = {**kept, "HOLDFAST_CONFIRM_AFTER_S": "0.3", "PYTHONPATH": roots, **self.environment}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def status(self) -> dict[str, object]:
        """What it says of itself; empty until it is ready."""
        try:
            status: dict[str, object] = json.loads((self.state / "status.json").read_text())
        except FileNotFoundError:
            status = {}
        assert self._process is None or self._process.poll() is None or status, self.log.read_text()[-2_000:]
        return status

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """One HTTP request to the port that it serves on."""
        connection = http.client.HTTPConnection(str(self.status()["listen"]), timeout=30)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def end(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(30)
            finally:
                self._process.kill()
                self._process.wait(30)
                self._process = None


class Plant:
    """Everybody's folders under `folder`. A context manager: every process has ended when it is left."""

    def __init__(self, folder: Path, policy: str = POLICY) -> None:
        self.folder, self.policy = folder, policy
        self.state = folder / "coordinator"
        self.agents: dict[str, Agent] = {}
        self.digest = ""
        self.coordinator_environment: Mapping[str, str] = {}
        self._coordinator: CoordinatorProcess | None = None
        self._listen: tuple[str, ...] = ()

    def __enter__(self) -> Plant:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents.values():
            agent.end(signal.SIGKILL)
        if self._coordinator is not None and self._coordinator.process.poll() is None:
            self._coordinator.stop()  # its children with it

    def prepare(self, *, settings: str = "") -> None:
        """Keys, policy, the author's bundle, the coordinator's folder; then the coordinator runs."""
        where = self.folder
        holdfast("site", "init", str(where / "north"))
        (where / "north" / "policy.toml").write_text(self.policy)
        holdfast("site", "sign-policy", str(where / "north"))
        for role in ("author", "approver"):
            holdfast("key", "create", role, str(where / role))
        init = ("coordinator", "init", str(self.state), "--trust-domain", "plant7.example", *self.keys)
        holdfast(*init, "--site-key", f"north={where / 'north' / 'site.pub'}")
        with (self.state / "settings.toml").open("a") as file:
            file.write(settings)
        self.start_coordinator()

    @property
    def keys(self) -> tuple[str, ...]:
        author, approver = self.folder / "author" / "author.pub", self.folder / "approver" / "approver.pub"
        return "--author-key", str(author), "--approver-key", str(approver)

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.state)

    @property
    def coordinator_pid(self) -> int:
        assert self._coordinator is not None
        return self._coordinator.process.pid

    def start_coordinator(self) -> None:
        """On free ports the first time, on the same ones afterwards, where its devices look for it."""
        more = ("--check-in-s", "0.2", *self._listen)
        self._coordinator = CoordinatorProcess(self.state, more, self.coordinator_environment)
        addresses = self._coordinator.wait_ready()
        self._listen = ("--enrolment-listen", addresses["enrolment"], "--device-listen", addresses["device"])

    def kill_coordinator(self) -> None:
        """kill -9 of the one process; its children are left to notice."""
        assert self._coordinator is not None
        self._coordinator.kill()

    def stop_coordinator(self) -> int:
        assert self._coordinator is not None
        return self._coordinator.stop()

    def enrol(self, name: str, count: int = 60) -> Agent:
        """A new device with `count` samples of its own; not started."""
        token = str(self.admin.post("/v1/tokens", {"site": "north", "name": name})["token"])
        site = ("--site-key", str(self.folder / "north" / "site.pub"))
        said = holdfast("agent", "enrol", str(self.folder / name), "--token", token, *site, *self.keys)
        agent = Agent(self.folder, name, str(said["device_id"]))
        x, y = clouds(sum(name.encode()), count)
        np.savez(agent.data, x=x, y=y)
        self.agents[name] = agent
        return agent

    def publish(self) -> None:
        """The author's version 1, approved and in the registry."""
        where = self.folder
        (where / "plain.onnx").write_bytes(served_models.perceptron())
        x, y = clouds(1, 60)
        np.savez(where / "author.npz", x=x, y=y)
        bundle = where / "plain-1.bundle"
        packed = holdfast(
            *("bundle", "pack", str(where / "plain.onnx"), "--key", str(where / "author"), "--version", "1"),
            *("--name", MODEL, "--owner", "tests", "--purpose", PURPOSE, "--labels", "p,q,r", "--batch", "8"),
            *("--samples", str(where / "author.npz"), "--max-update-norm", "1000", "-o", str(bundle)),
        )
        self.digest = str(packed["digest"])
        self.admin.call("POST", "/v1/models", bundle.read_bytes())
        self.approve(self.digest)

    def approve(self, digest: str) -> None:
        document = self.folder / f"{digest[:12]}.approval"
        holdfast("approve", digest, "--key", str(self.folder / "approver"), "-o", str(document))
        self.admin.call("POST", "/v1/approvals", document.read_bytes())

    def serve(self) -> None:
        """Start every agent and wait until each serves version 1."""
        for agent in self.agents.values():
            agent.start()
        self.admin.post("/v1/assignments", {"name": MODEL, "version": "1", "all": True})
        wait_for(self._all_serve, lambda: f"{MODEL} in service: {[a.status() for a in self.agents.values()]}")
        wait_for(self._all_known, "the coordinator to know what is served")

    def _all_serve(self) -> bool:
        return all(agent.status().get("models") == {MODEL: self.digest} for agent in self.agents.values())

    def _all_known(self) -> bool:
        rows = self.admin.get("/v1/models")["models"]
        assert isinstance(rows, list)
        return any(row["active_on"] == len(self.agents) for row in rows)

    def start_run(self, **wish: object) -> str:
        body = {"model": MODEL, "purpose": PURPOSE, "epochs": 1, "deadline_s": 60, "invite_s": 60, **wish}
        return str(self.admin.post("/v1/rounds", body)["run_id"])

    def run_of(self, run_id: str) -> dict[str, object]:
        return self.admin.get(f"/v1/rounds/{run_id}")

    def finish(self, run_id: str) -> dict[str, object]:
        """Wait until the run has ended, and return how."""
        wait_for(lambda: self.run_of(run_id)["state"] in FINAL, lambda: str(self.run_of(run_id)))
        return self.run_of(run_id)

    def verdict(self) -> dict[str, object]:
        """Export the evidence and verify it offline against the roots of all principals."""
        path = self.folder / "all.evidence"
        holdfast("evidence", "export", str(self.state), "-o", str(path))
        roots = [self.state / "authority", *(self.folder / f"{r}/{r}.pub" for r in ("author", "approver"))]
        named = [f"--root={root}" for root in roots]
        return holdfast("evidence", "verify", str(path), *named, f"--root=site-north={self.folder / 'north/site.pub'}")
