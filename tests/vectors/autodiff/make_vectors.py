"""Write the golden gradients: python -m tests.vectors.autodiff.make_vectors   (needs torch 2.13 and onnx, nothing else)

torch autograd in float64 over a small interpreter of the ONNX nodes; the product's code takes no part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tests.vectors.autodiff.cases import OPERATOR_CASES, mlp
from tests.vectors.autodiff.torch_nodes import run_node

HERE = Path(__file__).parent


def gradients(model_bytes: bytes, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Mean loss and its gradient by each float initializer of rank 1 or more; that of the summed loss by x."""
    graph = onnx.load_model_from_string(model_bytes).graph
    values: dict[str, torch.Tensor | None] = {"": None}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        values[tensor.name] = torch.tensor(array.astype(np.float64) if array.dtype == np.float32 else array)
    values[graph.input[0].name] = torch.tensor(x.astype(np.float64))
    wanted = {
        name: value.requires_grad_()
        for name, value in values.items()
        if value is not None and value.is_floating_point() and value.dim() > 0
    }
    for node in graph.node:
        made = run_node(node, [values[name] for name in node.input])
        values.update({name: value for name, value in zip(node.output, made, strict=False) if name})
    target = torch.tensor(labels)
    logits = values["logits"]
    assert logits is not None
    total = torch.nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    count = int((target != -1).sum())
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    data = graph.input[0].name
    result = {
        name: gradient.numpy() / (1 if name == data else count)
        for name, gradient in zip(wanted, found, strict=True)
        if gradient is not None
    }
    return {**result, "loss": np.array(total.item() / count)}


def main() -> None:
    arrays = {}
    cases = [(case.name, case.model(), case.input_values(), np.array(case.labels)) for case in OPERATOR_CASES]
    for name, model, x, labels in [*cases, ("mlp", *mlp())]:
        for key, value in gradients(model, x, labels).items():
            arrays[f"{name}/{key}"] = value
    np.savez_compressed(HERE / "torch_float64.npz", **arrays)


if __name__ == "__main__":
    main()
