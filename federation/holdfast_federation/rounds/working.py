"""Puts the parts of one run worker together: keys, database, SuperLink, bundles; then drives its run to the end.

One process per run and one run per process: flwr keeps a task's identity in a global. A file lock makes sure that no
second worker drives the same run; another lock lets only one worker at a time start a Flower run and take its task.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast.author.candidate import RunFacts, derive_candidate
from holdfast.bundle.files import WEIGHTS_FILE
from holdfast.bundle.verify import UnverifiedBundle, read_bundle
from holdfast.clock import Clock
from holdfast.errors import HoldfastError, RoundError
from holdfast.trust.durable import make_folder
from holdfast.trust.keys import Signer
from holdfast.update.layout import FlatLayout, LayoutEntry
from holdfast_federation.devices.records import Devices
from holdfast_federation.rounds.checkpoint import Checkpoints
from holdfast_federation.rounds.drive import Base, Driver, Outcome, Parts
from holdfast_federation.rounds.flower_grid import FlowerGrid, register_node
from holdfast_federation.rounds.grid import Ticket
from holdfast_federation.rounds.node_keys import node_key_pem
from holdfast_federation.rounds.runs import RunSpec
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.superlink import is_answering, read_address

logger = logging.getLogger(__name__)

SUPERLINK_TIMEOUT_S = 90.0  # until a SuperLink that is being started answers
PAUSE_S = 0.5
VERSION_TAIL = 6  # characters of the run id in a candidate's version


class Shelf(Protocol):
    """Where bundles are kept (the registry)."""

    def container(self, digest: str) -> bytes:
        """The bundle of that digest, verified when it was put there."""

    def add(self, container: bytes) -> str:
        """Verify and keep a bundle; its digest. Adding it twice does no harm."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run worker finds in the state folder. `flower`: the SuperLink's folder, with `runs/` for checkpoints."""

    flower: Path
    store: RunStore
    devices: Devices
    shelf: Shelf
    run_key: Signer
    clock: Clock


def work(run_id: str, around: Surroundings) -> str:
    """Drive one run to its end. Returns its final state. Raises: RoundError: another worker drives it already."""
    folder = around.flower / "runs"
    make_folder(folder)
    with locked(folder / f"{run_id}.lock", wait=False):
        spec = around.store.get(run_id).spec
        container = around.shelf.container(spec.base_digest)
        bundle = read_bundle(container)
        _register_nodes(spec, around)
        base = Base(bundle.files[WEIGHTS_FILE], layout_of(bundle))
        parts = Parts(
            store=around.store,
            checkpoints=Checkpoints(folder / run_id),
            signer=around.run_key,
            report_key=lambda device_id: around.devices.get(device_id).report_key,
            node_key=lambda device_id: node_key_pem(around.devices.get(device_id).flower_public_key),
            start_grid=lambda ticket: _start_grid(ticket, around),
            make_candidate=lambda spec, outcome: _make_candidate(container, bundle, spec, outcome, around),
            clock=around.clock,
        )
        return Driver(run_id, base, parts).drive()


def layout_of(bundle: UnverifiedBundle) -> FlatLayout:
    """The table of a bundle's parameters."""
    parameters = bundle.manifest.parameters
    return FlatLayout(tuple(LayoutEntry(p.name, p.shape, p.dtype, p.offset_bytes, p.trainable) for p in parameters))


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a lock file between processes. Raises: RoundError: taken, and not to be waited for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise RoundError(f"another process holds {path.name}; the run is being driven already") from error
        yield
    finally:
        os.close(descriptor)


def _register_nodes(spec: RunSpec, around: Surroundings) -> None:
    """Let the node keys of the invited devices into the SuperLink; a device revoked since is left out."""
    _await_superlink(around)
    for device_id in spec.devices:
        device = around.devices.get(device_id)
        public_key = node_key_pem(device.flower_public_key)
        known = around.store.node(device_id)
        if device.is_revoked or (known is not None and known[0] == public_key):
            continue
        node_id = register_node(read_address(around.flower), device.flower_public_key, device_id)
        around.store.enter_node(device_id, public_key, node_id)


def _start_grid(ticket: Ticket | None, around: Surroundings) -> FlowerGrid:
    _await_superlink(around)
    if ticket is not None:
        return FlowerGrid(read_address(around.flower), ticket, around.clock)
    with locked(around.flower / "start.lock", wait=True):
        return FlowerGrid.start(read_address(around.flower), around.clock)


def _await_superlink(around: Surroundings) -> None:
    deadline_s = around.clock.monotonic_s() + SUPERLINK_TIMEOUT_S
    pause = threading.Event()
    while around.clock.monotonic_s() < deadline_s:
        try:
            if is_answering(read_address(around.flower)):
                return
        except RoundError:
            logger.info("the SuperLink has not been started yet")
        around.clock.wait(pause, PAUSE_S)
    raise RoundError(f"the SuperLink did not answer for {SUPERLINK_TIMEOUT_S:.0f} s; read its log")


def _make_candidate(
    container: bytes, bundle: UnverifiedBundle, spec: RunSpec, outcome: Outcome, around: Surroundings
) -> str:
    lineage = bundle.manifest.lineage
    ancestor = None if lineage is None else around.shelf.container(lineage.ancestor_digest)
    facts = RunFacts(spec.run_id, spec.rounds, len(outcome.contributors), outcome.sample_count)
    version = f"{bundle.manifest.version.split('-')[0]}-{spec.run_id[-VERSION_TAIL:]}"
    try:
        candidate = derive_candidate(
            container, outcome.weights, version=version, run=facts, signer=around.run_key, ancestor=ancestor
        )
    except HoldfastError as error:
        raise RoundError(f"no candidate can be made: {error}") from error
    return around.shelf.add(candidate)
