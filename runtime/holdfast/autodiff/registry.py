"""Every gradient rule, loss and optimizer there is. The coverage table in the docs is made from these tables.

To add a gradient rule: write it in the `rules_<family>.py` it belongs to, with its formula and source; list it in that
file's RULES; add its cases to the rule tests. A new family also gets a line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from onnx import NodeProto

from holdfast.autodiff import rules_activation, rules_elementwise, rules_linear, rules_shape
from holdfast.autodiff.loss import Loss
from holdfast.autodiff.loss_cross_entropy import SOFTMAX_CROSS_ENTROPY
from holdfast.autodiff.optimizer import Optimizer
from holdfast.autodiff.optimizer_sgd import SGD
from holdfast.autodiff.reading import DEFAULT_DOMAINS
from holdfast.autodiff.rule import GradientRule
from holdfast.errors import AutodiffError

RULES: Mapping[str, GradientRule] = MappingProxyType(
    {
        rule.operator: rule
        for family in (rules_linear, rules_elementwise, rules_activation, rules_shape)
        for rule in family.RULES
    }
)
LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in (SOFTMAX_CROSS_ENTROPY,)})
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({optimizer.name: optimizer for optimizer in (SGD,)})


def rule_for(node: NodeProto) -> GradientRule | None:
    """The rule of a node's operator, or None. Only the default domain has rules."""
    return RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None


def loss_named(name: str) -> Loss:
    """Raises: AutodiffError: no such loss."""
    if name not in LOSSES:
        raise AutodiffError(f"unknown loss {name!r}; expected one of {', '.join(LOSSES)}")
    return LOSSES[name]


def optimizer_named(name: str) -> Optimizer:
    """Raises: AutodiffError: no such optimizer."""
    if name not in OPTIMIZERS:
        raise AutodiffError(f"unknown optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]
