"""Answers one message of a round: ask the agent, check the weights, learn or evaluate, clip, encode, have it signed.

Weights are used only if they are the bytes that the signed offer names. What goes back is the encoded update, counts
and losses, and a statement that the agent signed; an error goes back as a code and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.clock import Clock
from holdfast.errors import RoundError
from holdfast.learn.checked import CheckedBundles
from holdfast.learn.checkpoint import CheckpointFile
from holdfast.learn.local_statistics import LocalStatistics
from holdfast.learn.prepared import Prepared, Terms, bounded, checked_weights, prepare, weights_of_layers
from holdfast.learn.residuals import ResidualStore
from holdfast.learn.training import ShouldPause, TrainResult, TrainSettings
from holdfast.learn.transport import RoundReply, RoundTask
from holdfast.update.codecs import codec_named
from holdfast.update.feedback import encode_with_residual
from holdfast.update.payload import make_payload

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

TRAIN, EVALUATE = "train", "evaluate"
UPLOAD_SHARE = 0.2  # of the time that is left, kept for sending the update
MAX_PREPARED = 2  # bundles with their data kept loaded: a run uses one
# a stock Flower app says nothing of these, or by these names in its config record
UNSIGNED_TERMS: Mapping[str, float] = {"epochs": 1, "batch": 1, "learning_rate": 0.1}
UNSIGNED_NAMES = {
    "local-epochs": "epochs",
    "batch-size": "batch",
    "lr": "learning_rate",
    "learning-rate": "learning_rate",
}


class Agent(Protocol):
    """What the worker asks of its agent."""

    def ask(self, path: str, body: bytes) -> dict[str, object]:
        """POST; a JSON object. Raises: RoundError: it said no."""

    def sign(self, fields: dict[str, object]) -> bytes:
        """The signed statement. Raises: RoundError: it does not sign that."""


class Answerer:
    """Turns tasks into replies. `idle_s`: how long the last terms say it is worth to wait for the next.

    Args:
        state: the device's own folder for what outlives a worker: a checkpoint, residuals, local statistics.
            None: nothing does.
        should_pause: whether serving needs the machine; None: nobody ever asks for a pause.
    """

    def __init__(
        self, agent: Agent, clock: Clock, state: Path | None = None, should_pause: ShouldPause | None = None
    ) -> None:
        self._agent = agent
        self._should_pause = should_pause
        self._clock = clock
        self._checkpoint = None if state is None else CheckpointFile(state / "training.checkpoint")
        self._residuals = None if state is None else ResidualStore(state / "residuals")
        self._statistics = None if state is None else LocalStatistics(state / "statistics")
        self._checked = None if state is None else CheckedBundles(state / "checked.json")
        self._prepared: OrderedDict[tuple[str, str, float], Prepared] = OrderedDict()
        self.idle_s = 0.0

    def answer(self, task: RoundTask) -> RoundReply:
        """Raises: HoldfastError: refused, or it cannot be done; its `code` is all that may leave."""
        offer = task.config.get("offer")
        if not isinstance(offer, bytes):
            return self._answer_unsigned(task)
        terms = self._terms(self._agent.ask("/authorise", offer))
        if task.handler.split(".")[0] != terms.handler:
            raise RoundError("the message asks for another handler than its offer")
        weights = checked_weights(task, terms)
        prepared = self._prepare(terms)
        weights = self._with_own(terms, prepared, weights)
        if terms.handler == EVALUATE:
            return self._evaluate(terms, prepared, weights)
        return self._train(terms, prepared, weights)

    def _train(self, terms: Terms, prepared: Prepared, weights: Floats) -> RoundReply:
        samples = bounded(prepared.learning, terms)
        settings = self._settings(terms, terms.batch, terms.proximal_mu, terms.gradient_clip)
        result = prepared.trainer.train(
            weights, samples, settings, should_pause=self._should_pause, checkpoint=self._checkpoint
        )
        if result.checkpoint_problem:
            logger.warning("a training went on without checkpoints: the disk is full, or the model too large for one")
        rng = np.random.default_rng()  # from the system: nobody else may know the rounding
        data = self._encode(terms, prepared, result.delta, rng)
        self._keep_own(terms, prepared, weights, result)
        metrics = {"loss_before": result.loss_before, "loss_after": result.loss_after}
        statement = self._sign(terms, data, result.sample_count, metrics)
        counts = {"num-examples": result.sample_count}
        return RoundReply({"update": np.frombuffer(data, dtype=np.uint8)}, counts, {"statement": statement})

    def _settings(self, terms: Terms, batch: int, proximal_mu: float, gradient_clip: float) -> TrainSettings:
        return TrainSettings(
            terms.epochs,
            batch,
            terms.learning_rate,
            terms.seed,
            deadline_monotonic_s=self._deadline_s(terms),
            proximal_mu=proximal_mu,
            gradient_clip=gradient_clip,
        )

    def _with_own(self, terms: Terms, prepared: Prepared, weights: Floats) -> Floats:
        """The round's weights with the statistics that stay on this device, where there are such."""
        names = prepared.local_names
        if self._statistics is None or not names:
            return weights
        return self._statistics.before(prepared.manifest.name, prepared.layout, names, terms.offer_sha256, weights)

    def _keep_own(self, terms: Terms, prepared: Prepared, weights: Floats, result: TrainResult) -> None:
        names = prepared.local_names
        if self._statistics is not None and names:
            place = (prepared.manifest.name, prepared.layout, names, terms.offer_sha256)
            before = prepared.layout.unpack(weights)
            self._statistics.keep(*place, before=before, after={**before, **result.local_state})

    def _encode(self, terms: Terms, prepared: Prepared, delta: Floats, rng: np.random.Generator) -> bytes:
        """The clipped, encoded update; what its codec leaves out is on the disk when this returns."""
        codec = codec_named(terms.codec)
        if codec.keeps_residual:
            if self._residuals is None:
                raise RoundError(f"codec {codec.name!r} needs a place for what it leaves out, and there is none")
            place = (prepared.manifest.name, prepared.layout, terms.offer_sha256)
            before = self._residuals.before(*place)
            split = encode_with_residual(delta, before, codec=codec, clip=terms.clip_norm, rng=rng)
            self._residuals.keep(*place, before=before, after=split.residual)
            return split.data
        if terms.clip_norm > 0:
            return make_payload(delta, codec=codec.name, clip=terms.clip_norm, rng=rng).data
        return codec.encode(delta, rng)

    def _evaluate(self, terms: Terms, prepared: Prepared, weights: Floats) -> RoundReply:
        samples = bounded(prepared.held_out, terms)
        result = prepared.trainer.evaluate(weights, samples)
        metrics = {"loss": result.loss, "count": float(result.count)}
        if result.correct is not None:
            metrics["correct"] = float(result.correct)
        statement = self._sign(terms, b"", samples.count, metrics)
        return RoundReply({}, {"num-examples": samples.count}, {"statement": statement})

    def _sign(self, terms: Terms, data: bytes, sample_count: int, metrics: dict[str, float]) -> bytes:
        return self._agent.sign(
            {
                "offer_sha256": terms.offer_sha256,
                "run_id": terms.run_id,
                "round": terms.round,
                "codec": terms.codec if data else "",
                "array_sha256": hashlib.sha256(data).hexdigest() if data else "",
                "array_size_bytes": len(data),
                "sample_count": sample_count,
                "metrics": metrics,
                "clip_norm_applied": float(terms.clip_norm) if data else 0.0,
            }
        )

    def _answer_unsigned(self, task: RoundTask) -> RoundReply:
        """A stock Flower app: layers in, layers out, if the site's policy takes runs that nobody signed."""
        packed = b"".join(np.ascontiguousarray(array, dtype="<f4").tobytes() for array in task.arrays.values())
        wish = dict(UNSIGNED_TERMS) | {
            UNSIGNED_NAMES[name]: value
            for name, value in task.config.items()
            if name in UNSIGNED_NAMES and isinstance(value, (int, float))
        }
        request = {
            **{"run_id": task.run_id, "handler": task.handler.split(".")[0]},
            **{"weights_sha256": hashlib.sha256(packed).hexdigest(), "weights_size_bytes": len(packed)},
            **{
                "epochs": int(wish["epochs"]),
                "batch": int(wish["batch"]),
                "learning_rate": float(wish["learning_rate"]),
            },
        }
        terms = self._terms(self._agent.ask("/authorise", json_bytes(request)))
        prepared = self._prepare(terms)
        weights = weights_of_layers(task, prepared.layout)
        if terms.handler == EVALUATE:
            result = prepared.trainer.evaluate(weights, prepared.held_out)
            figures = {"num-examples": prepared.held_out.count, "loss": result.loss}
            right = {} if result.accuracy is None else {"accuracy": result.accuracy}
            return RoundReply({}, {**figures, **right})
        training = prepared.training
        settings = self._settings(
            terms, training.batch, training.proximal_mu or 0.0, training.gradient_clip or 0.0
        )  # a stock app cannot say more than epochs, batch and rate: the author's numbers hold
        trained = prepared.trainer.train(weights, prepared.learning, settings, should_pause=self._should_pause)
        layers = prepared.layout.unpack(prepared.layout.add_delta(weights, trained.delta))
        replied = dict(zip(task.arrays, (layers[entry.name] for entry in prepared.layout.entries), strict=True))
        return RoundReply(replied, {"num-examples": trained.sample_count, "train_loss": trained.loss_after})

    def _terms(self, fields: Mapping[str, object]) -> Terms:
        terms = Terms(**fields)  # type: ignore[arg-type]  # the agent's own answer, field by field
        self.idle_s = terms.idle_s
        return terms

    def _deadline_s(self, terms: Terms) -> float:
        return self._clock.monotonic_s() + terms.left_s * (1 - UPLOAD_SHARE)

    def _prepare(self, terms: Terms) -> Prepared:
        key = (terms.bundle, terms.data, terms.hold_out)
        if key not in self._prepared:
            self._prepared[key] = prepare(terms, self._clock, self._checked)
            while len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
        return self._prepared[key]


def json_bytes(fields: Mapping[str, object]) -> bytes:
    """Compact JSON that starts with a brace (which a serialised envelope never does)."""
    return json.dumps(fields, separators=(",", ":")).encode()
