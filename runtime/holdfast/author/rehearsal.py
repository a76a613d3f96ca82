"""Before a bundle is handed out: what every device will check of it, on the author's own machine and samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from holdfast.author.reference import Samples
from holdfast.bundle.manifest import Tensor
from holdfast.bundle.training import Training
from holdfast.learn.data import LABELS_NAME, Array, DataContract, LocalDataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.trainable import data_contract, open_trainable

SEED = 0


def refuse_bad_samples(samples: Samples, inputs: Sequence[Tensor], training: Training) -> None:
    """Hold the reference data of a model that learns against what its devices' samples must be, row by row.

    Raises: DatasetError: naming the array and the first row, as a device would.
    """
    contract = data_contract(inputs, training)
    labels: Array | None = samples.labels
    if labels is None or contract.target_shape is not None:
        labels = _labels(contract, samples.rows)
    LocalDataset.from_arrays({**samples.inputs, LABELS_NAME: labels}, contract)


def rehearse(container: bytes, samples: Samples) -> None:
    """Make the device's check of a trainable bundle, with labels that are drawn.

    Raises: TrainingError: a device would refuse it. DatasetError: the samples break the bundle's own contract.
    """
    opened = open_trainable(container)
    rows = np.arange(max(1, opened.training.batch - 1)) % samples.rows  # one row less, so that padding is in it
    arrays: dict[str, Array] = {spec.name: samples.inputs[spec.name][rows] for spec in opened.contract.inputs}
    arrays[LABELS_NAME] = _labels(opened.contract, len(rows))
    check_on_device(opened, LocalDataset.from_arrays(arrays, opened.contract))


def _labels(contract: DataContract, count: int) -> Array:
    """Labels that every loss takes: classes, or numbers in 0..1."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    if contract.target_shape is None:
        return rng.integers(0, contract.class_count, count)
    return rng.random((count, *contract.target_shape), dtype=np.float32)
