"""Write the golden steps and networks: python -m tests.vectors.autodiff.make_step_vectors   (needs torch and onnx)

torch.optim and torch.nn.functional in float64; the product's code takes no part. Padding rows are left out here, not
masked, so they show that the product's padding changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tests.vectors.autodiff import steps
from tests.vectors.autodiff.networks import NETWORKS, Network
from tests.vectors.autodiff.torch_nodes import run_node
from torch.nn import functional

HERE = Path(__file__).parent
MOMENTUM = 0.9  # of running statistics, in ONNX's sense
Values = dict[str, torch.Tensor]


def parameters(model: bytes) -> Values:
    found = {}
    for tensor in onnx.load_model_from_string(model).graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        found[tensor.name] = torch.tensor(array.astype(np.float64) if array.dtype == np.float32 else array)
    return found


def forward(model: bytes, values: Values, *, batch_statistics: bool = False) -> tuple[torch.Tensor, Values]:
    """The logits, and the running statistics after the step."""
    values, running = {**values, "": None}, {}  # type: ignore[dict-item]  # "" is an optional input that isn't there
    for node in onnx.load_model_from_string(model).graph.node:
        args = [values[name] for name in node.input]
        if node.op_type == "Shape":
            values[node.output[0]] = torch.tensor(args[0].shape[:1])
            continue
        if node.op_type == "BatchNormalization" and batch_statistics:
            mean, var = args[3].detach().clone(), args[4].detach().clone()
            made = [functional.batch_norm(args[0], mean, var, args[1], args[2], True, 1 - MOMENTUM, 1e-5)]
            running.update({node.input[3]: mean, node.input[4]: var})
        elif node.op_type == "Reshape":
            shape = [args[0].shape[i] if size == 0 else size for i, size in enumerate(args[1].tolist())]
            made = [args[0].reshape(shape)]
        elif node.op_type == "Dropout":
            kept = torch.tensor(steps.uniform()[:-1] >= np.float32(steps.RATIO))
            made = [args[0] * kept / (1 - float(np.float32(steps.RATIO)))]
        else:
            made = run_node(node, args)
        values.update({name: value for name, value in zip(node.output, made, strict=False) if name})
    return values["logits"], running


def network(net: Network) -> dict[str, np.ndarray]:
    values = parameters(net.model)
    wanted = {name: v.requires_grad_() for name, v in values.items() if v.is_floating_point() and v.dim()}
    rows = net.labels >= 0
    x = torch.tensor(net.x[rows].astype(np.float64) if net.x.dtype == np.float32 else net.x[rows])
    logits, running = forward(net.model, {**values, "x": x}, batch_statistics=net.batch_norm != "frozen")
    loss = functional.cross_entropy(logits, torch.tensor(net.labels[rows]))
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    gradients = {n: g.numpy() for n, g in zip(wanted, found, strict=True) if g is not None}
    return {**gradients, "loss": loss.detach().numpy(), **{f"{n}.new": v.numpy() for n, v in running.items()}}


def loss_of(case: steps.LossCase, logits: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    settings = dict(case.settings)
    if "weight" in settings:
        settings["weight"] = torch.tensor(settings["weight"], dtype=torch.float64)
    run = getattr(functional, case.torch)
    if case.of_classes:
        return run(logits, torch.tensor(labels), **settings)
    known = torch.tensor(~np.isnan(labels))
    return run(logits[known], torch.tensor(labels.astype(np.float64))[known], **settings)


def one_loss(case: steps.LossCase, *, dropout: bool = False) -> dict[str, np.ndarray]:
    model = steps.model(dropout=dropout)
    x, labels = steps.batches(of_classes=case.of_classes)[0]
    values = parameters(model)
    wanted = {name: v.requires_grad_() for name, v in values.items() if v.dim()}
    logits, _ = forward(model, {**values, "x": torch.tensor(x[:-1].astype(np.float64))})
    loss = loss_of(case, logits, labels[:-1])
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {"loss": loss.detach().numpy(), **{n: g.numpy() for n, g in zip(wanted, found, strict=True)}}


def some_steps(case: steps.OptimizerCase) -> dict[str, np.ndarray]:
    model = steps.model()
    values = {name: torch.nn.Parameter(value) for name, value in parameters(model).items()}
    optimizer = getattr(torch.optim, case.torch)(values.values(), lr=steps.LEARNING_RATE, **case.settings)
    anchors = {name: torch.tensor(value.astype(np.float64)) for name, value in steps.anchors().items()}
    for x, labels in steps.batches(of_classes=True):
        optimizer.zero_grad()
        logits, _ = forward(model, {**values, "x": torch.tensor(x[:-1].astype(np.float64))})
        loss = functional.cross_entropy(logits, torch.tensor(labels[:-1]))
        if case.proximal:
            loss = loss + steps.PROXIMAL_MU / 2 * sum(((v - anchors[n]) ** 2).sum() for n, v in values.items())
        loss.backward()
        if case.clip:
            torch.nn.utils.clip_grad_norm_(values.values(), steps.CLIP_NORM)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in values.items()}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for title, found in [
        *((f"network/{name}", network(net)) for name, net in NETWORKS.items()),
        *((f"loss/{case.name}", one_loss(case)) for case in steps.LOSSES),
        ("dropout", one_loss(steps.LOSSES[0], dropout=True)),
        *((f"optimizer/{case.name}", some_steps(case)) for case in steps.OPTIMIZERS),
    ]:
        arrays.update({f"{title}/{key}": value for key, value in found.items()})
    np.savez_compressed(HERE / "torch_float64_steps.npz", **arrays)


if __name__ == "__main__":
    main()
