"""Every gradient rule, loss and optimizer there is. The coverage table in the docs is made from these tables.

To add a gradient rule: write it in the `rules_<family>.py` it belongs to, with its formula and source; list it in that
file's RULES; add its cases to the rule tests. A new family also gets a line here.

Losses and optimizers are asked for by name, with settings behind a colon: `huber:delta=0.5`,
`softmax_cross_entropy:label_smoothing=0.1,class_weights=1/2/4`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from onnx import NodeProto

from holdfast.autodiff import (
    rules_activation,
    rules_batch_normalisation,
    rules_choice,
    rules_convolution,
    rules_dropout,
    rules_einsum,
    rules_elementwise,
    rules_function,
    rules_indexing,
    rules_linear,
    rules_normalisation,
    rules_pooling,
    rules_recurrent,
    rules_reduction,
    rules_sampling,
    rules_selection,
    rules_shape,
    rules_softmax,
    rules_spectral,
)
from holdfast.autodiff.loss import Loss
from holdfast.autodiff.loss_cross_entropy import softmax_cross_entropy
from holdfast.autodiff.loss_numbers import binary_cross_entropy, huber, l1, mse
from holdfast.autodiff.optimizer import Optimizer
from holdfast.autodiff.optimizer_adam import adam, adamw
from holdfast.autodiff.optimizer_sgd import momentum, nesterov, sgd
from holdfast.autodiff.reading import DEFAULT_DOMAINS
from holdfast.autodiff.rule import GradientRule
from holdfast.errors import AutodiffError

_Made = TypeVar("_Made")

FAMILIES = (
    rules_linear,
    rules_convolution,
    rules_pooling,
    rules_normalisation,
    rules_batch_normalisation,
    rules_recurrent,
    rules_einsum,
    rules_elementwise,
    rules_function,
    rules_activation,
    rules_softmax,
    rules_choice,
    rules_reduction,
    rules_shape,
    rules_indexing,
    rules_selection,
    rules_sampling,
    rules_spectral,
    rules_dropout,
)
RULES: Mapping[str, GradientRule] = MappingProxyType(
    {rule.operator: rule for family in FAMILIES for rule in family.RULES}
)
LOSSES: Mapping[str, Callable[..., Loss]] = MappingProxyType(
    {make.__name__: make for make in (softmax_cross_entropy, binary_cross_entropy, mse, l1, huber)}
)
OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType(
    {make.__name__: make for make in (sgd, momentum, nesterov, adam, adamw)}
)


def rule_for(node: NodeProto) -> GradientRule | None:
    """The rule of a node's operator, or None. Only the default domain has rules."""
    return RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None


def loss_named(name: str) -> Loss:
    """Raises: AutodiffError: no such loss, or a setting of it is unknown or out of range."""
    return _made("loss", LOSSES, name)


def optimizer_named(name: str) -> Optimizer:
    """Raises: AutodiffError: no such optimizer, or a setting of it is unknown or out of range."""
    return _made("optimizer", OPTIMIZERS, name)


def _made(kind: str, known: Mapping[str, Callable[..., _Made]], text: str) -> _Made:
    name, _, rest = text.partition(":")
    if name not in known:
        raise AutodiffError(f"unknown {kind} {name!r}; expected one of {', '.join(known)}")
    allowed = inspect.signature(known[name]).parameters
    settings = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in allowed:
            raise AutodiffError(f"unknown setting {key!r} of {name}; it has {', '.join(allowed) or 'none'}")
        settings[key] = _number(f"{name}:{key}", value, allowed[key].default)
    return known[name](**settings)


def _number(label: str, text: str, default: object) -> object:
    try:
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split("/"))
        return int(text) if isinstance(default, int) else float(text)
    except ValueError as error:
        raise AutodiffError(f"{label} must be a number, got {text!r}") from error
