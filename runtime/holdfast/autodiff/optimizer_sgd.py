"""Plain stochastic gradient descent: p <- p - learning_rate * g (Robbins and Monro 1951). It keeps no state."""

from __future__ import annotations

from holdfast.autodiff.optimizer import Optimizer
from holdfast.autodiff.writer import GraphWriter


def _emit(out: GraphWriter, parameter: str, gradient: str, learning_rate: str) -> str:
    return out.node("Sub", [parameter, out.node("Mul", [learning_rate, gradient])])


SGD = Optimizer("sgd", _emit)
