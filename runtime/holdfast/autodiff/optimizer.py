"""What an optimizer is to the training graph: from a parameter, its gradient and its state to their new values.

State: one tensor per slot and parameter, `<parameter>.<slot>` in and `<parameter>.<slot>.new` out, of the parameter's
shape and zero at the start. Optimizers that count their steps share one `optimizer.step` float32[], also from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.autodiff.writer import GraphWriter

STEP = "optimizer.step"


@dataclass(frozen=True, slots=True)
class UpdateInputs:
    """Names of values. `state` by slot; `step` is the number of this step, from 1, float32[]; "" if not counted."""

    parameter: str
    gradient: str
    learning_rate: str
    state: Mapping[str, str]
    step: str


@dataclass(frozen=True, slots=True)
class UpdateOutputs:
    """Names of the new parameter and of the new state by slot."""

    parameter: str
    state: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probe:
    """How to read the gradient g off one step that starts from zero state.

    Without a slot: p - p.new = rate (g + decay p). With one: its new value is factor (g + decay p).
    """

    slot: str = ""
    factor: float = 1.0
    decay: float = 0.0


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An update by name. `is_descent`: p.new = p - rate g, nothing else; the rate may then be in g already."""

    name: str
    emit: Callable[[GraphWriter, UpdateInputs], UpdateOutputs]
    slots: tuple[str, ...] = ()
    counts_steps: bool = False
    is_descent: bool = False
    probe: Probe = field(default_factory=Probe)
