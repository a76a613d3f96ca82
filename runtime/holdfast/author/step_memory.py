"""How much memory a training step takes, estimated from its graph before any device runs it.

The nodes are walked in order, as the runtime runs them: a value is held from the node that makes it to the last one
that reads it (liveness; Aho et al. 2006, section 9.2.5); parameters, state, samples and the weights that training
started from are held all the while, the new parameters to the end. A view holds nothing of its own. On top comes what
the runtime keeps per session and per node.

How near that is: within a factor of ACCURACY of the resident memory of processes that train a perceptron, a
convolutional net, a transformer and a MobileNet (0.79 to 1.15 of it when the constants were chosen, onnxruntime 1.31 on
Linux). A slow test holds it to that. Not counted: Python, numpy and the runtime themselves, about 50 MiB, and the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import GraphProto, TensorProto, helper, shape_inference

# These give the same bytes another shape: the runtime runs them without a copy.
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
# These write over an input that nobody reads after them, or are joined with the node before them.
IN_PLACE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Sum",
        "Neg",
        "Sqrt",
        "Exp",
        "Log",
        "Where",
        "Clip",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Gelu",
    ]
    + ["Sigmoid", "Tanh", "Erf", "HardSwish", "HardSigmoid", "Softplus", "Softmax", "BatchNormalization", "Cast"]
)
# What the runtime holds per session, and per node for kernel, names, shapes and plans; measured with 1.31.
SESSION_BYTES, NODE_BYTES = 2 * 2**20, 12_000
ACCURACY = 1.5  # the factor within which the estimate is promised
FRAGMENTATION = 1.25  # gaps between values of different size


def peak_bytes(graph_bytes: bytes, weights_bytes: int) -> int:
    """Bytes that a process needs for a step beyond the runtime itself.

    Args:
        graph_bytes: a training step as `build_graphs` makes it.
        weights_bytes: of the flat weights that the process starts from and keeps.
    """
    model = shape_inference.infer_shapes(onnx.load_model_from_string(graph_bytes), data_prop=True)
    sizes = _sizes(model.graph)
    held = sum(sizes.get(value.name, 0) for value in model.graph.input)
    made = int(FRAGMENTATION * _most_alive(model.graph, sizes))
    return SESSION_BYTES + NODE_BYTES * len(model.graph.node) + weights_bytes + held + made


def _most_alive(graph: GraphProto, sizes: Mapping[str, int]) -> int:
    """The most bytes of made values that are alive at once. Outputs stay to the end."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    whole: dict[str, str] = {}  # of a view: the value that holds the bytes
    for node in graph.node:
        if node.op_type in VIEWS:
            whole[node.output[0]] = whole.get(node.input[0], node.input[0])
    read = [{whole.get(name, name) for name in node.input if name} - given for node in graph.node]
    readers = Counter(name for names in read for name in names)
    readers.update(whole.get(value.name, value.name) for value in graph.output)
    alive = most = 0
    for node, names in zip(graph.node, read, strict=True):
        readers.subtract(names)
        made = sum(sizes.get(name, 0) for name in node.output if name not in whole)
        freed = sum(sizes.get(name, 0) for name in names if readers[name] == 0)
        most = max(most, alive + (max(made - freed, 0) if node.op_type in IN_PLACE else made))
        alive += made - freed
    return most


def _sizes(graph: GraphProto) -> dict[str, int]:
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = _bytes(tensor.elem_type, shape)
    return found


def _bytes(element_type: int, shape: tuple[int, ...]) -> int:
    wide = helper.tensor_dtype_to_np_dtype(element_type or TensorProto.FLOAT).itemsize
    return int(wide) * math.prod(shape)
