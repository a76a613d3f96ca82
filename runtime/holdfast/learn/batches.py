"""Batches of a fixed size out of a dataset: shuffled by a seed, the last one filled up with rows that don't count."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from holdfast.learn.data import Array, LocalDataset

PADDING_LABEL = -1  # what the graphs of a bundle ignore; where labels are numbers, they ignore NaN

Rows = NDArray[np.int64]


def shuffles(count: int, epochs: int, seed: int) -> Iterator[Rows]:
    """For each epoch int64[count], an order of all samples; the same for the same seed, on every machine."""
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(epochs):
        yield rng.permutation(count)


def in_batches(rows: Rows, batch: int) -> Iterator[Rows]:
    """`rows` in pieces of `batch`; the last may be shorter."""
    for start in range(0, rows.size, batch):
        yield rows[start : start + batch]


def padded(dataset: LocalDataset, rows: Rows, batch: int) -> dict[str, Array]:
    """The samples at `rows` as the inputs of one run, filled up to `batch` with ignored copies of the first.

    Copies, because zeros could divide by zero in a normalisation and turn the padded gradient into NaN.
    """
    if rows.size == batch:
        return {**{name: array[rows] for name, array in dataset.inputs.items()}, "labels": dataset.labels[rows]}
    filled = np.full(batch, rows[0], dtype=np.int64)
    filled[: rows.size] = rows
    labels = dataset.labels[filled]
    labels[rows.size :] = np.nan if labels.dtype.kind == "f" else PADDING_LABEL
    return {**{name: array[filled] for name, array in dataset.inputs.items()}, "labels": labels}
