"""A bundle opened for learning: its graphs in a trainer, its layout, and what samples must be for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.bundle.files import ACCUMULATE_GRAPH, APPLY_GRAPH, EVALUATE_GRAPH, TRAIN_GRAPH, WEIGHTS_FILE
from holdfast.bundle.manifest import Manifest, Tensor
from holdfast.bundle.training import BINARY_CROSS_ENTROPY, Training
from holdfast.bundle.verify import UnverifiedBundle, read_bundle
from holdfast.clock import Clock
from holdfast.errors import TrainingError
from holdfast.learn.data import DataContract, InputContract
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import Accumulation, TrainerOptions
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

    @property
    def accumulation(self) -> Accumulation | None:
        """The graphs of steps over several batches; None where a step takes one."""
        return _accumulation(self.training, self.bundle.files)


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
    accumulation = _accumulation(manifest.training, files)
    trainer = Trainer(files[TRAIN_GRAPH], files[EVALUATE_GRAPH], layout, options, clock, accumulation)
    weights = layout.weights_from_bytes(files[WEIGHTS_FILE])
    return TrainableBundle(
        bundle, manifest.training, layout, trainer, data_contract(manifest.inputs, manifest.training), weights
    )


def _accumulation(training: Training, files: Mapping[str, bytes]) -> Accumulation | None:
    if training.accumulate == 1:
        return None
    return Accumulation(files[ACCUMULATE_GRAPH], files[APPLY_GRAPH], training.accumulate)


def data_contract(tensors: Sequence[Tensor], training: Training) -> DataContract:
    """What samples must be for a model with these inputs; a free axis counts as 1."""
    inputs = tuple(InputContract(t.name, t.dtype, tuple(size or 1 for size in t.shape[1:])) for t in tensors)
    loss = training.loss
    if training.classes:
        return DataContract(inputs, training.classes, ignored_label=int(loss.number("ignore_index")))
    return DataContract(inputs, 0, training.label_shape, is_yes_no=loss.name == BINARY_CROSS_ENTROPY)
