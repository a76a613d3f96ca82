"""What a gradient rule is: given a node and the gradients of its outputs, emit the gradients of its inputs.

A rule works on one operator and knows nothing of the graph around it. Static shapes are at hand, so broadcasting is
undone when the graph is built, never when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from holdfast.autodiff.writer import GraphWriter


@dataclass(frozen=True, slots=True)
class NodeView:
    """One forward node as a rule sees it. `wanted[i]` says whether anybody needs the gradient of input i."""

    node: NodeProto
    shapes: Mapping[str, tuple[int, ...]]
    wanted: tuple[bool, ...]

    @property
    def inputs(self) -> Sequence[str]:
        return self.node.input

    @property
    def outputs(self) -> Sequence[str]:
        return self.node.output

    def wants(self, index: int) -> bool:
        """False also for an optional input that is not there."""
        return index < len(self.wanted) and self.wanted[index]

    def input_shape(self, index: int) -> tuple[int, ...]:
        return self.shapes[self.node.input[index]]

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.shapes[self.node.output[index]]

    def integer(self, name: str, default: int) -> int:
        return next((a.i for a in self.node.attribute if a.name == name), default)

    def real(self, name: str, default: float) -> float:
        return next((a.f for a in self.node.attribute if a.name == name), default)


# (node, writer, gradient of each output or None where nothing flows back) -> gradient of each input or None
Backward = Callable[[NodeView, GraphWriter, Sequence[str | None]], list[str | None]]


@dataclass(frozen=True, slots=True)
class GradientRule:
    """The gradient of one operator of the default domain.

    `formula` is what the coverage table shows. `constant_inputs` are inputs that have no gradient by nature (a shape,
    a running mean): a parameter that is read there is never trained.
    """

    operator: str
    formula: str
    backward: Backward
    constant_inputs: tuple[int, ...] = ()


def reduce_to_shape(out: GraphWriter, value: str, shape: tuple[int, ...], target: tuple[int, ...]) -> str:
    """Undo a broadcast: sum `value` (of `shape`) over the axes along which `target` was stretched.

    The adjoint of numpy-style broadcasting (ONNX Broadcasting.md) is the sum over the copies it made.
    """
    if shape == target:
        return value
    lead = len(shape) - len(target)
    padded = (1,) * lead + target
    axes = [axis for axis, (have, want) in enumerate(zip(shape, padded, strict=True)) if want == 1 and have != 1]
    if axes:
        value = out.node("ReduceSum", [value, out.integers(*axes)], keepdims=1)
    return out.node("Reshape", [value, out.integers(*target)]) if lead else value


def as_float(out: GraphWriter, condition: str) -> str:
    """bool -> float32 of 0 and 1."""
    return out.node("Cast", [condition], to=int(TensorProto.FLOAT))
