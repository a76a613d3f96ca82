"""The nine light models of the onnx package, with weights drawn from a seed in the place of constants of one value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LIGHT_MODELS = sorted(path.stem for path in FOLDER.glob("*.onnx"))


def redrawn(name: str) -> bytes:
    """One of them, its batch fixed to 1; needs no other file."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    graph = model.graph
    rng = np.random.default_rng(0)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    variances = {node.input[4] for node in kept if node.op_type == "BatchNormalization"}
    for node in made:
        shape = tuple(int(size) for size in constants[node.input[0]])
        values = rng.standard_normal(shape, dtype=np.float32)
        if node.output[0] in variances:
            values = np.abs(values) + np.float32(0.5)
        else:
            values *= np.float32(np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
    model.ir_version = 8  # from 4 on, initializers need not be inputs
    return model.SerializeToString()
