"""A coordinator's rounds and devices' hosts in one process, with a real SuperLink and real workers between them.

Only the link is faked: `TunnelLink` hands each call to the gate as the servicer would, and keeps every byte that
passed, in both directions, for the canary search.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tests.fakes import bundles

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.bundle import files as names
from holdfast.bundle.golden import GoldenSet, write_golden
from holdfast.bundle.manifest import ChangeEnvelope, FileEntry, Manifest, Parameter, Tensor
from holdfast.bundle.verify import Trust, read_bundle
from holdfast.clock import SystemClock
from holdfast.errors import LinkError, RoundError
from holdfast.learn.authority import Decide, Ground, RoundAuthority
from holdfast.learn.host import RoundHost, WorkerSettings
from holdfast.policy.evaluate import ALLOWED, Decision
from holdfast.trust.envelope import sign_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.trust.keystore import KeyStore, generate_flower_node_key
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import (
    REPORT_TYPE,
    ClockReading,
    FleetCallRequest,
    FleetCallResponse,
    Report,
    RoundAnswer,
    RoundOffer,
)
from holdfast_federation.database import Database
from holdfast_federation.devices import schema as devices_schema
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.events import outbox
from holdfast_federation.events import schema as events_schema
from holdfast_federation.ledger import schema as ledger_schema
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry import schema as registry_schema
from holdfast_federation.registry.models import Registry
from holdfast_federation.rounds import schema as rounds_schema
from holdfast_federation.rounds.gate import Gate
from holdfast_federation.rounds.node_keys import node_key_pem
from holdfast_federation.rounds.runs import RunSpec
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.superlink import SuperLink, SuperLinkAddress

SCHEMAS = tuple(each.SCHEMA for each in (ledger_schema, devices_schema, events_schema, registry_schema, rounds_schema))
BATCH = 8
INPUTS = 6
CLASSES = 3
CANARY = 0.1234567917  # every sample holds it; as float32, and in decimal, nobody else writes it


def blobs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds that a linear model can tell apart; the last feature of every sample is the canary."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.eye(CLASSES, INPUTS, dtype=np.float32) * 3
    x = (centres[labels] + rng.standard_normal((count, INPUTS)) * 0.5).astype(np.float32)
    x[:, -1] = CANARY
    return x, labels.astype(np.int64)


def learning_bundle(keys: bundles.Keys, *, max_update_norm: float = 1_000.0) -> bytes:
    """An author-signed bundle of a small perceptron with real training graphs."""
    rng = np.random.default_rng(7)
    shapes = {"w1": (INPUTS, 5), "b1": (5,), "w2": (5, CLASSES), "b2": (CLASSES,)}
    tensors = [numpy_helper.from_array((rng.standard_normal(s) * 0.3).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    graphs = build_graphs(model, batch=BATCH)
    split = split_weights(model, layout=graphs.layout)
    files = bundles.bundle_files()
    x = np.zeros((2, INPUTS), dtype=np.float32)
    files |= {
        names.MODEL_FILE: split.skeleton,
        names.WEIGHTS_FILE: split.weights,
        names.TRAIN_GRAPH: graphs.train,
        names.EVALUATE_GRAPH: graphs.evaluate,
        names.GOLDEN_FILE: write_golden(GoldenSet({"x": x}, {"y": np.zeros((2, CLASSES), dtype=np.float32)})),
    }
    template = bundles.manifest_of(files, name="blobs")
    parameters = tuple(Parameter(e.name, e.shape, e.offset_bytes, e.trainable) for e in graphs.layout.entries)
    manifest = Manifest(
        **{
            **{f: getattr(template, f) for f in template.__slots__},
            "inputs": (Tensor("x", "float32", (None, INPUTS)),),
            "outputs": (Tensor("y", "float32", (None, CLASSES)),),
            "labels": ("a", "b", "c"),
            "parameters": parameters,
            "training": replace(bundles.TRAINING, batch=BATCH),
            "change_envelope": ChangeEnvelope(max_update_norm),
            "files": {f: FileEntry(hashlib.sha256(d).hexdigest(), len(d)) for f, d in files.items()},
        }
    )
    return bundles.signed_bundle(manifest, files, keys.author)


@dataclass
class TunnelLink:
    """The device's link: to the gate and back, keeping every byte that passed."""

    gate: Gate
    device_id: str
    passed: list[bytes] = field(default_factory=list)
    down: bool = False

    def fleet_call(self, request: FleetCallRequest) -> FleetCallResponse:
        if self.down:
            raise LinkError("the line is cut")
        data = to_bytes(request)
        self.passed.append(data)
        try:
            answer = self.gate.forward(self.device_id, from_bytes(FleetCallRequest, data, max_bytes=2**25))
        except RoundError as error:
            raise LinkError(str(error)) from error
        return answer


@dataclass
class Device:
    """One device of the lab with everything it owns."""

    device_id: str
    folder: Path
    report_key: PrivateKey
    link: TunnelLink
    authority: RoundAuthority
    host: RoundHost
    answers: list[RoundAnswer]


class RoundLab:
    """State folder, database, ledger, SuperLink, gate; `add_device` as often as wanted; `close` ends all children."""

    def __init__(self, folder: Path, make: Callable[[bundles.Keys], bytes] = learning_bundle) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.keys = bundles.make_keys()
        self.container = make(self.keys)
        self.bundle = read_bundle(self.container)
        self.bundle_path = folder / "base.bundle"
        self.bundle_path.write_bytes(self.container)
        self.database = Database(folder / "holdfast.db", SCHEMAS)
        authority = KeyStore(folder / "authority")
        self.ledger = Ledger(self.database, authority.create("ledger", ED25519), "lab/ledger", self.clock)
        self.run_key = authority.create("run", ED25519)
        author = folder / "principals" / "author"
        author.mkdir(parents=True)
        (author / "author.pem").write_text(self.keys.author.public_key.to_pem())
        trust = Trust((self.keys.author.public_key,), (self.run_key.public_key,))
        (folder / "blobs").mkdir()
        self.registry = Registry(self.database, self.ledger, folder / "blobs", self.clock, trust, ())
        self.registry.add(self.container)
        self.devices = Devices(self.database)
        self.store = RunStore(self.database, self.ledger, self.clock)
        self.superlink = SuperLink(folder / "flower", self.clock)
        self.address: SuperLinkAddress = self.superlink.start()
        self.superlinks = {"": lambda: self.address}
        self.gate = Gate(self.node_key, self.superlinks)
        self.members: list[Device] = []
        self._stop = threading.Event()
        self._checking = threading.Thread(target=self._check_in, daemon=True)
        self._checking.start()

    def node_key(self, device_id: str) -> str:
        record = self.devices.find(device_id)
        return "" if record is None else node_key_pem(record.flower_public_key)

    def report_key(self, device_id: str):
        return self.devices.get(device_id).report_key

    def add_device(
        self, name: str, *, decision: Decision | Decide = ALLOWED, count: int = 60, **settings: object
    ) -> Device:
        folder = self.folder / name
        folder.mkdir()
        private, public = generate_flower_node_key()
        (folder / "flower.key").write_bytes(private)
        x, y = blobs(sum(name.encode()), count)
        np.savez(folder / "samples.npz", x=x, y=y)
        key = PrivateKey.generate(ED25519)
        record = DeviceRecord(name, "site", name, key.public_key.spki_der, 1, public.decode(), "00", 1)
        with self.database.write() as cx:
            self.devices.add(cx, record)
        link = TunnelLink(self.gate, name)
        answers: list[RoundAnswer] = []

        def answered(answer: RoundAnswer) -> None:
            answers.append(answer)
            self.report(name, key, answer)

        authority = RoundAuthority(
            name,
            key,
            self.run_key.public_key,
            (lambda offer, signed: decision) if isinstance(decision, Decision) else decision,
            lambda offer: self._ground(folder, offer, count),
            answered,
        )
        worker = WorkerSettings(node_key=folder / "flower.key", state=folder, **settings)
        device = Device(name, folder, key, link, authority, RoundHost(link, authority, worker, self.clock), answers)
        self.members.append(device)
        return device

    def report(self, name: str, key: PrivateKey, answer: RoundAnswer) -> None:
        """What ingest does with an answer that a device journalled."""
        report = Report(name, 1, "boot", 1, bytes(32), ClockReading(1, 1), round_answer=answer)
        envelope = to_bytes(sign_envelope(REPORT_TYPE, to_bytes(report), key))
        with self.database.write() as cx:
            outbox.emit(cx, "round_answer", answer.run_id, envelope)

    def spec(self, **changes: object) -> RunSpec:
        """A small run of all members."""
        fields: dict[str, object] = {
            "run_id": f"run-{len(self.store.all()):06d}",
            "model": "blobs",
            "base_digest": self.bundle.digest,
            "purpose": "improve",
            "devices": tuple(member.device_id for member in self.members),
            "rounds": 2,
            "batch": BATCH,
            "deadline_s": 90.0,
            "invite_s": 60.0,
        }
        spec = RunSpec(**(fields | changes))
        self.store.create(spec)
        return spec

    def start_worker(self, spec: RunSpec) -> subprocess.Popen[bytes]:
        """The run worker as a process of its own, for killing it."""
        module = "holdfast_federation.rounds.run_worker"
        command = [sys.executable, "-m", module, str(self.folder), spec.run_id, "--origin", "lab/ledger"]
        with (self.folder / "run_worker.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def close(self) -> None:
        self._stop.set()
        self._checking.join(30)
        for device in self.members:
            device.host.stop()
        self.superlink.stop()
        self.database.close()

    def _ground(self, folder: Path, offer: RoundOffer, count: int) -> Ground | None:
        if offer.base_bundle_digest != self.bundle.digest:
            return None
        return Ground(self.bundle_path, folder / "samples.npz", count)

    def _check_in(self) -> None:
        while not self._stop.wait(0.1):
            for device in tuple(self.members):
                for envelope in self.store.offers(device.device_id):
                    device.host.consider(envelope)
                device.host.tend()


def everything_sent(devices: Sequence[Device]) -> bytes:
    """All bytes that left the devices, and what their workers logged."""
    logs = [device.folder / "worker.log" for device in devices]
    passed = b"".join(b"".join(device.link.passed) for device in devices)
    return passed + b"".join(path.read_bytes() for path in logs if path.exists())
