"""What the agent allows its worker: judged per offer, signed at most once.

Pure state: offers and statements in, decisions and envelopes out; no process, no socket. An offer is taken only with
the pinned run key's signature and the policy's yes; a statement is signed only if it is about an offer that was taken,
and keeps every bound of it. The worker saw the data, so nothing it says is believed beyond these bounds.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import FormatError, RoundError, TrustError
from holdfast.policy.evaluate import NO_DATA, OFFER_INVALID, OFFER_SIGNATURE, UNKNOWN_MODEL, Decision
from holdfast.trust.envelope import Envelope, sign_envelope, verify_envelope
from holdfast.trust.keys import PublicKey, Signer
from holdfast.update.codecs import CODECS
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_STATEMENT_BYTES
from holdfast.wire.messages import OFFER_TYPE, UPDATE_TYPE, RoundAnswer, RoundOffer, UpdateStatement

MAX_REMEMBERED = 256  # offers; a run has two per round
HANDLERS = ("train", "evaluate")
METRICS = frozenset({"loss", "loss_before", "loss_after", "correct", "count", "accuracy", "norm_before"})
MAX_EPOCHS = 1_000
MAX_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a round happens: the container file of the base bundle, and the file of local samples.

    rows: how many samples there are; hold_out: the share of them that never trains and judges models.
    """

    bundle: Path
    data: Path
    rows: int
    hold_out: float = 0.2


@dataclass(frozen=True, slots=True)
class Authorised:
    """An offer that was answered; `ground` is None when it was refused."""

    offer: RoundOffer
    offer_sha256: bytes
    answer: RoundAnswer
    ground: Ground | None


# signature_holds: True, False, or None for a run that nobody signed
Decide = Callable[[RoundOffer, bool | None], Decision]
FindGround = Callable[[RoundOffer], Ground | None]


class RoundAuthority:
    """Judges offers and signs updates for one device. Thread-safe.

    Args:
        decide: the site's policy, with what this device has already spent.
        find_ground: the base bundle and data for an offer; None if this device has no such bundle.
        answered: called once per offer, in order, with what is to be recorded in the device's chain.
    """

    def __init__(
        self,
        device_id: str,
        signer: Signer,
        run_key: PublicKey,
        decide: Decide,
        find_ground: FindGround,
        answered: Callable[[RoundAnswer], None],
    ) -> None:
        self.device_id = device_id
        self._signer = signer
        self._run_key = run_key
        self._decide = decide
        self._find_ground = find_ground
        self._answered = answered
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Authorised] = OrderedDict()
        self._signed: dict[bytes, bytes] = {}

    def consider(self, envelope: Envelope) -> Authorised:
        """Judge an offer; the second time the same offer comes, give the same answer and record nothing.

        Raises: FormatError: not an offer at all (nothing is recorded: there is nothing to answer to).
        """
        with self._lock:
            digest = hashlib.sha256(envelope.payload).digest()
            known = self._known.get(digest)
            if known is not None and self._is_signed(envelope):
                return known
            offer = from_bytes(RoundOffer, envelope.payload, max_bytes=MAX_STATEMENT_BYTES)
            judged = self._judge(offer, digest, envelope)
            if judged.answer.reason_code != OFFER_SIGNATURE:
                self._remember(judged)
            self._answered(judged.answer)
            return judged

    def consider_unsigned(self, offer: RoundOffer) -> Authorised:
        """Judge a run that carries no offer (a stock Flower app); `offer` is what its message asks for."""
        with self._lock:
            digest = hashlib.sha256(to_bytes(offer)).digest()
            known = self._known.get(digest)
            if known is None:
                known = self._decided(offer, digest, None)
                self._remember(known)
                self._answered(known.answer)
            return known

    def sign(self, statement: UpdateStatement) -> Envelope:
        """Sign what the worker says about an update, if it keeps the offer that was taken.

        Raises: RoundError: no such offer was taken, it was signed for already, or a bound is broken.
        """
        with self._lock:
            known = self._known.get(statement.offer_sha256)
            if known is None or known.ground is None:
                raise RoundError("the update is for an offer that this device did not take")
            check_statement(statement, known.offer, self.device_id, known.ground.rows)
            payload = to_bytes(statement)
            if self._signed.setdefault(statement.offer_sha256, payload) != payload:
                raise RoundError("another update was signed for this offer already")
            return sign_envelope(UPDATE_TYPE, payload, self._signer)

    def has_signed(self, judged: Authorised) -> bool:
        """Whether an update for this offer was signed; there will be no other."""
        with self._lock:
            return judged.offer_sha256 in self._signed

    def is_open(self, now_utc_ns: int) -> bool:
        """Whether an offer was taken that is neither answered with an update nor past its deadline."""
        with self._lock:
            return any(self._waits(known, now_utc_ns) for known in self._known.values())

    def needs_work(self, judged: Authorised, now_utc_ns: int) -> bool:
        """The same of one offer."""
        with self._lock:
            return self._waits(judged, now_utc_ns)

    def _waits(self, known: Authorised, now_utc_ns: int) -> bool:
        is_signed = known.offer_sha256 in self._signed
        return known.ground is not None and not is_signed and now_utc_ns < known.offer.deadline_utc_ns

    def _judge(self, offer: RoundOffer, digest: bytes, envelope: Envelope) -> Authorised:
        if not self._is_signed(envelope):
            refused = self._decide(offer, False)
            rule = refused.rule or "offers are signed by the pinned run key"
            return Authorised(offer, digest, _answer(offer, digest, Decision(False, OFFER_SIGNATURE, rule)), None)
        return self._decided(offer, digest, True)

    def _decided(self, offer: RoundOffer, digest: bytes, signed: bool | None) -> Authorised:
        problem = offer_problem(offer)
        ground = None
        decision = Decision(False, OFFER_INVALID, problem) if problem else self._decide(offer, signed)
        if decision.accepted:
            ground = self._find_ground(offer)
            if ground is None:
                decision = Decision(False, UNKNOWN_MODEL, "the base bundle of the offer is on this device")
            elif ground.rows < 1:
                decision, ground = Decision(False, NO_DATA, "this device holds samples"), None
        # nobody made an offer of an unsigned run: an answer that named one would point to what no log holds
        return Authorised(offer, digest, _answer(offer, b"" if signed is None else digest, decision), ground)

    def _is_signed(self, envelope: Envelope) -> bool:
        try:
            verify_envelope(envelope, OFFER_TYPE, [self._run_key])
        except TrustError:
            return False
        return True

    def _remember(self, judged: Authorised) -> None:
        self._known[judged.offer_sha256] = judged
        while len(self._known) > MAX_REMEMBERED:
            oldest, _ = self._known.popitem(last=False)
            self._signed.pop(oldest, None)


def offer_problem(offer: RoundOffer) -> str:
    """What makes an offer senseless whatever the policy says; empty if nothing does."""
    if offer.handler not in HANDLERS:
        return "the handler is train or evaluate"
    if offer.codec not in CODECS:
        return "the codec is one this device knows"
    if not (1 <= offer.round <= offer.rounds and 1 <= offer.batch <= MAX_BATCH and 0 <= offer.epochs <= MAX_EPOCHS):
        return "round, batch and epochs are within their bounds"
    if offer.max_samples < 1 or offer.weights_size_bytes < 4 or offer.weights_size_bytes % 4:
        return "max_samples and weights_size_bytes are positive"
    if not (math.isfinite(offer.learning_rate) and offer.learning_rate >= 0):
        return "the learning rate is a number of 0 or more"
    if not all(math.isfinite(value) and value >= 0 for value in (offer.proximal_mu, offer.gradient_clip)):
        return "the proximal term and the gradient's bound are numbers of 0 or more"
    if offer.privacy.noise_std != 0:
        return "noise is not asked for"  # adding none and saying so would be a lie; see the training issue of privacy
    return ""


def check_statement(statement: UpdateStatement, offer: RoundOffer, device_id: str, rows: int) -> None:
    """Compare what a worker says with the offer. Raises: RoundError: naming the first bound that is broken."""
    if statement.device_id != device_id:
        raise RoundError("the update names another device")
    if (statement.run_id, statement.round) != (offer.run_id, offer.round):
        raise RoundError("the update names another run or round than its offer")
    if not 1 <= statement.sample_count <= min(rows, offer.max_samples):
        raise RoundError(f"sample count {statement.sample_count} is not between 1 and what this device holds")
    if not set(statement.metrics) <= METRICS or not all(math.isfinite(v) for v in statement.metrics.values()):
        raise RoundError("the update carries a metric that is not known or not a finite number")
    if offer.handler == "evaluate":
        if statement.array_size_bytes or statement.array_sha256:
            raise RoundError("an evaluation carries no array")
        return
    if statement.codec != offer.codec or len(statement.array_sha256) != 32:
        raise RoundError("the update's codec or hash is not what the offer asks for")
    if not 0 < statement.array_size_bytes <= CODECS[offer.codec].encoded_size(offer.weights_size_bytes // 4):
        raise RoundError("the update is larger than the offer's weights allow")
    clip = offer.privacy.clip_norm
    if clip > 0 and not 0 < statement.clip_norm_applied <= clip:
        raise RoundError(f"the update was not clipped to {clip:g} as the offer asks")


def statement_from_fields(fields: Mapping[str, object], device_id: str) -> UpdateStatement:
    """Read the worker's JSON. Raises: FormatError: a field is missing, unknown or of another type."""
    kinds: dict[str, type] = {
        "offer_sha256": str, "run_id": str, "round": int, "codec": str, "array_sha256": str,
        "array_size_bytes": int, "sample_count": int, "metrics": dict, "clip_norm_applied": float,
    }  # fmt: skip
    if set(fields) != set(kinds):
        raise FormatError(f"a statement has exactly the fields {', '.join(sorted(kinds))}")
    values: dict[str, object] = {}
    for name, kind in kinds.items():
        value = fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise FormatError(f"statement field {name} must be a {kind.__name__}")
        values[name] = value
    metrics = values["metrics"]
    if not isinstance(metrics, dict) or not all(isinstance(v, (int, float)) for v in metrics.values()):
        raise FormatError("metrics must be numbers by name")
    try:
        offer_sha256, array_sha256 = (bytes.fromhex(str(values[name])) for name in ("offer_sha256", "array_sha256"))
    except ValueError as error:
        raise FormatError("a hash is written in hexadecimal digits") from error
    return UpdateStatement(
        device_id=device_id,
        offer_sha256=offer_sha256,
        run_id=str(values["run_id"]),
        round=int(str(values["round"])),
        codec=str(values["codec"]),
        array_sha256=array_sha256,
        array_size_bytes=int(str(values["array_size_bytes"])),
        sample_count=int(str(values["sample_count"])),
        metrics={str(name): float(value) for name, value in metrics.items()},
        clip_norm_applied=float(str(values["clip_norm_applied"])),
    )


def _answer(offer: RoundOffer, digest: bytes, decision: Decision) -> RoundAnswer:
    return RoundAnswer(digest, offer.run_id, offer.round, decision.accepted, decision.reason_code, decision.rule)
