"""Reads a served model into what differentiation needs: live nodes in order, every shape, the logits.

Rules: nothing is guessed. The batch axis is fixed to a number, every other axis must be static already; functions are
inlined, and branches that are known to be taken; older operator sets are converted; a part that can't be read this way
is refused with its name.

The logits: training needs the scores before any Softmax. An output made by Softmax or LogSoftmax over its last axis is
replaced by what feeds that node (cross-entropy of the softmax of the logits is what the loss computes itself, and more
precisely), and for binary cross-entropy what feeds a Sigmoid. Identity nodes are looked through, and reshapes around a
Softmax. Integer outputs, such as a predicted label, are ignored. All float outputs must lead to the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import (
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)

from holdfast.autodiff.branches import inline_known_branches
from holdfast.autodiff.folding import fold
from holdfast.autodiff.writer import names_read
from holdfast.errors import AutodiffError

EMITTED_OPSET = 20  # the operator set the gradient rules are verified with; newer models keep theirs
OLDEST_OPSET = 7  # before it, broadcasting was an attribute; the converter is least tested there
DEFAULT_DOMAINS = ("", "ai.onnx")
# Operators without a rule of their own that the specification defines by others: written out before differentiation.
EXPANDED = (
    "Attention",
    "RotaryEmbedding",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "ThresholdedRelu",
    "CastLike",  # last: the others' definitions use it
)
# shape arithmetic may need the result of shape arithmetic; each round knows more than the last
MAX_FOLDING_ROUNDS = 8
_KEEP_SHAPE = ("GroupNormalization",)  # operators that the package has no shape inference for
_SETTINGS = {"Resize": (1, 2), "Upsample": (1,)}  # float inputs that are no weights: a region and scales
_SAME_ELEMENTS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
LOGITS = "holdfast/logits"


@dataclass(frozen=True, slots=True)
class Head:
    """Which end of a model a loss wants: the input of a final operator in `strips`, if there is one.

    `classes`: one score per class, float32[batch, classes]; else predictions of any shape, batch axis first.
    """

    strips: tuple[str, ...]
    classes: bool


CLASSIFIER = Head(("Softmax", "LogSoftmax"), classes=True)


@dataclass(frozen=True, slots=True)
class DataInput:
    """An input that carries samples: `shape` includes the batch axis; `element_type` is a TensorProto.DataType."""

    name: str
    element_type: int
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        return self.element_type == TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class ForwardGraph:
    """The part of a model that computes the logits, for one fixed batch size.

    `nodes` are in topological order and all lead to `logits`; `initializers` holds the arrays they read. `constants`
    are the values among them, and computed ones, that are no parameters.
    """

    nodes: tuple[NodeProto, ...]
    initializers: Mapping[str, NDArray[np.generic]]
    data_inputs: tuple[DataInput, ...]
    logits: str
    shapes: Mapping[str, tuple[int, ...]]
    element_types: Mapping[str, int]
    opset_imports: tuple[tuple[str, int], ...]
    constants: Mapping[str, NDArray[np.generic]]

    @property
    def batch(self) -> int:
        return self.shapes[self.logits][0]

    @property
    def class_count(self) -> int:
        """Scores per sample; 1 for a prediction without further axes."""
        return self.shapes[self.logits][1] if len(self.shapes[self.logits]) > 1 else 1


def parse_model(model_bytes: bytes) -> onnx.ModelProto:
    """Parse a self-contained ONNX model.

    Raises: AutodiffError: not ONNX, or its weights lie in other files.
    """
    try:
        model = onnx.load_model_from_string(model_bytes)
        outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        if outside:
            raise AutodiffError(f"initializer {outside[0]!r} lies in another file; load it with its weights first")
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise AutodiffError(f"not a valid ONNX model: {_first_line(error)}") from error
    if model.graph.sparse_initializer:
        raise AutodiffError("the model has sparse initializers; store them dense")
    return model


def read_forward(model: onnx.ModelProto, batch: int, head: Head = CLASSIFIER) -> ForwardGraph:
    """Fix the batch size, infer every shape, find the logits, and keep only what leads to them.

    Args:
        model: as from `parse_model`; not modified.
        batch: samples per step, >= 1.
        head: which end of the model is wanted.

    Raises: AutodiffError: naming the input, output or node that stands in the way.
    """
    if batch < 1:
        raise AutodiffError(f"batch must be 1 or more, got {batch}")
    modern = _modernise(model)
    parameters = frozenset(tensor.name for tensor in parameters_of(modern))
    _fix_batch(modern, batch)
    inferred, constants = _inferred(modern, batch, parameters)
    shapes, element_types = _known_shapes(inferred.graph)
    logits = _find_logits(inferred.graph, element_types, shapes, head)
    nodes = _live_nodes(inferred.graph.node, logits)
    if head.classes and (flat := _flat_scores(shapes.get(logits, ()))) is not None:
        nodes, logits = _with_flat_scores(nodes, logits, flat, constants)
        shapes[logits], element_types[logits] = flat, int(TensorProto.FLOAT)
    read = {name for node in nodes for name in names_read(node)}
    initializers = {t.name: array_of(t) for t in inferred.graph.initializer if t.name in read}
    initializers.update({name: value for name, value in constants.items() if name in read})
    forward = ForwardGraph(
        nodes=nodes,
        initializers=initializers,
        data_inputs=_data_inputs(inferred.graph, read),
        logits=logits,
        shapes=shapes,
        element_types=element_types,
        opset_imports=tuple((o.domain, o.version) for o in inferred.opset_import),
        constants=constants,
    )
    _check_complete(forward, batch, head)
    return forward


def parameters_of(model: onnx.ModelProto) -> list[TensorProto]:
    """The initializers that are weight-like, and so belong to the flat layout: float32, rank >= 1, not empty.

    Scalars stay inside the graph: they are almost always constants of the formula (a bound, an epsilon). So does what
    only says how an operator works: the runtime wants to see it when the model is loaded.
    """
    settings: set[str] = set()
    others: set[str] = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            (settings if index in _SETTINGS.get(node.op_type, ()) else others).add(name)
    weights = (tensor for tensor in model.graph.initializer if tensor.name not in settings - others)
    return [t for t in weights if t.data_type == TensorProto.FLOAT and t.dims and all(size > 0 for size in t.dims)]


def array_of(tensor: TensorProto) -> NDArray[np.generic]:
    """The values of an initializer. Raises: AutodiffError: its data don't fill its shape."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        shape = list(tensor.dims)
        raise AutodiffError(f"initializer {tensor.name!r} does not hold the data of shape {shape}") from error


def node_label(node: NodeProto) -> str:
    """How messages name a node: its own name, or else the value it makes."""
    return f"{node.name or node.output[0]!r} ({node.op_type})"


def _modernise(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with functions inlined and the default operator set at least EMITTED_OPSET."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    version = next((o.version for o in copy.opset_import if o.domain in DEFAULT_DOMAINS), 0)
    if version >= EMITTED_OPSET:
        return copy
    if version < OLDEST_OPSET:
        raise AutodiffError(f"operator set {version} is too old; export the model with {OLDEST_OPSET} or newer")
    names = {tensor.name for tensor in copy.graph.initializer}
    try:
        converted = version_converter.convert_version(copy, EMITTED_OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        message = f"operator set {version} can't be converted to {EMITTED_OPSET}: {_first_line(error)}"
        raise AutodiffError(f"{message}; export the model with {EMITTED_OPSET}") from error
    if not names <= {tensor.name for tensor in converted.graph.initializer}:
        raise AutodiffError(f"converting to operator set {EMITTED_OPSET} lost a parameter; export the model with it")
    return converted


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the operators of EXPANDED written out, one kind after the other.

    A definition may depend on the types of its inputs, and use another operator of the list.
    """
    for name in EXPANDED:
        if not any(node.op_type == name and node.domain in DEFAULT_DOMAINS for node in model.graph.node):
            continue
        typed = shape_inference.infer_shapes(model, data_prop=True)
        typed.graph.value_info.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in typed.graph.initializer
        )
        model = inliner.inline_selected_functions(
            typed, [(domain, name) for domain in DEFAULT_DOMAINS], exclude=False, inline_schema_functions=True
        )
        del model.graph.value_info[:]
    return model


def _inferred(
    model: onnx.ModelProto, batch: int, parameters: frozenset[str]
) -> tuple[onnx.ModelProto, dict[str, NDArray[np.generic]]]:
    """The model with every shape it can be given and its arithmetic of constants done, and the constants."""
    known: dict[str, NDArray[np.generic]] = {}
    for _ in range(MAX_FOLDING_ROUNDS):
        # a branch that is never taken may not fit; while there are branches, what is wrong shows as a missing shape
        strict = not any(node.op_type == "If" for node in model.graph.node)
        try:
            model = shape_inference.infer_shapes(_expanded(model), check_type=True, strict_mode=strict, data_prop=True)
        except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
            raise AutodiffError(f"shapes for batch {batch} can't be inferred: {_first_line(error)}") from error
        shapes, _types = _known_shapes(model.graph)
        left = len(model.graph.node)
        known = fold(model, shapes, parameters)
        _forget_unknown(model.graph)
        inlined = inline_known_branches(model.graph, known)
        added = _add_shapes(model.graph, shapes)
        if len(model.graph.node) == left and not inlined and not added:
            break
    return model, known


def _forget_unknown(graph: onnx.GraphProto) -> None:
    """Drop, in place, what an earlier round could not tell; inference would keep it against what is known now."""
    folded = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in folded and _static_shape(value) is not None]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _add_shapes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Declare shapes that the package's inference leaves out, in place; whether there were any."""
    added = False
    for node in graph.node:
        if node.op_type in _KEEP_SHAPE and node.output[0] not in shapes and node.input[0] in shapes:
            made = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shapes[node.input[0]])
            for value in [each for each in graph.value_info if each.name == made.name]:
                graph.value_info.remove(value)
            graph.value_info.append(made)
            added = True
    return added


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Write the batch size into the inputs and forget shapes that were written for another one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        if not value.type.HasField("tensor_type") or not dims:
            raise AutodiffError(f"input {value.name!r} is not a tensor whose first axis is the batch")
        if dims[0].HasField("dim_value") and dims[0].dim_value != batch:
            raise AutodiffError(
                f"input {value.name!r} has the fixed batch size {dims[0].dim_value}, asked for {batch}; "
                "export the model with a dynamic first axis"
            )
        dims[0].Clear()
        dims[0].dim_value = batch
        for axis, dim in enumerate(dims):
            if not dim.HasField("dim_value") or dim.dim_value < 1:
                raise AutodiffError(f"axis {axis} of input {value.name!r} is dynamic; only the first axis may be")
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _known_shapes(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _static_shape(value)
        types[value.name] = value.type.tensor_type.elem_type
        if shape is not None:
            shapes[value.name] = shape
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        types[tensor.name] = tensor.data_type
    return shapes, types


def _static_shape(value: ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _find_logits(
    graph: onnx.GraphProto, element_types: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], head: Head
) -> str:
    producers = {name: node for node in graph.node for name in node.output}
    floats = [v.name for v in graph.output if element_types.get(v.name) == TensorProto.FLOAT]
    candidates = sorted({_before_final(name, producers, shapes, head) for name in floats})
    if len(candidates) != 1:
        found = ", ".join(repr(name) for name in candidates) or "none"
        raise AutodiffError(f"training needs one float32 output, the logits; found {found}: keep that output alone")
    return candidates[0]


def _before_final(
    name: str, producers: Mapping[str, NodeProto], shapes: Mapping[str, tuple[int, ...]], head: Head
) -> str:
    """What feeds the final operators that the loss brings itself; the output itself if there are none."""
    found, seen = name, name
    while (node := producers.get(seen)) is not None:
        if node.op_type in head.strips:
            if node.op_type != "Sigmoid" and not _over_classes(node, shapes.get(seen, ())):
                break
            found = node.input[0]
        elif node.op_type == "Identity" and found == seen:
            found = node.input[0]
        elif node.op_type != "Identity" and node.op_type not in _SAME_ELEMENTS:
            break
        seen = node.input[0]
    return found


def _over_classes(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a Softmax runs over the classes: over the only axis, besides the batch, that is longer than 1."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1) % max(len(shape), 1)
    return len(shape) > 1 and axis >= 1 and shape[axis] == math.prod(shape[1:])


def _flat_scores(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[batch, classes] for scores that carry axes of one besides (a map of 1x1); None if nothing is to be done."""
    if len(shape) <= 2 or max(shape[1:]) != math.prod(shape[1:]):
        return None
    return shape[0], math.prod(shape[1:])


def _with_flat_scores(
    nodes: tuple[NodeProto, ...], logits: str, shape: tuple[int, int], constants: dict[str, NDArray[np.generic]]
) -> tuple[tuple[NodeProto, ...], str]:
    constants[f"{LOGITS}/shape"] = np.array(shape, dtype=np.int64)
    return (*nodes, helper.make_node("Reshape", [logits, f"{LOGITS}/shape"], [LOGITS], name=LOGITS)), LOGITS


def _live_nodes(nodes: Sequence[NodeProto], wanted: str) -> tuple[NodeProto, ...]:
    needed = {wanted}
    live = []
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            continue
        live.append(node)
        needed.update(names_read(node))
    return tuple(reversed(live))


def _data_inputs(graph: onnx.GraphProto, read: Collection[str]) -> tuple[DataInput, ...]:
    constants = {tensor.name for tensor in graph.initializer}
    return tuple(
        DataInput(v.name, v.type.tensor_type.elem_type, _static_shape(v) or ())
        for v in graph.input
        if v.name not in constants and v.name in read
    )


def _check_complete(forward: ForwardGraph, batch: int, head: Head) -> None:
    for node in forward.nodes:
        missing = [name for name in node.output if name and name not in forward.shapes]
        if missing:
            raise AutodiffError(f"the shape of {missing[0]!r}, made by node {node_label(node)}, is not static")
    shape = forward.shapes.get(forward.logits, ())
    if not shape or shape[0] != batch:
        raise AutodiffError(f"the output {forward.logits!r} has shape {list(shape)}; its first axis must be the batch")
    if head.classes and (len(shape) != 2 or shape[1] < 2):
        raise AutodiffError(
            f"the logits {forward.logits!r} have shape {list(shape)}; expected [{batch}, classes], 2 classes or more"
        )
    if not forward.data_inputs:
        raise AutodiffError("no input of the model leads to its logits")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
