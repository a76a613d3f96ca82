"""Puts the branch that is taken in the place of an If whose condition is known once the batch size is fixed.

Exporters write `x.squeeze(1)` as an If on the size of the axis. An If whose condition depends on samples stays, and is
refused by name if a gradient has to pass it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper

THEN, ELSE = "then_branch", "else_branch"


def inline_known_branches(graph: GraphProto, known: Mapping[str, NDArray[np.generic]]) -> bool:
    """Replace, in place, each If with a condition among `known` by the nodes of its branch; whether there was one.

    Names need no care: those of a branch differ from all others in a valid model (ONNX IR, "Names Within a Graph").
    """
    kept: list[NodeProto] = []
    found = False
    for node in graph.node:
        if node.op_type != "If" or node.domain or node.input[0] not in known or known[node.input[0]].size != 1:
            kept.append(node)
            continue
        found = True
        name = THEN if bool(known[node.input[0]].item()) else ELSE
        branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
        kept.extend(branch.node)
        graph.initializer.extend(branch.initializer)
        for made, inner in zip(node.output, branch.output, strict=True):
            kept.append(helper.make_node("Identity", [inner.name], [made], name=made))
    del graph.node[:]
    graph.node.extend(kept)
    return found
