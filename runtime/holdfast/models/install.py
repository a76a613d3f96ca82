"""Brings assigned models into service: fetch -> verify -> stage -> trial -> warm -> swap -> confirm, or roll back.

Rules: the served model changes by one assignment in the pool, after the new one has been loaded, tried and warmed
beside it, so no request fails; whatever goes wrong before leaves the old model as it is, and what goes wrong after
brings it back; every outcome is told as a `ModelEvent` with its reason. A line that fails or a disk that is full is no
verdict on a model: these errors are raised, and the same assignment is simply handed in again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from holdfast.bundle.files import WEIGHTS_FILE
from holdfast.bundle.manifest import Lineage, Manifest
from holdfast.bundle.verify import UnverifiedBundle, VerifiedBundle, read_bundle, verify_bundle
from holdfast.clock import Clock
from holdfast.errors import FormatError, HoldfastError, LinkError, ModelError, StateError, TrialError, TrustError
from holdfast.inference.graph_cache import GraphCache
from holdfast.inference.memory import give_back
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, SessionOptions
from holdfast.inference.tensors import TensorRequest
from holdfast.inference.trial import DEFAULT_MEMORY_BYTES, DEFAULT_TIMEOUT_S, Golden, run_trial
from holdfast.models.activation import ActivationTrust, check_activation, check_order, read_assignment
from holdfast.models.fetch import Fetch, fetch_blob
from holdfast.models.load import check_runtime, check_signature, golden_of, source_of, warm_session
from holdfast.models.slots import (
    ASSIGNED,
    CONFIRMED,
    MAX_STARTS,
    MAX_TRIES,
    PASSED,
    PROVING,
    REFUSED,
    ROLLED_BACK,
    STARTED,
    SWAPPED,
    VERIFIED,
    Slot,
    Slots,
)
from holdfast.models.store import ModelStore
from holdfast.wire.messages import Assignment, AssignmentDelivery, ModelEvent

logger = logging.getLogger(__name__)

# events of a ModelEvent
EVENT_STAGED = "staged"
EVENT_TRIAL_FAILED = "trial_failed"
EVENT_ACTIVATED = "activated"
EVENT_CONFIRMED = "confirmed"
EVENT_ROLLED_BACK = "rolled_back"
EVENT_REFUSED = "refused"

MAX_REASON_CHARS = 500  # of an error's message in an event
MAX_VERSIONS_KNOWN = 256  # (name, version) pairs whose bundle is remembered for the windows they appear in
MAX_TOLD = 1_000  # refused deliveries remembered, so that none is told twice; beyond that none is told


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the installer is handed: the line to the coordinator, where events go, the time."""

    fetch: Fetch
    emit: Callable[[ModelEvent], None]
    clock: Clock


@dataclass(frozen=True, slots=True)
class InstallSettings:
    """Limits of a trial, for how long a model must serve before it counts as healthy, and graphs optimised before."""

    options: SessionOptions = field(default_factory=SessionOptions)
    trial_memory_bytes: int = DEFAULT_MEMORY_BYTES
    trial_timeout_s: float = DEFAULT_TIMEOUT_S
    confirm_after_s: float = 10.0
    cache: GraphCache | None = None


@dataclass(frozen=True, slots=True)
class _Serving:
    """A model in service since `since_s` (monotonic) that has not been confirmed, or has."""

    digest: str
    version: str
    golden: Golden
    since_s: float
    confirmed: bool = False


class Installer:
    """The one who changes what is served. Its methods may be called from several threads; they take turns."""

    def __init__(
        self,
        store: ModelStore,
        pool: ModelPool,
        trust: ActivationTrust,
        surroundings: Surroundings,
        settings: InstallSettings | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._trust = trust
        self._surroundings = surroundings
        self._settings = settings or InstallSettings()
        self._serving: dict[str, _Serving] = {}
        self._digests: dict[tuple[str, str], str] = {}
        self._told: set[bytes] = set()
        self._turn = threading.Lock()

    def active(self) -> dict[str, str]:
        """Model name -> digest of what is served, for a check-in. Never waits for an installation."""
        return {name: serving.digest for name, serving in dict(self._serving).items()}

    def digest_of(self, model: str, version: str) -> str:
        """The bundle that answered under this name and version since the process started; "" if none did.

        A window that a swap cuts in two holds answers of both versions: each is told under its own bundle.
        """
        return self._digests.get((model, version), "")

    def number(self) -> int:
        """The newest assignment number that was carried out or refused, for a check-in."""
        return self._store.number()

    def restore(self) -> None:
        """At the start of the process: serve every current model, or the previous one after a crash loop or damage."""
        with self._turn:
            for name in self._store.names():
                try:
                    slots = self._store.move(name, STARTED)
                except StateError as error:
                    # one damaged file must not keep the other models from being served
                    self._store.set_aside(name)
                    self._surroundings.emit(ModelEvent(name, "", EVENT_REFUSED, _reason(error)))
                    continue
                self._restore(slots)
            self._store.collect()
            give_back()

    def handle(self, deliveries: Iterable[AssignmentDelivery]) -> None:
        """Carry out what a check-in brought, oldest first; what was carried out or refused before is passed over.

        Raises:
            LinkError, StateError: try again with the next check-in; nothing is lost and the rest is not begun.
        """
        for delivery in deliveries:
            try:
                if read_assignment(delivery, self._trust).number > self.number():
                    self.install(delivery)
            except (TrustError, FormatError) as error:
                self._tell_once(delivery, error)

    def install(self, delivery: AssignmentDelivery) -> None:
        """Carry out one assignment. A model that is not accepted ends in an event, not in an error.

        Raises:
            TrustError: the assignment itself is not ours or not newer; nothing was changed.
            LinkError, StateError: cannot go on now; hand the same assignment in again later.
        """
        with self._turn:
            assignment = read_assignment(delivery, self._trust)
            if assignment.number <= self._store.number():
                raise TrustError(f"assignment number {assignment.number} is not newer than {self._store.number()}")
            slot = Slot(
                digest=assignment.bundle_digest,
                version="",  # stands in the bundle
                blob_sha256=assignment.blob_sha256,
                blob_size_bytes=assignment.blob_size_bytes,
                number=assignment.number,
            )
            self._store.move(assignment.model, ASSIGNED, slot)
            try:
                self._install(delivery, slot)
            except (LinkError, StateError):
                raise
            except HoldfastError as error:
                failed = isinstance(error, TrialError)
                self._store.move(assignment.model, REFUSED)
                self._emit(assignment, EVENT_TRIAL_FAILED if failed else EVENT_REFUSED, _reason(error))
            self._store.collect()
            give_back()  # the model before, and the bundle's own bytes

    def confirm_due(self) -> None:
        """Confirm what has served long enough and still answers its golden inputs; roll back what does not."""
        with self._turn:
            now_s = self._surroundings.clock.monotonic_s()
            for name, serving in list(self._serving.items()):
                if serving.confirmed or now_s - serving.since_s < self._settings.confirm_after_s:
                    continue
                error = self._probe(name, serving)
                if error is None:
                    slots = self._store.move(name, CONFIRMED)
                    self._serving[name] = dataclasses.replace(serving, confirmed=True)
                    self._emit_slot(slots, slots.current, EVENT_CONFIRMED, "")
                else:
                    self._roll_back(self._store.slots(name), _reason(error))
                    give_back()

    def _install(self, delivery: AssignmentDelivery, slot: Slot) -> None:
        now_utc_ns = self._surroundings.clock.utc_ns()
        order = check_order(delivery, self._trust, installed_number=self._store.number(), now_utc_ns=now_utc_ns)
        bundle = self._bring(slot.blob_sha256, slot.blob_size_bytes)
        slot = _described(slot, bundle)
        # what is on its way is named in the slots, so that nothing else clears it away
        self._store.move(order.assignment.model, ASSIGNED, slot)
        verified = check_activation(
            order, bundle, self._trust, now_utc_ns=now_utc_ns, ancestor_weights=self._ancestor_weights
        )
        assignment = order.assignment
        slots = self._store.move(assignment.model, VERIFIED, slot)
        self._emit(assignment, EVENT_STAGED, "")
        if slots.tries > MAX_TRIES:
            raise ModelError(f"its trial was begun {MAX_TRIES} times and never ended; it brings this machine down")
        self._try(verified)
        self._store.move(assignment.model, PASSED)
        session = warm_session(verified, self._settings.options, self._settings.cache)
        # on the disk first: a power cut here finds the new model, tried and approved, in its place
        self._store.move(assignment.model, SWAPPED)
        self._serve(verified, session)
        self._emit(assignment, EVENT_ACTIVATED, " ".join(order.alarms))

    def _bring(self, blob_sha256: str, size_bytes: int) -> UnverifiedBundle:
        if not self._store.has(blob_sha256):
            fetch_blob(self._surroundings.fetch, blob_sha256, size_bytes, self._store.part_path(blob_sha256))
            self._store.keep(blob_sha256)
        return read_bundle(self._store.read(blob_sha256))

    def _ancestor_weights(self, lineage: Lineage) -> bytes:
        """Fetched only when the signatures hold; verify_bundle compares the hash with the author-signed one."""
        return self._bring(lineage.ancestor_blob_sha256, lineage.ancestor_blob_size_bytes).files[WEIGHTS_FILE]

    def _try(self, bundle: VerifiedBundle) -> None:
        settings = self._settings
        check_runtime(bundle.manifest.runtime)
        report = run_trial(
            source_of(bundle),
            golden_of(bundle.golden),
            memory_bytes=settings.trial_memory_bytes,
            timeout_s=settings.trial_timeout_s,
            options=settings.options,
        )
        check_signature(bundle.manifest, report.inputs, report.outputs)

    def _serve(self, bundle: VerifiedBundle, session: ModelSession) -> None:
        manifest, now_s = bundle.manifest, self._surroundings.clock.monotonic_s()
        self._digests = {**dict(list(self._digests.items())[-MAX_VERSIONS_KNOWN:]), _key(manifest): bundle.digest}
        self._pool.swap(manifest.name, manifest.version, session)
        self._serving[manifest.name] = _Serving(bundle.digest, manifest.version, golden_of(bundle.golden), now_s)

    def _probe(self, name: str, serving: _Serving) -> HoldfastError | None:
        request = TensorRequest(name, serving.version, "health", serving.golden.inputs)
        answer = self._pool.predict_batch([request])[0]
        return answer if isinstance(answer, HoldfastError) else None

    def _restore(self, slots: Slots) -> None:
        if slots.current is None:
            return
        # a model that was confirmed once is the last good one; without another it stays, however often we restart
        if slots.starts > MAX_STARTS and (slots.previous is not None or slots.phase == PROVING):
            self._roll_back(slots, f"not healthy after {MAX_STARTS} starts")
            return
        try:
            self._load(slots.current)
        except HoldfastError as error:
            self._roll_back(slots, _reason(error))

    def _load(self, slot: Slot) -> None:
        bundle = read_bundle(self._store.read(slot.blob_sha256))
        verified = verify_bundle(bundle, self._trust.bundles, ancestor_weights=self._ancestor_weights)
        if verified.digest != slot.digest:
            raise StateError(f"bundle {verified.digest[:16]} lies in the place of {slot.digest[:16]}")
        session = warm_session(verified, self._settings.options, self._settings.cache)
        self._serve(verified, session)

    def _roll_back(self, slots: Slots, reason: str) -> None:
        """Put the previous model in the place of the current one; with none, stop serving rather than serve harm."""
        bad = slots.current
        after = self._store.move(slots.name, ROLLED_BACK)
        self._emit_slot(slots, bad, EVENT_ROLLED_BACK, reason)
        if after.current is not None:
            try:
                self._load(after.current)
                return
            except HoldfastError as error:
                logger.error("previous model cannot be served", extra={"model": slots.name, "reason": _reason(error)})
                self._emit_slot(after, after.current, EVENT_REFUSED, _reason(error))
        self._serving.pop(slots.name, None)
        self._pool.remove(slots.name)

    def _tell_once(self, delivery: AssignmentDelivery, error: HoldfastError) -> None:
        """A delivery that is not ours is told once, not with every check-in, and its number is not believed."""
        key = hashlib.sha256(delivery.assignment.payload).digest()
        if key not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(key)
            self._surroundings.emit(ModelEvent("", "", EVENT_REFUSED, _reason(error)))

    def _emit(self, assignment: Assignment, event: str, reason: str) -> None:
        number = assignment.number
        self._surroundings.emit(ModelEvent(assignment.model, assignment.bundle_digest, event, reason, number))

    def _emit_slot(self, slots: Slots, slot: Slot | None, event: str, reason: str) -> None:
        if slot is not None:
            self._surroundings.emit(ModelEvent(slots.name, slot.digest, event, reason, slot.number))


def _key(manifest: Manifest) -> tuple[str, str]:
    return manifest.name, manifest.version


def _described(slot: Slot, bundle: UnverifiedBundle) -> Slot:
    """The slot with what stands in the bundle."""
    slot = dataclasses.replace(slot, version=bundle.manifest.version)
    lineage = bundle.manifest.lineage
    if lineage is None:
        return slot
    return dataclasses.replace(
        slot,
        ancestor_blob_sha256=lineage.ancestor_blob_sha256,
        ancestor_blob_size_bytes=lineage.ancestor_blob_size_bytes,
    )


def _reason(error: HoldfastError) -> str:
    detail = f" ({error.reason})" if isinstance(error, TrialError) else ""
    return f"{error.code}{detail}: {error}"[:MAX_REASON_CHARS]
