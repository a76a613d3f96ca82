"""From a writer full of nodes to the bytes of one graph: declared, pruned, checked in full, without the weights."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ValueInfoProto, helper, numpy_helper

from holdfast.autodiff.externalise import refer_to_weights
from holdfast.autodiff.reading import ForwardGraph
from holdfast.autodiff.scaling import factors_in_products
from holdfast.autodiff.simplify import without_redundant
from holdfast.autodiff.writer import GraphWriter, names_read
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout

IR_VERSION = 10  # older runtimes refuse files of a newer one

Output = tuple[str, int, tuple[int, ...]]  # name, element type, shape; of an input or an output


def new_writer(forward: ForwardGraph, *reserved: str) -> GraphWriter:
    """A writer that knows the names of the forward graph and of the contract."""
    values = {name for node in forward.nodes for name in (*node.input, *node.output)}
    out = GraphWriter({*values, *forward.initializers, *(data.name for data in forward.data_inputs)})
    for name in reserved:
        out.reserve(name)
    return out


def emit(
    forward: ForwardGraph, layout: FlatLayout, out: GraphWriter, inputs: Sequence[Output], outputs: Sequence[Output]
) -> bytes:
    """Close the graph, drop what changes nothing, check it in full, and put references in place of frozen parameters.

    Raises: AutodiffError: the graph is not valid ONNX; a rule and the model don't fit.
    """
    given, made = {name for name, _, _ in inputs}, [name for name, _, _ in outputs]
    learned = {*given, *(entry.name for entry in layout.entries)}
    constants = {name: value for name, value in forward.initializers.items() if name not in learned}
    known = {**constants, **out.constants}
    out.nodes = without_redundant(out.nodes, known, made)
    out.prune(made)
    out.nodes = factors_in_products(out.nodes, known, made)
    out.prune(made)
    read = {name for node in out.nodes for name in names_read(node)}
    kept = [
        numpy_helper.from_array(value, name)
        for name, value in forward.initializers.items()
        if name not in given and name in read
    ]
    graph = helper.make_graph(
        out.nodes,
        "holdfast",
        [_value(*each) for each in inputs],
        [_value(*each) for each in outputs],
        [*kept, *out.initializers()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in forward.opset_imports]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="holdfast")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AutodiffError(f"the graph that was built is not valid: {error}") from error
    refer_to_weights(model, layout)
    return model.SerializeToString(deterministic=True)


def _value(name: str, element_type: int, shape: tuple[int, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)
