"""What a loss is to the graphs: a sum and what it is divided by, the gradient of the sum, and what came out right.

Padding: a row that carries no sample. Its label is -1 where labels are classes, and NaN where they are numbers (one
missing number among several is left out alike). Padding adds nothing to any sum or count, and its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import TensorProto

from holdfast.autodiff.reading import Head
from holdfast.autodiff.rule import as_float
from holdfast.autodiff.writer import GraphWriter

PADDING_LABEL = -1
_TINY = 1e-20  # far below any sum of class weights, and its reciprocal far below infinity


@dataclass(frozen=True, slots=True)
class LossValues:
    """Names of emitted values.

    total: float32[], the sum over everything labelled.  divisor: float32[], what the mean divides it by.
    count: float32[], how many labels there are.
    gradient: d total / d prediction, of its shape; only emitted when asked for, else None.
    """

    total: str
    divisor: str
    count: str
    gradient: str | None


@dataclass(frozen=True, slots=True)
class LossInputs:
    """prediction: float32 of `shape`, batch axis first. labels: int64[batch], or float32 of `shape`."""

    prediction: str
    labels: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by name.

    `head` says which end of the model it wants. `emit(writer, inputs, with_gradient)` appends the loss.
    `emit_correct(writer, inputs)` appends int64[]: how many labels were predicted right, 0 where that has no meaning.
    """

    name: str
    head: Head
    emit: Callable[[GraphWriter, LossInputs, bool], LossValues]
    emit_correct: Callable[[GraphWriter, LossInputs], str]

    @property
    def labels_type(self) -> int:
        return int(TensorProto.INT64 if self.head.classes else TensorProto.FLOAT)

    def labels_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the labels for predictions of `shape`."""
        return shape[:1] if self.head.classes else shape


def emit_mean(out: GraphWriter, values: LossValues) -> str:
    """float32[]: total / divisor; 0 rather than NaN for a batch of padding only."""
    return out.node("Div", [values.total, not_zero(out, values.divisor)])


def emit_mean_gradient(out: GraphWriter, values: LossValues, scale: str = "") -> str:
    """d mean / d prediction; times `scale`, float32[], if one is given."""
    if values.gradient is None:
        raise AssertionError("the loss was emitted without its gradient")
    divisor = not_zero(out, values.divisor)
    if scale:
        return out.node("Mul", [values.gradient, out.node("Div", [scale, divisor])])
    return out.node("Div", [values.gradient, divisor])


def emit_labelled_rows(out: GraphWriter, loss: Loss, inputs: LossInputs) -> str:
    """float32[batch]: 1 for a row with a label, 0 for padding."""
    if loss.head.classes:
        return as_float(out, labelled_classes(out, inputs.labels))
    known = as_float(out, known_numbers(out, inputs.labels))
    axes = list(range(1, len(inputs.shape)))
    return out.node("ReduceMax", [known, out.integers(*axes)], keepdims=0) if axes else known


def labelled_classes(out: GraphWriter, labels: str) -> str:
    """bool[batch]: whether the row is a sample."""
    return out.node("GreaterOrEqual", [labels, out.integer(0)])


def known_numbers(out: GraphWriter, labels: str) -> str:
    """bool, of the labels' shape: whether there is a number."""
    return out.node("Not", [out.node("IsNaN", [labels])])


def not_zero(out: GraphWriter, value: str) -> str:
    """The value, of 0 or more, or something tiny in the place of 0: a sum over nothing is 0 however it is divided."""
    return out.node("Max", [value, out.scalar(_TINY)])
