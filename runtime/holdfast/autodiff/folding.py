"""Computes, while a graph is read, what depends on neither samples nor parameters: shapes, axes, index arithmetic.

Exporters leave such arithmetic in the graph (Shape, Gather, Concat, Reshape). With the batch size fixed it is constant,
and gradient rules need its values. Parameters are never folded into anything: a graph must fit every version of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MAX_ELEMENTS = 65_536  # index tables are smaller; larger constants are left to the runtime
_NOT_COMPUTABLE = (
    NotImplementedError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
)
_UNSTABLE = ("Random", "Bernoulli", "Multinomial")
Known = dict[str, NDArray[np.generic]]


def fold(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], keep: frozenset[str]) -> Known:
    """Replace computable nodes by initializers, in place.

    Args:
        shapes: the static shapes known so far; a Shape node of one of them is computable.
        keep: names of parameters.
    Returns: the values that were computed, and the initializers that are no parameters.
    """
    graph = model.graph
    known: Known = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name not in keep and _small(t)}
    before = set(known)
    kept = []
    for node in graph.node:
        found = _computed(node, known, shapes, model)
        if found is None:
            kept.append(node)
        else:
            known.update(found)
    made = [name for name in known if name not in before]
    graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in made)
    del graph.node[:]
    graph.node.extend(kept)
    return known


def _small(tensor: TensorProto) -> bool:
    return int(np.prod(tensor.dims, dtype=np.int64)) <= MAX_ELEMENTS and tensor.data_location != TensorProto.EXTERNAL


def _computed(
    node: NodeProto, known: Known, shapes: Mapping[str, tuple[int, ...]], model: onnx.ModelProto
) -> Known | None:
    """The outputs of a node, or None if it can't be computed yet or shouldn't be."""
    if node.op_type == "Shape" and node.input[0] in shapes:
        return {node.output[0]: _shape_slice(node, shapes[node.input[0]])}
    if node.op_type.startswith(_UNSTABLE) or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if node.domain not in ("", "ai.onnx") or any(name and name not in known for name in node.input):
        return None
    if any(int(np.prod(shapes[name], dtype=np.int64)) > MAX_ELEMENTS for name in node.output if name in shapes):
        return None
    if not node.input and node.op_type != "Constant":
        return None
    return _evaluated(node, known, model)


def _shape_slice(node: NodeProto, shape: tuple[int, ...]) -> NDArray[np.int64]:
    bounds = {a.name: a.i for a in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], dtype=np.int64)


def _evaluated(node: NodeProto, known: Known, model: onnx.ModelProto) -> Known | None:
    names = [name for name in node.output if name]
    inputs = [helper.make_value_info(name, _type_of(known[name])) for name in dict.fromkeys(node.input) if name]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in names]
    graph = helper.make_graph([node], "one", inputs, outputs)
    try:
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import))
        values = evaluator.run(None, {name: known[name] for name in node.input if name})
    except _NOT_COMPUTABLE:
        return None  # whatever can't be computed here stays in the graph
    arrays = [np.asarray(value) for value in values]
    if any(array.size > MAX_ELEMENTS or array.dtype == object for array in arrays):
        return None
    return dict(zip(names, arrays, strict=True))


def _type_of(array: NDArray[np.generic]) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
