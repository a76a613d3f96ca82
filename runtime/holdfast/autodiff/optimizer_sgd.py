"""Stochastic gradient descent: plain, with momentum, and with Nesterov's momentum.

    sgd        p <- p - rate g                              (Robbins and Monro 1951)
    momentum   v <- m v + g;  p <- p - rate v               (Polyak 1964)
    nesterov   v <- m v + g;  p <- p - rate (g + m v)       (Nesterov 1983, in the form of Sutskever et al. 2013)
with g + decay p in the place of g where weight decay is asked for. This is how PyTorch writes them, without dampening.
"""

from __future__ import annotations

from holdfast.autodiff.optimizer import Optimizer, Probe, UpdateInputs, UpdateOutputs
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

MOMENTUM = "momentum"


def sgd(*, weight_decay: float = 0.0) -> Optimizer:
    """Plain gradient descent. It keeps no state."""

    def emit(out: GraphWriter, names: UpdateInputs) -> UpdateOutputs:
        return UpdateOutputs(_descended(out, names, _decayed(out, names, weight_decay)))

    return Optimizer("sgd", emit, is_descent=weight_decay == 0.0, probe=Probe(decay=weight_decay))


def momentum(*, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """Gradient descent along a running sum of gradients."""
    return _with_velocity("momentum", momentum, weight_decay, nesterov=False)


def nesterov(*, momentum: float = 0.9, weight_decay: float = 0.0) -> Optimizer:
    """Momentum that looks one step ahead."""
    return _with_velocity("nesterov", momentum, weight_decay, nesterov=True)


def _with_velocity(name: str, factor: float, weight_decay: float, *, nesterov: bool) -> Optimizer:
    if not 0.0 <= factor < 1.0:
        raise AutodiffError(f"momentum must be at least 0 and below 1, got {factor}")

    def emit(out: GraphWriter, names: UpdateInputs) -> UpdateOutputs:
        gradient = _decayed(out, names, weight_decay)
        slowed = out.node("Mul", [names.state[MOMENTUM], out.scalar(factor)])
        velocity = out.node("Add", [slowed, gradient])
        direction = velocity
        if nesterov:
            direction = out.node("Add", [gradient, out.node("Mul", [velocity, out.scalar(factor)])])
        return UpdateOutputs(_descended(out, names, direction), {MOMENTUM: velocity})

    return Optimizer(name, emit, slots=(MOMENTUM,), probe=Probe(slot=MOMENTUM, decay=weight_decay))


def _descended(out: GraphWriter, names: UpdateInputs, direction: str) -> str:
    return out.node("Sub", [names.parameter, out.node("Mul", [names.learning_rate, direction])])


def _decayed(out: GraphWriter, names: UpdateInputs, weight_decay: float) -> str:
    if weight_decay < 0:
        raise AutodiffError(f"weight_decay must be 0 or more, got {weight_decay}")
    if weight_decay == 0.0:
        return names.gradient
    return out.node("Add", [names.gradient, out.node("Mul", [names.parameter, out.scalar(weight_decay)])])
