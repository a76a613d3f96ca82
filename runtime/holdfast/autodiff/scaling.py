"""Takes products with constant numbers into the matrix products before or behind them, which scale for nothing.

    c (alpha A B + beta C) = (c alpha) A B + beta (c C)          alpha (c A) B = (c alpha) A B
Rules write the factors of their formulas as they stand and leave it to this pass that none costs a pass over memory.
Exact but for the rounding of one product per element.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from holdfast.autodiff.writer import names_read

Constants = Mapping[str, NDArray[np.generic]]


def factors_in_products(nodes: Sequence[NodeProto], constants: Constants, outputs: Collection[str]) -> list[NodeProto]:
    """The nodes without those scalar products that a Gemm can take over.

    Args:
        nodes: in order of execution; not modified.
        constants: values that are known.
        outputs: names that must keep their value.
    """
    scaled = _Scaled([NodeProto.FromString(node.SerializeToString()) for node in nodes], outputs)
    for node in list(scaled.nodes):
        found = _factor(node, constants)
        if found is None or node.output[0] in scaled.fixed:
            continue
        value, factor = found
        before, behind = scaled.product_before(value), scaled.products_behind(node.output[0])
        if before is not None:
            _scale(before, factor)
            scaled.replace(node, value)
            if len(before.input) > 2 and before.input[2]:
                scaled.move_to_sum(node, value, before)
        elif behind:
            for product, times in behind:
                _scale(product, factor**times)
            scaled.replace(node, value)
        else:
            scaled.sink(node, value)
    return scaled.nodes


class _Scaled:
    """The nodes while factors move, and who reads what."""

    def __init__(self, nodes: list[NodeProto], outputs: Collection[str]) -> None:
        self.nodes = nodes
        # what the bodies of If, Loop and Scan read can't be renamed
        self.fixed = {*outputs, *(name for node in nodes for name in names_read(node) - set(node.input))}
        self.makers = {name: node for node in nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def product_before(self, value: str) -> NodeProto | None:
        """The Gemm that makes a value, reshaped perhaps, for one reader alone."""
        while len(self.readers.get(value, ())) == 1 and value not in self.fixed and value in self.makers:
            maker = self.makers[value]
            if maker.op_type == "Gemm":
                return maker
            if maker.op_type != "Reshape":
                return None
            value = maker.input[0]
        return None

    def products_behind(self, value: str) -> list[tuple[NodeProto, int]]:
        """The Gemms that read a value as a factor, reshaped perhaps, and how often; empty: something else reads it."""
        found: list[tuple[NodeProto, int]] = []
        for reader in _each_once(self.readers.get(value, [])):
            if reader.op_type == "Reshape" and reader.input[0] == value and reader.output[0] not in self.fixed:
                behind = self.products_behind(reader.output[0])
                if not behind:
                    return []
                found += behind
            elif reader.op_type == "Gemm" and value in reader.input[:2] and value not in reader.input[2:]:
                found.append((reader, list(reader.input).count(value)))
            else:
                return []
        return found

    def sink(self, node: NodeProto, value: str) -> None:
        """Behind a reshape, the only one to read it: the runtime takes factors into the products that they stand at."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) != 1 or readers[0].op_type != "Reshape" or readers[0].output[0] in self.fixed:
            return
        reshape, scaled = readers[0], node.output[0]
        made = reshape.output[0]
        places = [index for index, each in enumerate(self.nodes) if each is node or each is reshape]
        node.input[list(node.input).index(value)] = scaled
        node.output[0], reshape.input[0], reshape.output[0] = made, value, scaled
        first, second = places
        self.nodes.insert(second, self.nodes.pop(first))
        self.makers.update({made: node, scaled: reshape})
        self.readers[scaled] = [node]
        self.readers[value] = [reshape if each is node else each for each in self.readers[value]]

    def move_to_sum(self, node: NodeProto, value: str, product: NodeProto) -> None:
        """Let a node that was taken out scale what a Gemm adds, a bias; beta would take a pass over the result."""
        added, scaled = product.input[2], node.output[0]
        node.input[list(node.input).index(value)] = added
        product.input[2] = scaled
        self.nodes.insert(next(index for index, each in enumerate(self.nodes) if each is product), node)
        self.makers[scaled], self.readers[scaled] = node, [product]
        readers = self.readers[added]
        readers[next(index for index, each in enumerate(readers) if each is product)] = node

    def replace(self, node: NodeProto, value: str) -> None:
        """Take a node out; its readers read `value` instead."""
        made = node.output[0]
        for reader in _each_once(self.readers.get(made, [])):
            reader.input[:] = [value if name == made else name for name in reader.input]
        kept = [reader for reader in self.readers[value] if reader is not node]
        self.readers[value] = kept + self.readers.pop(made, [])
        self.nodes = [each for each in self.nodes if each is not node]


def _each_once(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """A node that reads a value twice is among its readers twice."""
    return list({id(node): node for node in nodes}.values())


def _factor(node: NodeProto, constants: Constants) -> tuple[str, float] | None:
    """(value, number) of a node that multiplies a value by a constant number."""
    if node.op_type != "Mul":
        return None
    for value, other in (tuple(node.input), tuple(reversed(node.input))):
        number = constants.get(other)
        if value in constants or number is None or number.shape != () or number.dtype != np.float32:
            continue
        if np.isfinite(number) and number != 0:  # a product with alpha 0 may leave out what would be NaN
            return value, float(number)
    return None


def _scale(product: NodeProto, factor: float) -> None:
    """Multiply what a Gemm multiplies; not what it adds."""
    alpha = next((each for each in product.attribute if each.name == "alpha"), None)
    if alpha is None:
        product.attribute.append(helper.make_attribute("alpha", factor))
    else:
        alpha.f *= factor
