"""What others may listen to: the answers that were given, and the labels that came later.

Why protocols and not base classes: observe and learn stand beside this room and must not be imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from holdfast.inference.tensors import Array

OK = "ok"


@dataclass(frozen=True, slots=True)
class TapEvent:
    """One answered request. `outcome` is "ok" or the code of an error; arrays are shared, not copies: read only."""

    model: str
    version: str
    request_id: str
    latency_s: float
    outcome: str
    inputs: Mapping[str, Array] | None
    outputs: Mapping[str, Array] | None


class RequestTap(Protocol):
    """Told of every answer, on the thread that gives it."""

    def on_response(self, event: TapEvent) -> None:
        """Take note. Must not block, must not raise, must bound what it keeps."""


class LabelSink(Protocol):
    """Takes the true outcome of an earlier request, when somebody learns it."""

    def on_labels(self, model: str, request_id: str, labels: Array) -> None:
        """Take note. labels: int64[batch], in the order of the request's rows. Must not block or raise."""
