"""The W3C trace context of a request: passed through so that traces hold together; nothing is recorded here."""

from __future__ import annotations

import re
from collections.abc import Mapping

TRACEPARENT = "traceparent"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")  # W3C Trace Context 3.2


def is_traceparent(value: str) -> bool:
    """Whether a value is a valid traceparent (W3C Trace Context 3.2)."""
    return _TRACEPARENT.match(value) is not None


def trace_context(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What goes back with an answer so that its trace holds together: the request's own W3C traceparent, if valid."""
    traceparent = metadata.get(TRACEPARENT, "")
    return ((TRACEPARENT, traceparent),) if is_traceparent(traceparent) else ()
