"""Train a first version of a classifier at the author's desk, with the same step graph that devices will run.

Why here: what trains on a device should be what trained at the desk. This is the plain loop; whoever has PyTorch or
scikit-learn trains there and exports ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import join_weights, split_weights
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainSettings


@dataclass(frozen=True, slots=True)
class FitSettings:
    """epochs over the samples, samples per step, learning rate of plain SGD, and the seed of the shuffle."""

    epochs: int
    batch: int
    learning_rate: float
    seed: int


def fit(
    model: bytes, images: NDArray[np.float32], labels: NDArray[np.int64], settings: FitSettings
) -> tuple[bytes, float]:
    """Train every parameter of a one-input classifier.

    Args:
        model: self-contained ONNX; its input is float32[batch, ...].
        images: float32[samples, ...], not modified. labels: int64[samples], from 0.

    Returns: the model with the trained weights, and its accuracy on the same samples, in 0..1.

    Raises: AutodiffError: an operator has no gradient rule. TrainingError, DatasetError: as of `Trainer`.
    """
    graphs = build_graphs(model, batch=settings.batch)
    split = split_weights(model, layout=graphs.layout)
    spec = InputContract(graphs.data_inputs[0].name, "float32", images.shape[1:])
    arrays: dict[str, NDArray[np.generic]] = {spec.name: images, "y": labels}
    dataset = LocalDataset.from_arrays(arrays, DataContract((spec,), graphs.class_count))
    trainer = Trainer(graphs.train, graphs.evaluate, graphs.layout)
    start = graphs.layout.weights_from_bytes(split.weights)
    steps = TrainSettings(settings.epochs, settings.batch, settings.learning_rate, settings.seed)
    trained = graphs.layout.add_delta(start, trainer.train(start, dataset, steps).delta)
    judged = trainer.evaluate(trained, dataset)
    return join_weights(split.skeleton, trained.tobytes(), graphs.layout), judged.accuracy or 0.0
