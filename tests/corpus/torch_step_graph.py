"""A step graph made by PyTorch: `.venv-corpus/bin/python -m tests.corpus.torch_step_graph CONTRACT.json OUT.onnx`.

The network is written once more in torch, under the names that `holdfast bundle contract --json` gives; torch
differentiates it, and its exporter writes loss and gradients as one ONNX graph. `--detached` forgets that the length of
the hidden layer depends on the weights too: a mistake that trains, only worse.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import onnx
import torch
from torch.fx.experimental.proxy_tensor import make_fx

Tensor = torch.Tensor
TYPES = {"float32": torch.float32, "int64": torch.int64}


def loss_of(weights: dict[str, Tensor], x: Tensor, labels: Tensor, *, detached: bool) -> Tensor:
    """Mean squared error of a perceptron whose hidden layer has length 1; NaN labels pad and count for nothing."""
    hidden = x @ weights["layer0.weight"].T + weights["layer0.bias"]
    length = hidden.norm(dim=1, keepdim=True)
    hidden = hidden / (length.detach() if detached else length)
    found = hidden @ weights["layer1.weight"].T + weights["layer1.bias"]
    known = ~torch.isnan(labels)
    nothing = torch.zeros_like(labels)
    apart = torch.where(known, found - torch.where(known, labels, nothing), nothing)
    return (apart * apart).sum() / known.sum().clamp(min=1)


def step_graph(contract: dict[str, list[dict[str, object]]], *, detached: bool) -> onnx.ModelProto:
    """The graph with the contract's inputs and outputs."""
    shapes = {str(each["name"]): (each["shape"], TYPES[str(each["dtype"])]) for each in contract["inputs"]}
    outputs = [str(each["name"]) for each in contract["outputs"]]
    learning = [name.removesuffix(".gradient") for name in outputs if name != "loss"]

    def step(*given: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(shapes, given, strict=True))
        weights = {name: values[name] for name in learning}

        def loss(weights: dict[str, Tensor]) -> Tensor:
            return loss_of(weights, values["input"], values["labels"], detached=detached)

        gradients, found = torch.func.grad_and_value(loss)(weights)
        return (found, *(gradients[name.removesuffix(".gradient")] for name in outputs if name != "loss"))

    examples = tuple(torch.ones(shape, dtype=dtype) for shape, dtype in shapes.values())
    exported = torch.export.export(make_fx(step)(*examples), examples)
    program = torch.onnx.export(
        exported, examples, dynamo=True, opset_version=20, input_names=list(shapes), output_names=outputs
    )
    assert program is not None
    return program.model_proto


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("contract", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--detached", action="store_true")
    asked = parser.parse_args(arguments)
    onnx.save(step_graph(json.loads(asked.contract.read_text()), detached=asked.detached), asked.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
