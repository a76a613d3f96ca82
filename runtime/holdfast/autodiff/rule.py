"""What a gradient rule is: given a node and the gradients of its outputs, emit the gradients of its inputs.

A rule works on one operator and knows nothing of the graph around it. Static shapes are at hand, so broadcasting is
undone when the graph is built, never when it runs. A rule whose gradient needs more than the operator gives (the
positions of the maxima, the gates of an LSTM) may emit the forward node its own way and save names for the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from holdfast.autodiff.lowerings import Lowerings
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

# the way out that refusals name, with the commands that lead there
OWN_STEP_GRAPH = (
    "bring a training-step graph of your own (holdfast bundle contract tells its form, pack --step-graph takes it)"
)


@dataclass(frozen=True, slots=True)
class Rows:
    """The share of each row in batch statistics, so that padding takes no part.

    weights: name of float32[1, batch], 1 / count for a labelled row and 0 for padding.  count: name of float32[].
    """

    weights: str
    count: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """One forward node as a rule sees it.

    `wanted[i]` says whether anybody needs the gradient of input i. `constants` are values known when the graph is
    built (an axis, a bound), never parameters. `saved` is what the rule's own `forward` returned.
    `rows` is given where normalisations take the statistics of the batch, `dropout` where units are dropped.
    """

    node: NodeProto
    shapes: Mapping[str, tuple[int, ...]]
    wanted: tuple[bool, ...]
    constants: Mapping[str, NDArray[np.generic]]
    saved: tuple[str, ...] = ()
    rows: Rows | None = None
    dropout: bool = False
    lowerings: Lowerings = field(default_factory=Lowerings)

    @property
    def inputs(self) -> Sequence[str]:
        return self.node.input

    @property
    def outputs(self) -> Sequence[str]:
        return self.node.output

    @property
    def label(self) -> str:
        """How messages name the node."""
        return f"{self.node.name or self.node.output[0]!r} ({self.node.op_type})"

    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def wants(self, index: int) -> bool:
        """False also for an optional input that is not there."""
        return index < len(self.wanted) and self.wanted[index]

    def input_shape(self, index: int) -> tuple[int, ...]:
        return self.shapes[self.node.input[index]]

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.shapes[self.node.output[index]]

    def integer(self, name: str, default: int) -> int:
        return next((a.i for a in self.node.attribute if a.name == name), default)

    def integers(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        return next((tuple(a.ints) for a in self.node.attribute if a.name == name), tuple(default))

    def real(self, name: str, default: float) -> float:
        return next((a.f for a in self.node.attribute if a.name == name), default)

    def text(self, name: str, default: str) -> str:
        return next((a.s.decode() for a in self.node.attribute if a.name == name), default)

    def has_attribute(self, name: str) -> bool:
        return any(a.name == name for a in self.node.attribute)

    def axis(self, default: int, rank: int | None = None) -> int:
        """The attribute `axis`, counted from the front."""
        axis = self.integer("axis", default)
        return axis if axis >= 0 else axis + (len(self.input_shape(0)) if rank is None else rank)

    def constant(self, index: int) -> NDArray[np.generic] | None:
        """The value of input i; None if it isn't there. Raises AutodiffError: it is only known at run time."""
        if not self.has(index):
            return None
        name = self.node.input[index]
        if name not in self.constants:
            raise self.refusal(f"input {name!r} is not a constant")
        return self.constants[name]

    def constant_integers(self, index: int) -> tuple[int, ...] | None:
        """The value of input i as Python numbers; None if it isn't there."""
        value = self.constant(index)
        return None if value is None else tuple(int(each) for each in value.reshape(-1))

    def way(self, part: str, *ways: str) -> str:
        """Which of several ways to write a part of the gradient: the first, unless one was measured to be faster."""
        shapes = " ".join("x".join(map(str, self.shapes[name])) for name in self.inputs if name in self.shapes)
        settings = "".join(f" {each.name}={list(each.ints)}" for each in self.node.attribute if each.ints)
        return self.lowerings.take(f"{self.node.op_type} {shapes}{settings}: {part}", ways)

    def refusal(self, why: str) -> AutodiffError:
        """The error for a form of the operator that has no gradient here."""
        return AutodiffError(
            f"no gradient for node {self.label}: {why}; make fewer parameters trainable, so that gradients stop behind "
            f"it, or {OWN_STEP_GRAPH}"
        )


# (node, writer, gradient of each output or None where nothing flows back) -> gradient of each input or None
Backward = Callable[[NodeView, GraphWriter, Sequence[str | None]], list[str | None]]
# (node, writer) -> names of values kept for the way back; emits the node's outputs under their own names
Forward = Callable[[NodeView, GraphWriter], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class GradientRule:
    """The gradient of one operator of the default domain.

    `formula` is what the coverage table shows; `source` says where it comes from, if not from the operator's own
    definition. `constant_inputs` are inputs that have no gradient by nature (a shape, a running mean): a parameter
    that is read there is never trained.
    """

    operator: str
    formula: str
    backward: Backward
    constant_inputs: tuple[int, ...] = ()
    forward: Forward | None = None


def one_output(emit: Callable[[NodeView, GraphWriter, str], Sequence[str | None]]) -> Backward:
    """A rule for operators of which only the first output carries a gradient.

    `emit(node, writer, dY)` may return fewer gradients than there are inputs; the rest have none.
    """

    def backward(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
        for name, gradient in list(zip(view.outputs, gradients, strict=True))[1:]:
            if gradient is not None:
                raise view.refusal(f"its further output {name!r} takes part in the loss")
        dy = gradients[0]
        found = [] if dy is None else list(emit(view, out, dy))[: len(view.inputs)]
        return found + [None] * (len(view.inputs) - len(found))

    return backward


def reduce_to_shape(out: GraphWriter, value: str, shape: tuple[int, ...], target: tuple[int, ...]) -> str:
    """Undo a broadcast: sum `value` (of `shape`) over the axes along which `target` was stretched.

    The adjoint of numpy-style broadcasting (ONNX Broadcasting.md) is the sum over the copies it made.
    """
    if shape == target:
        return value
    lead = len(shape) - len(target)
    padded = (1,) * lead + target
    if lead and shape[lead:] == target:
        return out.node("ReduceSum", [value, out.integers(*range(lead))], keepdims=0)
    axes = [axis for axis, (have, want) in enumerate(zip(shape, padded, strict=True)) if want == 1 and have != 1]
    if axes:
        value = out.node("ReduceSum", [value, out.integers(*axes)], keepdims=1)
    return out.node("Reshape", [value, out.integers(*target)]) if lead else value


def reduced(view: NodeView, out: GraphWriter, value: str, index: int) -> str:
    """`value`, of the output's shape, summed to the shape of input i."""
    return reduce_to_shape(out, value, view.output_shape(), view.input_shape(index))


def reshaped(out: GraphWriter, value: str, shape: tuple[int, ...], target: tuple[int, ...]) -> str:
    """`value` of `shape` in the shape `target`; the value itself if that is the same."""
    return value if shape == target else out.node("Reshape", [value, out.integers(*target)])


def zeros(out: GraphWriter, shape: tuple[int, ...]) -> str:
    """float32 zeros, made at run time so that the file stays small."""
    return out.node("ConstantOfShape", [out.integers(*shape)])


def as_float(out: GraphWriter, condition: str) -> str:
    """bool -> float32 of 0 and 1."""
    return out.node("Cast", [condition], to=int(TensorProto.FLOAT))


def kept_where(out: GraphWriter, condition: str, value: str) -> str:
    """float32 `value` where the condition holds, else 0.

    A product: the stock runtime's Where takes three to six times as long (it makes both branches before it joins them).
    """
    return out.node("Mul", [value, as_float(out, condition)])
