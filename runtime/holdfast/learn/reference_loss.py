"""The mean loss of a model's own predictions, in float64 by numpy: what the graphs' loss is held against.

Formulas and sources are those of the graphs: Bishop 2006, eq. 4.90 and 4.108 for cross-entropy, Szegedy et al. 2016 for
label smoothing, Huber 1964. The mean is over the labels that count: as the evaluation graph gives it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.training import BINARY_CROSS_ENTROPY, L1, MSE, SOFTMAX_CROSS_ENTROPY, Recipe
from holdfast.learn.data import Array

Floats64 = NDArray[np.float64]

LEAST = 1e-38  # of a probability, before its logarithm is taken


def mean_loss(loss: Recipe, predictions: Floats64, labels: Array, *, is_logits: bool) -> float:
    """The mean loss of some samples.

    Args:
        predictions: float64[samples, ...]. labels: as in a data set of that loss.
        is_logits: whether predictions are scores before a softmax or sigmoid; of no meaning for other losses.
    Returns: the mean; NaN if no label counts.
    """
    if loss.name == SOFTMAX_CROSS_ENTROPY:
        return _of_classes(loss, predictions, labels, is_logits=is_logits)
    targets = labels.astype(np.float64)
    if loss.name == BINARY_CROSS_ENTROPY:
        return float(np.mean(_of_yes_no(predictions, targets, is_logits=is_logits)))
    difference = predictions.reshape(targets.shape) - targets
    if loss.name == MSE:
        return float(np.mean(difference**2))
    if loss.name == L1:
        return float(np.mean(np.abs(difference)))
    delta, size = loss.number("delta"), np.abs(difference)
    return float(np.mean(np.where(size <= delta, difference**2 / 2, delta * (size - delta / 2))))


def _of_classes(loss: Recipe, predictions: Floats64, labels: Array, *, is_logits: bool) -> float:
    scores = predictions if is_logits else np.log(np.maximum(predictions, LEAST))
    top = scores.max(axis=1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    counted = np.flatnonzero(np.greater_equal(labels, 0) & np.not_equal(labels, int(loss.number("ignore_index"))))
    if not counted.size:
        return float("nan")
    classes, smoothing = scores.shape[1], loss.number("label_smoothing")
    weights = np.array(loss.numbers("class_weights") or (1.0,) * classes)
    target = (1 - smoothing) * np.eye(classes)[
        labels[counted].astype(np.int64)
    ] * weights + smoothing / classes * weights
    return float(-(target * logs[counted]).sum() / counted.size)


def _of_yes_no(predictions: Floats64, targets: Floats64, *, is_logits: bool) -> Floats64:
    z = predictions.reshape(targets.shape)
    if is_logits:
        return np.asarray(np.logaddexp(0.0, z) - z * targets)
    yes, no = np.log(np.maximum(z, LEAST)), np.log(np.maximum(1 - z, LEAST))
    return np.asarray(-targets * yes - (1 - targets) * no)
