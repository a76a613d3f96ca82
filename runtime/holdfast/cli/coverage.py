"""`holdfast bundle coverage`: whether a model can be trained as asked, node by node, before anything is packed."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.bundle import add_training_arguments, read_bytes, training_plan
from holdfast.cli.command import EXIT_FAILED, EXIT_OK, Command

if TYPE_CHECKING:
    from holdfast.author.coverage import Coverage


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="a self-contained ONNX model")
    add_training_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with every node")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.author.coverage import measure_coverage
    from holdfast.inference.session import MAX_MODEL_BYTES

    found = measure_coverage(read_bytes(arguments.model, "model", MAX_MODEL_BYTES), training_plan(arguments))
    if arguments.json:
        print(json.dumps({"trainable": found.is_trainable, **dataclasses.asdict(found)}))
    else:
        _show(found)
    return EXIT_OK if found.is_trainable else EXIT_FAILED


def _show(found: Coverage) -> None:
    print(f"{'operator':24}{'nodes':>6}{'passed':>8}  gradient rule")
    counts = Counter(node.operator for node in found.nodes)
    for operator, count in sorted(counts.items()):
        nodes = [node for node in found.nodes if node.operator == operator]
        passed = sum(node.is_passed for node in nodes)
        print(f"{operator:24}{count:>6}{passed:>8}  {'yes' if nodes[0].has_rule else 'NO'}")
    for node in found.nodes:
        if node.reason:
            print(f"node {node.name!r} ({node.operator}): {node.reason}")
    if found.cost is not None:
        cost = found.cost
        print(f"{cost.trainable_parameters} of {cost.parameters} parameters learn; per step of {cost.batch} samples:")
        step, forward = cost.step_multiply_adds / 1e6, cost.forward_multiply_adds / 1e6
        print(f"  {step:.4g} million multiply-adds (forward {forward:.4g})")
        print(f"  {cost.activation_bytes / 2**20:.1f} MiB of values in the forward pass")
        if cost.memory_bytes is not None:
            print(f"  about {cost.memory_bytes / 2**20:.1f} MiB of memory beside the runtime's own")
    print("trainable as asked" if found.is_trainable else f"NOT trainable as asked: {found.refusal}")


COVERAGE = Command(
    help="say whether a model can be trained, node by node",
    add_arguments=_arguments,
    run=_run,
    description="""Say whether a model can be trained as asked: which nodes have gradient rules, which don't and why,
what a step costs. The exit code is 0 if it can, 1 if not.

  holdfast bundle coverage model.onnx
  holdfast bundle coverage model.onnx --trainable 'head.*' --loss mse --optimizer adam --json""",
)
