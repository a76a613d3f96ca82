"""What a step must make of a gradient, in float64 by numpy: the formulas that a step graph is held against.

    proximal   g <- g + mu (p - anchor)                                  (Li et al. 2020, eq. 2)
    clip       g <- g min(1, bound / (||g|| + 1e-6))                     (Pascanu et al. 2013, with PyTorch's 1e-6)
    sgd        p <- p - rate (g + decay p)
    momentum   v <- m v + g + decay p;  p <- p - rate v                  (Polyak 1964)
    nesterov   the same v;  p <- p - rate (g + decay p + m v)            (Sutskever et al. 2013)
    adam(w)    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- (1 - rate decay) p -
               rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)    (Kingma, Ba 2015; Loshchilov, Hutter 2019)

Written apart from the graphs' own code on purpose: the two check each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.training import ADAM, ADAMW, MOMENTUM, NESTEROV, SGD, Recipe

Floats64 = NDArray[np.float64]
Tensors = Mapping[str, Floats64]

CLIP_EPSILON = 1e-6
STEP_COUNT = "optimizer.step"
FIRST, SECOND, VELOCITY = "m", "v", "momentum"  # slots: a parameter's state is `<parameter>.<slot>`


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """The scalars of one step. gradient_clip: infinity = no bound. count: the number of this step, from 1."""

    learning_rate: float
    proximal_mu: float = 0.0
    gradient_clip: float = math.inf
    count: int = 1


def slots_of(optimizer: Recipe) -> tuple[str, ...]:
    """The state that an optimizer keeps for each parameter."""
    if optimizer.name in (MOMENTUM, NESTEROV):
        return (VELOCITY,)
    return (FIRST, SECOND) if optimizer.name in (ADAM, ADAMW) else ()


def counts_steps(optimizer: Recipe) -> bool:
    """Whether it also keeps the number of its steps."""
    return optimizer.name in (ADAM, ADAMW)


def gradient_shown(optimizer: Recipe, name: str) -> tuple[str, float]:
    """Where a first step from zero state shows the gradient g of a parameter: (output without `.new`, factor).

    The output is factor (g + decay p); for plain descent there is none, and p - p.new = rate (g + decay p).
    """
    if optimizer.name == SGD:
        return name, 1.0
    if optimizer.name in (MOMENTUM, NESTEROV):
        return f"{name}.{VELOCITY}", 1.0
    return f"{name}.{FIRST}", 1.0 - optimizer.number("beta1")


def decay_of(optimizer: Recipe) -> float:
    """The weight decay that is part of the gradient; AdamW's is not."""
    return 0.0 if optimizer.name in (ADAM, ADAMW) else optimizer.number("weight_decay")


def updated(
    optimizer: Recipe, parameters: Tensors, gradients: Tensors, anchors: Tensors, state: Tensors, numbers: StepNumbers
) -> dict[str, Floats64]:
    """One step.

    Args:
        parameters, gradients, anchors: by parameter, of one shape each. state: by `<parameter>.<slot>`.
    Returns: the new parameters and the new state, by the same names.
    """
    pulled = {
        name: gradient + numbers.proximal_mu * (parameters[name] - anchors[name])
        for name, gradient in gradients.items()
    }
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in pulled.values()))
    factor = min(1.0, numbers.gradient_clip / (norm + CLIP_EPSILON))
    found: dict[str, Floats64] = {}
    for name, gradient in pulled.items():
        found |= _one(optimizer, name, parameters[name], gradient * factor, state, numbers)
    return found


def _one(
    optimizer: Recipe, name: str, p: Floats64, g: Floats64, state: Tensors, numbers: StepNumbers
) -> dict[str, Floats64]:
    rate, decayed = numbers.learning_rate, g + decay_of(optimizer) * p
    if optimizer.name == SGD:
        return {name: p - rate * decayed}
    if optimizer.name in (MOMENTUM, NESTEROV):
        factor = optimizer.number("momentum")
        velocity = factor * state[f"{name}.{VELOCITY}"] + decayed
        direction = velocity if optimizer.name == MOMENTUM else decayed + factor * velocity
        return {name: p - rate * direction, f"{name}.{VELOCITY}": velocity}
    b1, b2, epsilon = (optimizer.number(key) for key in ("beta1", "beta2", "epsilon"))
    first = b1 * state[f"{name}.{FIRST}"] + (1 - b1) * g
    second = b2 * state[f"{name}.{SECOND}"] + (1 - b2) * g * g
    deviation = np.sqrt(second / (1 - b2**numbers.count)) + epsilon
    kept = p * (1 - rate * optimizer.number("weight_decay")) if optimizer.name == ADAMW else p
    moved = kept - rate * first / (1 - b1**numbers.count) / deviation
    return {name: moved, f"{name}.{FIRST}": first, f"{name}.{SECOND}": second}
