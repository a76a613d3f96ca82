"""Before a bundle is handed out: what every device will check of it, on the author's own machine and samples."""

from __future__ import annotations

import numpy as np

from holdfast.author.reference import Samples
from holdfast.learn.data import Array, DataContract, LocalDataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.trainable import open_trainable

SEED = 0


def rehearse(container: bytes, samples: Samples) -> None:
    """Make the device's check of a trainable bundle, with labels that are drawn.

    Raises: TrainingError: a device would refuse it. DatasetError: the samples break the bundle's own contract.
    """
    opened = open_trainable(container)
    rows = np.arange(max(1, opened.training.batch - 1)) % samples.rows  # one row less, so that padding is in it
    arrays: dict[str, Array] = {spec.name: samples.inputs[spec.name][rows] for spec in opened.contract.inputs}
    arrays["y"] = _labels(opened.contract, len(rows))
    check_on_device(opened, LocalDataset.from_arrays(arrays, opened.contract))


def _labels(contract: DataContract, count: int) -> Array:
    """Labels that every loss takes: classes, or numbers in 0..1."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    if contract.target_shape is None:
        return rng.integers(0, contract.class_count, count)
    return rng.random((count, *contract.target_shape), dtype=np.float32)
