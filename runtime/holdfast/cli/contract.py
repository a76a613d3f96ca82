"""`holdfast bundle contract`: what a step graph has to look like that another tool makes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from holdfast.cli.bundle import add_training_arguments, read_bytes, training_plan
from holdfast.cli.command import EXIT_OK, Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a self-contained ONNX model")
    add_training_arguments(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the loss graph, to be differentiated")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.author.contract import step_contract
    from holdfast.inference.session import MAX_MODEL_BYTES
    from holdfast.trust.durable import write_atomic

    model = read_bytes(arguments.model, "model", MAX_MODEL_BYTES)
    contract = step_contract(model, training_plan(arguments))
    if arguments.output is not None:
        write_atomic(arguments.output, contract.loss_graph, 0o644)
    if arguments.json:
        tables = {
            kind: [dataclasses.asdict(each) for each in getattr(contract, kind)] for kind in ("inputs", "outputs")
        }
        print(json.dumps({**tables, "loss_graph": None if arguments.output is None else str(arguments.output)}))
        return EXIT_OK
    for kind, tensors in (("input", contract.inputs), ("output", contract.outputs)):
        for tensor in tensors:
            print(f"{kind:7} {tensor.name}  {tensor.dtype}{list(tensor.shape)}")
    if arguments.output is not None:
        print(f"the loss to differentiate: {arguments.output}", file=sys.stderr)
    return EXIT_OK


CONTRACT = Command(
    help="say what a step graph of your own must look like",
    add_arguments=_arguments,
    run=_run,
    description="""Say which inputs and outputs a gradient graph of another tool must have, and write the loss that
it differentiates. The graph it makes goes into the bundle with --step-graph.

  holdfast bundle contract model.onnx --loss mse --batch 16 -o loss.onnx""",
)
