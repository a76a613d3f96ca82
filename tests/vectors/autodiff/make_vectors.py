"""Write the golden gradients: python -m tests.vectors.autodiff.make_vectors   (needs torch 2.13 and onnx, nothing else)

torch autograd in float64 over a small interpreter of the ONNX nodes; the product's code takes no part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from tests.vectors.autodiff.cases import OPERATOR_CASES, mlp

HERE = Path(__file__).parent


def run_node(node: onnx.NodeProto, args: list[torch.Tensor]) -> torch.Tensor:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Gemm":
            a = args[0].T if attributes.get("transA") else args[0]
            b = args[1].T if attributes.get("transB") else args[1]
            y = attributes.get("alpha", 1.0) * (a @ b)
            return y + attributes.get("beta", 1.0) * args[2] if len(args) > 2 else y
        case "MatMul":
            return torch.matmul(*args)
        case "Add":
            return args[0] + args[1]
        case "Sub":
            return args[0] - args[1]
        case "Mul":
            return args[0] * args[1]
        case "Relu":
            return torch.relu(args[0])
        case "Identity":
            return args[0]
        case "Reshape":
            return args[0].reshape(args[1].tolist())
        case "Flatten":
            return args[0].flatten(1)
    raise NotImplementedError(node.op_type)


def gradients(model_bytes: bytes, x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Mean loss and its gradient by each float initializer; the gradient of the summed loss by x."""
    graph = onnx.load_model_from_string(model_bytes).graph
    values = {}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        values[tensor.name] = torch.tensor(array.astype(np.float64) if array.dtype == np.float32 else array)
    values["x"] = values["input"] = torch.tensor(x.astype(np.float64))
    wanted = {name: v.requires_grad_() for name, v in values.items() if v.is_floating_point() and name != "input"}
    for node in graph.node:
        values[node.output[0]] = run_node(node, [values[name] for name in node.input])
    target = torch.tensor(labels)
    total = torch.nn.functional.cross_entropy(values["logits"], target, ignore_index=-1, reduction="sum")
    count = int((target != -1).sum())
    found = torch.autograd.grad(total, list(wanted.values()))
    result = {name: g.numpy() / (1 if name == "x" else count) for name, g in zip(wanted, found, strict=True)}
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
