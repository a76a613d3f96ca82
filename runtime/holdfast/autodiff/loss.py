"""What a loss is to the graphs: a sum and a count, the gradient of the sum, and which samples came out right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.autodiff.writer import GraphWriter

IGNORE_INDEX = -1  # the label of a padded row: it adds nothing to the loss, its gradient and the counts


@dataclass(frozen=True, slots=True)
class LossValues:
    """Names of emitted values.

    total: float32[], the sum over labelled samples.  count: float32[], how many there are.
    gradient: float32[batch, classes], d total / d logits; only emitted when asked for, else None.
    """

    total: str
    count: str
    gradient: str | None


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name.

    `emit(writer, logits, labels, classes, with_gradient)` appends the loss; `emit_correct(writer, logits, labels)`
    appends int64[], the number of labelled samples whose prediction is right.
    """

    name: str
    emit: Callable[[GraphWriter, str, str, int, bool], LossValues]
    emit_correct: Callable[[GraphWriter, str, str], str]


def emit_mean(out: GraphWriter, values: LossValues) -> str:
    """float32[]: total / max(count, 1); 0 rather than NaN for a batch of padding only."""
    return out.node("Div", [values.total, _at_least_one(out, values.count)])


def emit_mean_gradient(out: GraphWriter, values: LossValues) -> str:
    """float32[batch, classes]: d mean / d logits."""
    if values.gradient is None:
        raise AssertionError("the loss was emitted without its gradient")
    return out.node("Div", [values.gradient, _at_least_one(out, values.count)])


def _at_least_one(out: GraphWriter, count: str) -> str:
    return out.node("Max", [count, out.scalar(1.0)])
