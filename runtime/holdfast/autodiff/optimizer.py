"""What an optimizer is to the training graph: from a parameter, its gradient and the learning rate to its new value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.autodiff.writer import GraphWriter


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An update by name: `emit(writer, parameter, gradient, learning_rate)` returns the new value's name."""

    name: str
    emit: Callable[[GraphWriter, str, str, str], str]
