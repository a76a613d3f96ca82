"""What a round's message becomes before anything learns: terms, checked weights, a bundle opened with its samples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.manifest import Manifest
from holdfast.bundle.training import LOCAL, Training
from holdfast.clock import Clock
from holdfast.errors import RoundError, TrainingError
from holdfast.learn.checked import CheckedBundles
from holdfast.learn.data import LocalDataset
from holdfast.learn.data_source import open_dataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.trainable import open_trainable
from holdfast.learn.trainer import Trainer
from holdfast.learn.transport import RoundTask
from holdfast.update.layout import FlatLayout

Floats = NDArray[np.float32]


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
    proximal_mu: float = 0.0
    gradient_clip: float = 0.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle's trainer with the device's samples, split into those that learn and those that judge."""

    manifest: Manifest
    layout: FlatLayout
    trainer: Trainer
    learning: LocalDataset
    held_out: LocalDataset

    @property
    def training(self) -> Training:
        """Raises: RoundError: the bundle is only served; it does not get this far."""
        if self.manifest.training is None:
            raise RoundError("the bundle has no training graphs")
        return self.manifest.training

    @property
    def local_names(self) -> tuple[str, ...]:
        """The statistics that stay on this device."""
        return self.training.statistics if self.training.batch_norm == LOCAL else ()


def prepare(terms: Terms, clock: Clock, checked: CheckedBundles | None = None) -> Prepared:
    """Load what a round needs from the container of the bundle and the samples.

    Args:
        checked: the bundles that need no check on this machine any more; None: every one is checked.
    """
    bundle, data, hold_out = Path(terms.bundle), Path(terms.data), terms.hold_out
    opened = open_trainable(bundle.read_bytes(), clock=clock)  # verified before it was installed; form only here
    dataset = open_dataset(data, opened.contract)
    learning, held_out = dataset.split(hold_out, seed=0)  # a fixed seed: what judges must never have taught
    if checked is None or not checked.has(opened.bundle.digest):
        check_on_device(opened, learning)
        if checked is not None:
            checked.add(opened.bundle.digest)
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
