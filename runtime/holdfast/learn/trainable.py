"""A bundle opened for learning: its graphs in a trainer, its layout, and what samples must be for it."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.bundle.files import EVALUATE_GRAPH, TRAIN_GRAPH, WEIGHTS_FILE
from holdfast.bundle.manifest import Manifest
from holdfast.bundle.training import BINARY_CROSS_ENTROPY, Training
from holdfast.bundle.verify import UnverifiedBundle, read_bundle
from holdfast.clock import Clock
from holdfast.errors import TrainingError
from holdfast.learn.data import DataContract, InputContract
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainerOptions
from holdfast.update.layout import FlatLayout, Floats, LayoutEntry


@dataclass(frozen=True, slots=True)
class TrainableBundle:
    """`weights` are the bundle's: float32[layout.element_count], read-only. Its form was checked, not who signed it."""

    bundle: UnverifiedBundle
    training: Training
    layout: FlatLayout
    trainer: Trainer
    contract: DataContract
    weights: Floats

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def train_graph(self) -> bytes:
        return self.bundle.files[TRAIN_GRAPH]


def open_trainable(
    container: bytes, options: TrainerOptions | None = None, clock: Clock | None = None
) -> TrainableBundle:
    """Open a container.

    Raises: BundleError: a file is not what the manifest says. TrainingError: the model is only served.
    """
    bundle = read_bundle(container)
    manifest, files = bundle.manifest, bundle.files
    if manifest.training is None or TRAIN_GRAPH not in files:
        raise TrainingError(
            f"bundle {manifest.name} {manifest.version} has no training graphs; it was packed to be served"
        )
    layout = FlatLayout(
        tuple(LayoutEntry(p.name, p.shape, p.dtype, p.offset_bytes, p.trainable) for p in manifest.parameters)
    )
    trainer = Trainer(files[TRAIN_GRAPH], files[EVALUATE_GRAPH], layout, options, clock)
    weights = layout.weights_from_bytes(files[WEIGHTS_FILE])
    return TrainableBundle(
        bundle, manifest.training, layout, trainer, data_contract(manifest, manifest.training), weights
    )


def data_contract(manifest: Manifest, training: Training) -> DataContract:
    """What samples must be for this model; a free axis of an input counts as 1."""
    inputs = tuple(InputContract(t.name, t.dtype, tuple(size or 1 for size in t.shape[1:])) for t in manifest.inputs)
    loss = training.loss
    if training.classes:
        return DataContract(inputs, training.classes, ignored_label=int(loss.number("ignore_index")))
    return DataContract(inputs, 0, training.label_shape, is_yes_no=loss.name == BINARY_CROSS_ENTROPY)
