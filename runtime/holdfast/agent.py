"""The agent of an enrolled device, as a list: what it is made of, and the tasks that run until it is told to stop.

The rooms of the device do not know each other; they are introduced here and nowhere else. One process owns a state
folder. The first task that fails stops all (see `lifecycle`); errors of the line, of the disk or of somebody's data
are handled inside the tasks and do not stop serving.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.clock import Clock
from holdfast.config import AgentConfig
from holdfast.errors import HoldfastError, StateError
from holdfast.identity.device import Device, read_file
from holdfast.identity.policy_store import PolicyStore
from holdfast.identity.renewal import Renewal
from holdfast.identity.state import StateFolder, is_owned
from holdfast.inference.graph_cache import GraphCache
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import SessionOptions, share_threads
from holdfast.lifecycle import Stop, Task
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.check_in import CheckIn, Handlers, NoOffers, OfferHandler
from holdfast.link.client import Endpoint, Link
from holdfast.models.activation import ActivationTrust
from holdfast.models.install import Installer, InstallSettings, Surroundings
from holdfast.models.profiles import CurrentManifests
from holdfast.models.store import ModelStore
from holdfast.observe.data_window import DataMeter, ModelProfile
from holdfast.observe.objective import LatencyObjective
from holdfast.observe.recorder import Pace, WindowRecorder, data_allowed
from holdfast.observe.window import WindowMeter
from holdfast.outbox.checkpoints import CheckpointMemory
from holdfast.outbox.journal import Journal, read_head
from holdfast.outbox.sender import Recipient, Sender
from holdfast.policy.rules import format_time
from holdfast.serving.options import server_options
from holdfast.serving.protocols import RequestTap
from holdfast.serving.server import Address, Server
from holdfast.trust.durable import write_atomic
from holdfast.wire.messages import ModelEvent

logger = logging.getLogger(__name__)

MIB = 1_048_576
CONFIRM_S = 1.0  # how often a new model is looked at until it is confirmed
STATUS_S = 2.0
STATUS_NAME = "status.json"
SERVER_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What is there before anything runs; handed to whoever adds a room."""

    state: StateFolder
    config: AgentConfig
    clock: Clock
    device: Device
    policy: PolicyStore
    journal: Journal
    bytes_out: ByteLedger
    link: Link
    pool: ModelPool
    store: ModelStore
    objective: LatencyObjective | None = None  # None: training need not yield to anybody

    def close(self) -> None:
        """Close the line and the journal; after the agent has stopped."""
        self.link.close()
        self.journal.close()


@dataclass(frozen=True, slots=True)
class Offers:
    """The learning side: who answers offers, and the tasks that belong to it."""

    handler: OfferHandler = field(default_factory=NoOffers)
    tasks: tuple[Task, ...] = ()


def no_offers(parts: Parts) -> Offers:
    """A device that does not train."""
    return Offers()


def open_parts(state: StateFolder, config: AgentConfig, clock: Clock) -> Parts:
    """Open everything that lies in the state folder; dials nothing.

    Raises:
        StateError: not enrolled, damaged, or written by a newer version.
        TrustError: a key file could be read by others.
    """
    device = Device(state)
    record, pins = device.record, device.pins
    policy = PolicyStore(state.policy, pins.site, clock)
    bytes_out = ByteLedger()
    store = ModelStore(state.models)
    journal = Journal(
        state.outbox,
        device.report_key,
        record.device_id,
        record.key_epoch,
        clock,
        policy.digest,
        max_bytes=config.journal_mib * MIB,
    )
    endpoint = Endpoint(record.device_address, device.authority)
    link = Link(endpoint, device.client_identity, bytes_out, clock)
    objective = LatencyObjective(config.p99_objective_ms / 1e3) if config.p99_objective_ms else None
    return Parts(state, config, clock, device, policy, journal, bytes_out, link, ModelPool(), store, objective)


class Agent:
    """A device at work. `start` returns when it serves; then run `tasks`; then `stop`.

    Args:
        make_offers: builds the learning side on top of the parts.
    """

    def __init__(self, parts: Parts, make_offers: Callable[[Parts], Offers] = no_offers) -> None:
        config, clock, pins = parts.config, parts.clock, parts.device.pins
        record = parts.device.record
        self._parts = parts
        self._offers = make_offers(parts)
        self.installer = Installer(
            parts.store,
            parts.pool,
            ActivationTrust(record.device_id, pins.authors, pins.approvers, (pins.run,), (pins.assignment,)),
            Surroundings(parts.link.fetch, self._tell, clock),
            _install_settings(config),
        )
        self._manifests = CurrentManifests(parts.store)
        self._meter = WindowMeter(clock, self.installer.digest_of, parts.bytes_out.take)
        self._data_meter = DataMeter(clock, self._profile_of, lambda: data_allowed(parts.policy.current(), clock))
        self._recorder = WindowRecorder(
            (self._meter, self._data_meter),
            parts.policy.current,
            parts.journal.append,
            Pace(config.window_s, config.data_window_s),
            clock,
        )
        memory = CheckpointMemory(parts.state.checkpoints, pins.ledger)
        recipient = Recipient(pins.ledger, record.device_id)
        self._sender = Sender(parts.journal, parts.link, recipient, memory, clock, random.Random())
        self._check_in = CheckIn(
            parts.link,
            Handlers(self.installer, self._offers.handler),
            parts.policy.digest,
            self._contact,
            config.check_in_interval_s,
            clock,
        )
        self._renewal = Renewal(parts.device, parts.link, parts.bytes_out, clock, random.Random())
        options = server_options(config.serving, Address.parse(config.listen), insecure=config.insecure)
        taps: tuple[RequestTap, ...] = (self._meter, self._data_meter)
        if parts.objective is not None:
            taps = (*taps, parts.objective)
        self._server = Server(parts.pool, taps, options, clock)
        self._status: Mapping[str, object] = {}

    def start(self) -> Address:
        """Bring back the models that were in service, and listen. Returns the address that is served."""
        self._forget_status()  # of the run before; whoever waits for the file must not read an old address
        self._parts.policy.record_installed(self._parts.journal.append)
        if self._parts.config.serving.shared_threads:
            share_threads(self._parts.config.serving.shared_threads)
        self.installer.restore()
        self._manifests.refresh()
        address = self._server.start()
        self._status = {"listen": str(address)}
        self._write_status()
        return address

    def tasks(self) -> list[Task]:
        """Everything that runs beside the server."""
        parts = self._parts
        return [
            # telemetry first: a device whose models fail must still be visible
            Task("windows", self._recorder.run),
            Task("sender", self._sender.run),
            Task("policy", lambda stop: parts.policy.watch(parts.journal.append, stop)),
            Task("renewal", self._renewal.run),
            Task("check-in", self._check_in.run),
            Task("confirm", self._confirm),
            Task("status", self._keep_status),
            *self._offers.tasks,
        ]

    def stop(self) -> None:
        """Drain the server, store the last window, and try once to deliver it."""
        self._server.stop(SERVER_STOP_S)
        self._recorder.tick()
        self._sender.finish()
        self._forget_status()

    def _contact(self, clock_offset_ns: int) -> None:
        self._parts.journal.note_clock_offset(clock_offset_ns)
        self._sender.line_is_up()

    def _tell(self, event: ModelEvent) -> None:
        self._parts.journal.append(event)

    def _profile_of(self, model: str, version: str) -> ModelProfile | None:
        found = self._manifests.find(model, version)
        if found is None:
            return None
        digest, manifest = found
        return ModelProfile(digest, manifest.profile, manifest.labels, manifest.scores)

    def _confirm(self, stop: Stop) -> None:
        while not stop.wait(CONFIRM_S):
            try:
                self.installer.confirm_due()
                self._manifests.refresh()
            except HoldfastError as error:
                logger.error("model not confirmed", extra={"error": str(error)})

    def _keep_status(self, stop: Stop) -> None:
        while not stop.wait(STATUS_S):
            try:
                self._write_status()
            except StateError as error:
                logger.warning("status not written", extra={"error": str(error)})

    def _forget_status(self) -> None:
        (self._parts.state.path / STATUS_NAME).unlink(missing_ok=True)

    def _write_status(self) -> None:
        fields = dict(self._status) | {"models": self.installer.active(), "last_error": self._sender.status.last_error}
        if fields != self._status:
            write_atomic(self._parts.state.path / STATUS_NAME, json.dumps(fields, sort_keys=True).encode(), 0o644)
            self._status = fields


def _install_settings(config: AgentConfig) -> InstallSettings:
    return InstallSettings(
        options=SessionOptions(
            config.threads, spinning=config.spinning, shared_threads=config.serving.shared_threads > 0
        ),
        cache=None if config.serving.graph_cache is None else GraphCache(config.serving.graph_cache),
        trial_memory_bytes=config.trial_memory_mib * MIB,
        trial_timeout_s=config.trial_timeout_s,
        confirm_after_s=config.confirm_after_s,
    )


def read_status(state: StateFolder, clock: Clock) -> dict[str, object]:
    """What a device is and does, read from its state folder, whether or not an agent runs on it.

    Raises:
        StateError: not enrolled, or damaged.
    """
    device = Device(state)
    policy = PolicyStore(state.policy, device.pins.site, clock).current()
    head = read_head(state.outbox)
    told = _read_told(state)
    return {
        "device_id": device.record.device_id,
        "site": device.record.site,
        "coordinator": device.record.device_address,
        "running": is_owned(state),
        "listen": told.get("listen", ""),
        "models": told.get("models", {}),
        "certificate_expires": format_time(device.certificate_validity[1]),
        "policy_number": None if policy is None else policy.policy.number,
        "policy_expires": None if policy is None else format_time(policy.policy.expires_utc_ns),
        "records": head.seq,
        "records_waiting": head.seq - head.acknowledged_seq,
        "last_error": told.get("last_error", ""),
    }


def _read_told(state: StateFolder) -> Mapping[str, object]:
    try:
        told: object = json.loads(read_file(state.path / STATUS_NAME))
    except (StateError, ValueError, RecursionError):
        return {}  # never run yet
    return told if isinstance(told, dict) and is_owned(state) else {}
