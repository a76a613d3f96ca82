"""Adam and AdamW.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  t <- t + 1
    p <- p - rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)         (Kingma and Ba 2015, algorithm 1)
AdamW shrinks p by 1 - rate decay first, apart from the gradient (Loshchilov and Hutter 2019, algorithm 2).
"""

from __future__ import annotations

from holdfast.autodiff.optimizer import Optimizer, Probe, UpdateInputs, UpdateOutputs
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

FIRST, SECOND = "m", "v"


def adam(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Optimizer:
    """Steps of a size that the recent gradients' spread decides, per element."""
    return _adam("adam", beta1, beta2, epsilon, 0.0)


def adamw(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, weight_decay: float = 0.01) -> Optimizer:
    """Adam with weight decay that the gradient's spread doesn't scale."""
    return _adam("adamw", beta1, beta2, epsilon, weight_decay)


def _adam(name: str, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> Optimizer:
    for key, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 < value < 1.0:
            raise AutodiffError(f"{key} must be above 0 and below 1, got {value}")
    if epsilon <= 0 or weight_decay < 0:
        raise AutodiffError(f"epsilon must be positive and weight_decay 0 or more, got {epsilon} and {weight_decay}")

    def emit(out: GraphWriter, names: UpdateInputs) -> UpdateOutputs:
        squared = out.node("Mul", [names.gradient, names.gradient])
        first = _averaged(out, names.state[FIRST], names.gradient, beta1)
        second = _averaged(out, names.state[SECOND], squared, beta2)
        rate = out.node("Div", [names.learning_rate, _bias(out, names.step, beta1)])
        deviation = out.node("Div", [out.node("Sqrt", [second]), out.node("Sqrt", [_bias(out, names.step, beta2)])])
        bottom = out.node("Add", [deviation, out.scalar(epsilon)])
        change = out.node("Div", [out.node("Mul", [rate, first]), bottom])
        kept = names.parameter
        if weight_decay:
            decay = out.node("Mul", [names.learning_rate, out.scalar(weight_decay)])
            kept = out.node("Sub", [kept, out.node("Mul", [kept, decay])])
        return UpdateOutputs(out.node("Sub", [kept, change]), {FIRST: first, SECOND: second})

    probe = Probe(slot=FIRST, factor=1.0 - beta1)
    return Optimizer(name, emit, slots=(FIRST, SECOND), counts_steps=True, probe=probe)


def _averaged(out: GraphWriter, old: str, new: str, beta: float) -> str:
    kept = out.node("Mul", [old, out.scalar(beta)])
    return out.node("Add", [kept, out.node("Mul", [new, out.scalar(1.0 - beta)])])


def _bias(out: GraphWriter, step: str, beta: float) -> str:
    """1 - beta^t: what is missing in an average that began at zero."""
    return out.node("Sub", [out.scalar(1.0), out.node("Pow", [out.scalar(beta), step])])
