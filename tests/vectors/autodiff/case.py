"""What a case of the gradient rules is: a tiny classifier around one operator, with everything in it differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, helper, shape_inference
from tests.fakes.models import classifier

node = helper.make_node
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A classifier with the input `x` that ends in `logits` [batch, classes].

    `labels` may hold -1. `tied` names parameters that several nodes read on purpose. `fixed` are constants that are no
    parameters: int64, bool, or float32 scalars. `positive` keeps every value away from 0 and below.
    """

    name: str
    nodes: tuple[NodeProto, ...]
    weights: Mapping[str, tuple[int, ...]]
    x: tuple[int, ...]
    labels: tuple[int, ...]
    tied: tuple[str, ...] = ()
    fixed: Mapping[str, object] = field(default_factory=dict)
    positive: bool = False
    opset: int = 20

    def model(self) -> bytes:
        weights: dict[str, np.ndarray] = dict(self.weight_values())
        weights.update({name: constant(value) for name, value in self.fixed.items()})
        return classifier(self.nodes, weights, inputs={"x": ("batch", *self.x[1:])}, opset=self.opset)

    def weight_values(self) -> dict[str, np.ndarray]:
        rng = self._rng("weights")
        drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in self.weights.items()}
        if "mix" in drawn:
            drawn["mix"] /= np.float32(np.sqrt(drawn["mix"].shape[0]))
        return {name: self._kept(name, values) for name, values in drawn.items()}

    def input_values(self) -> np.ndarray:
        return self._kept("x", self._rng("x").standard_normal(self.x).astype(np.float32))

    def _kept(self, name: str, values: np.ndarray) -> np.ndarray:
        return np.abs(values) + np.float32(0.5) if (self.positive and name != "mix") or name == "var" else values

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng(list(f"{self.name}/{what}".encode()))


def constant(value: object) -> np.ndarray:
    """int64, bool or a float32 scalar, as the value is."""
    array = np.asarray(value)
    return array.astype({"i": np.int64, "b": np.bool_, "f": np.float32}[array.dtype.kind])


def mixed(
    name: str,
    nodes: Sequence[NodeProto],
    weights: Mapping[str, tuple[int, ...]],
    x: tuple[int, ...],
    *,
    fixed: Mapping[str, object] | None = None,
    positive: bool = False,
    opset: int = 20,
    tied: tuple[str, ...] = (),
    width: int = 0,
) -> Case:
    """A case around nodes that make `y` with the batch axis first; a matrix in between makes every gradient count.

    (Adding one number to all logits of a row changes nothing, so what is stretched straight into them has gradient 0,
    and relative errors mean nothing there.)
    """
    fixed = fixed or {}
    width = width or _width(nodes, weights, x, fixed, opset)
    return Case(
        name,
        (*nodes, node("Flatten", ["y"], ["flat"], axis=1), node("MatMul", ["flat", "mix"], ["logits"])),
        {**weights, "mix": (width, CLASSES)},
        x,
        tuple(row % CLASSES for row in range(x[0])),
        tied,
        fixed,
        positive,
        opset,
    )


def _width(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, tuple[int, ...]],
    x: tuple[int, ...],
    fixed: Mapping[str, object],
    opset: int,
) -> int:
    """How many values of `y` belong to one row."""
    constants = {key: np.zeros(shape, np.float32) for key, shape in weights.items()}
    constants.update({key: constant(value) for key, value in fixed.items()})
    bare = onnx.load_model_from_string(classifier(list(nodes), constants, inputs={"x": x}, outputs=["y"], opset=opset))
    bare.graph.output[0].type.tensor_type.ClearField("shape")
    dims = shape_inference.infer_shapes(bare, data_prop=True).graph.output[0].type.tensor_type.shape.dim
    assert dims[0].dim_value == x[0]
    return int(np.prod([dim.dim_value for dim in dims[1:]], dtype=np.int64))
