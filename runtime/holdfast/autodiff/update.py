"""From the gradients of one step to the new parameters: proximal term, then clipping, then the optimizer.

    proximal   g <- g + mu (p - anchor)                     (FedProx: Li et al. 2020, eq. 2)
    clip       g <- g min(1, bound / (||g|| + 1e-6)), ||g|| over all parameters together (Pascanu et al. 2013, with
               PyTorch's 1e-6)
Anchors `<parameter>.anchor`, `proximal_mu` and `clip_norm` are inputs of the graph, so that a round sets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.autodiff.optimizer import STEP, Optimizer, UpdateInputs
from holdfast.autodiff.writer import GraphWriter
from holdfast.update.layout import LayoutEntry

LEARNING_RATE, PROXIMAL_MU, CLIP_NORM = "learning_rate", "proximal_mu", "clip_norm"
NEW, ANCHOR = ".new", ".anchor"
_NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """How gradients become new parameters."""

    optimizer: Optimizer
    proximal: bool
    clip: bool

    @property
    def gradient_scale(self) -> str:
        """The value that d loss / d prediction is multiplied by; "": by nothing.

        The learning rate, where that is all that happens to a gradient: gradients are linear in that one small value,
        and scaling it saves a product per parameter.
        """
        return LEARNING_RATE if self.optimizer.is_descent and not self.proximal and not self.clip else ""


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A value that one step hands to the next, beside the parameters: input `name`, output `<name>.new`, float32.

    It starts as the weights' value where the layout has an entry of that name (running statistics that stay on the
    device), else as zeros.
    """

    name: str
    shape: tuple[int, ...]


def state_of(rule: UpdateRule, parameters: Sequence[LayoutEntry]) -> tuple[StateTensor, ...]:
    """The state that the optimizer keeps for these parameters."""
    slots = [StateTensor(f"{entry.name}.{slot}", entry.shape) for entry in parameters for slot in rule.optimizer.slots]
    return (*slots, StateTensor(STEP, ())) if rule.optimizer.counts_steps else tuple(slots)


def extra_inputs(rule: UpdateRule, parameters: Sequence[LayoutEntry]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """(name, shape) of the inputs besides parameters, state and learning rate."""
    found: list[tuple[str, tuple[int, ...]]] = []
    if rule.proximal:
        found += [*((entry.name + ANCHOR, entry.shape) for entry in parameters), (PROXIMAL_MU, ())]
    return (*found, (CLIP_NORM, ())) if rule.clip else tuple(found)


def emit_update(out: GraphWriter, rule: UpdateRule, gradients: Mapping[str, str]) -> dict[str, str]:
    """Append the update of every parameter in `gradients`, which are scaled as the rule says.

    Returns: the new value by name, of parameters and state.
    """
    optimizer = rule.optimizer
    if rule.gradient_scale:
        return {name: _descended(out, name, gradient) for name, gradient in gradients.items()}
    if rule.proximal:
        gradients = {name: _pulled(out, name, gradient) for name, gradient in gradients.items()}
    if rule.clip:
        gradients = _clipped(out, gradients)
    found: dict[str, str] = {}
    step = out.node("Add", [STEP, out.scalar(1.0)]) if optimizer.counts_steps else ""
    for name, gradient in gradients.items():
        state = {slot: f"{name}.{slot}" for slot in optimizer.slots}
        made = optimizer.emit(out, UpdateInputs(name, gradient, LEARNING_RATE, state, step))
        found[name] = made.parameter
        found.update({state[slot]: value for slot, value in made.state.items()})
    return {**found, STEP: step} if step else found


def _descended(out: GraphWriter, name: str, gradient: str) -> str:
    """p - gradient. A gradient that is a matrix product takes p as its third operand: no pass over p more."""
    product = out.maker(gradient)
    if product is None or product.op_type != "Gemm" or len(product.input) != 2:
        return out.node("Sub", [name, gradient])
    settings = {each.name: each.f if each.name == "alpha" else each.i for each in product.attribute}
    settings["alpha"] = -float(settings.get("alpha", 1.0))
    return out.node("Gemm", [*product.input, name], **settings)


def _pulled(out: GraphWriter, name: str, gradient: str) -> str:
    distance = out.node("Sub", [name, name + ANCHOR])
    return out.node("Add", [gradient, out.node("Mul", [distance, PROXIMAL_MU])])


def _clipped(out: GraphWriter, gradients: Mapping[str, str]) -> dict[str, str]:
    squares = [out.node("ReduceSumSquare", [gradient], keepdims=0) for gradient in gradients.values()]
    norm = out.node("Add", [out.node("Sqrt", [out.node("Sum", squares)]), out.scalar(_NORM_EPSILON)])
    factor = out.node("Min", [out.node("Div", [CLIP_NORM, norm]), out.scalar(1.0)])
    return {name: out.node("Mul", [gradient, factor]) for name, gradient in gradients.items()}
