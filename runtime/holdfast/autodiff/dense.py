"""Rewrites layers over sequences, MatMul then Add of a bias, into one Gemm over all rows.

So that the products behind them can take scalar factors in (see `scaling.py`), and a gradient is one product as well.
The runtime joins the two itself when it loads a graph; here it is done before gradients are written.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
from onnx import NodeProto, helper

from holdfast.autodiff.reading import ForwardGraph
from holdfast.autodiff.writer import names_read

_ROWS, _PRODUCT, _SHAPE = ".rows", ".product", ".shape"


def layers_as_products(forward: ForwardGraph) -> ForwardGraph:
    """The graph with Y = X W + b, X of three axes or more, W a matrix and b a row, as Reshape, Gemm, Reshape."""
    uses = Counter(name for node in forward.nodes for name in names_read(node))
    products = {
        node.output[0]: node
        for node in forward.nodes
        if node.op_type == "MatMul" and _is_layer(forward, node) and uses[node.output[0]] == 1
    }
    biases = {node.output[0]: bias for node in forward.nodes if (bias := _bias(forward, node, products))}
    if not biases:
        return forward
    joined = {name for node in forward.nodes if node.output[0] in biases for name in node.input if name in products}
    shapes, types = dict(forward.shapes), dict(forward.element_types)
    tables = {}
    nodes: list[NodeProto] = []
    for node in forward.nodes:
        if node.output[0] in joined:
            continue
        if node.output[0] not in biases:
            nodes.append(node)
            continue
        value = node.output[0]
        product = next(products[name] for name in node.input if name in joined)
        inner, columns = shapes[product.input[1]]
        rows = math.prod(shapes[value][:-1])
        sizes = {value + _ROWS: (rows, inner), value + _PRODUCT: (rows, columns)}
        nodes += _as_one_product(value, product, biases[value])
        shapes.update(sizes)
        types.update(dict.fromkeys(sizes, types[value]))
        for name, shape in ((value + _ROWS, (rows, inner)), (value, shapes[value])):
            tables[name + _SHAPE] = np.array(shape, np.int64)
    return replace(
        forward,
        nodes=tuple(nodes),
        shapes={**shapes, **{name: table.shape for name, table in tables.items()}},
        element_types=types,
        initializers={**forward.initializers, **tables},
        constants={**forward.constants, **tables},
    )


def _is_layer(forward: ForwardGraph, node: NodeProto) -> bool:
    value, weight = (forward.shapes.get(name, ()) for name in node.input)
    return len(value) > 2 and len(weight) == 2


def _bias(forward: ForwardGraph, node: NodeProto, products: dict[str, NodeProto]) -> str:
    """The row that an Add adds to one of the products; "": it does something else."""
    if node.op_type != "Add":
        return ""
    for value, other in (node.input, reversed(node.input)):
        if value in products and forward.shapes.get(other) == forward.shapes[value][-1:]:
            return str(other)
    return ""


def _as_one_product(value: str, product: NodeProto, bias: str) -> list[NodeProto]:
    rows, made = value + _ROWS, value + _PRODUCT
    return [
        helper.make_node("Reshape", [product.input[0], rows + _SHAPE], [rows], name=rows),
        helper.make_node("Gemm", [rows, product.input[1], bias], [made], name=product.name or made),
        helper.make_node("Reshape", [made, value + _SHAPE], [value], name=value),
    ]
