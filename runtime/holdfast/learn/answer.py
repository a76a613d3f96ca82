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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.manifest import Manifest
from holdfast.clock import Clock
from holdfast.errors import RoundError, TrainingError
from holdfast.learn.checkpoint import CheckpointFile
from holdfast.learn.data import LocalDataset
from holdfast.learn.data_source import open_dataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.residuals import ResidualStore
from holdfast.learn.trainable import open_trainable
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainSettings
from holdfast.learn.transport import RoundReply, RoundTask
from holdfast.update.codecs import codec_named
from holdfast.update.feedback import encode_with_residual
from holdfast.update.layout import FlatLayout
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


@dataclass(frozen=True, slots=True)
class Terms:
    """What the agent allows for one message. A copy of the offer, plus where things lie on this device."""

    offer_sha256: str
    run_id: str
    round: int
    handler: str
    weights_sha256: str
    weights_size_bytes: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int
    max_samples: int
    codec: str
    clip_norm: float
    bundle: str
    data: str
    hold_out: float
    left_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle's trainer with the device's samples, split into those that learn and those that judge."""

    manifest: Manifest
    layout: FlatLayout
    trainer: Trainer
    learning: LocalDataset
    held_out: LocalDataset


class Answerer:
    """Turns tasks into replies. `idle_s`: how long the last terms say it is worth to wait for the next.

    Args:
        state: the device's own folder for what outlives a worker: a checkpoint, residuals. None: nothing does.
    """

    def __init__(self, agent: Agent, clock: Clock, state: Path | None = None) -> None:
        self._agent = agent
        self._clock = clock
        self._checkpoint = None if state is None else CheckpointFile(state / "training.checkpoint")
        self._residuals = None if state is None else ResidualStore(state / "residuals")
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
        if terms.handler == EVALUATE:
            return self._evaluate(terms, prepared, weights)
        return self._train(terms, prepared, weights)

    def _train(self, terms: Terms, prepared: Prepared, weights: Floats) -> RoundReply:
        samples = bounded(prepared.learning, terms)
        settings = TrainSettings(terms.epochs, terms.batch, terms.learning_rate, terms.seed, self._deadline_s(terms))
        result = prepared.trainer.train(weights, samples, settings, checkpoint=self._checkpoint)
        if result.checkpoint_problem:
            logger.warning("a training went on without checkpoints: the disk is full, or the model too large for one")
        rng = np.random.default_rng()  # from the system: nobody else may know the rounding
        data = self._encode(terms, prepared, result.delta, rng)
        metrics = {"loss_before": result.loss_before, "loss_after": result.loss_after}
        statement = self._sign(terms, data, result.sample_count, metrics)
        counts = {"num-examples": result.sample_count}
        return RoundReply({"update": np.frombuffer(data, dtype=np.uint8)}, counts, {"statement": statement})

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
        batch = prepared.manifest.training.batch if prepared.manifest.training else 1
        settings = TrainSettings(terms.epochs, batch, terms.learning_rate, terms.seed, self._deadline_s(terms))
        trained = prepared.trainer.train(weights, prepared.learning, settings)
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
            self._prepared[key] = prepare(Path(terms.bundle), Path(terms.data), terms.hold_out, self._clock)
            while len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
        return self._prepared[key]


def prepare(bundle: Path, data: Path, hold_out: float, clock: Clock) -> Prepared:
    """Load what a round needs from the container of the bundle and the samples at `data`."""
    opened = open_trainable(bundle.read_bytes(), clock=clock)  # verified before it was installed; form only here
    dataset = open_dataset(data, opened.contract)
    learning, held_out = dataset.split(hold_out, seed=0)  # a fixed seed: what judges must never have taught
    check_on_device(opened, learning)
    return Prepared(opened.manifest, opened.layout, opened.trainer, learning, held_out)


def checked_weights(task: RoundTask, terms: Terms) -> Floats:
    """The round's weights, if they are the very bytes that the offer names. Raises: RoundError."""
    array = task.arrays.get("weights")
    if array is None or array.dtype != np.float32 or array.ndim != 1:
        raise RoundError("the message holds no flat float32 weights")
    weights: Floats = np.ascontiguousarray(array, dtype="<f4")
    if weights.nbytes != terms.weights_size_bytes:
        raise RoundError(f"the weights have {weights.nbytes} bytes, the offer says {terms.weights_size_bytes}")
    if hashlib.sha256(weights.tobytes()).hexdigest() != terms.weights_sha256:
        raise RoundError("the weights are not those of the offer: their hash differs")
    return weights


def bounded(dataset: LocalDataset, terms: Terms) -> LocalDataset:
    """At most `max_samples` of the samples, drawn by the round's seed."""
    if dataset.count == 0:
        raise TrainingError("this device holds too few samples for that")
    if dataset.count <= terms.max_samples:
        return dataset
    rng = np.random.Generator(np.random.PCG64(terms.seed))
    return dataset.take(np.sort(rng.permutation(dataset.count)[: terms.max_samples]))


def weights_of_layers(task: RoundTask, layout: FlatLayout) -> Floats:
    """A stock app's layers, in order, as flat weights. Raises: RoundError: other layers than the model's."""
    shapes = [tuple(array.shape) for array in task.arrays.values()]
    if shapes != [entry.shape for entry in layout.entries]:
        raise RoundError("the app's layers are not those of this device's model")
    parts = (array.astype(np.float32, copy=False) for array in task.arrays.values())
    return layout.pack({entry.name: part for entry, part in zip(layout.entries, parts, strict=True)})


def json_bytes(fields: Mapping[str, object]) -> bytes:
    """Compact JSON that starts with a brace (which a serialised envelope never does)."""
    return json.dumps(fields, separators=(",", ":")).encode()
