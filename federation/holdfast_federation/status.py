"""The one table from the coordinator's errors to gRPC and HTTP status, and what may be said about them outside.

Rules: the first row that fits decides, so special errors stand above their parents. An error that is not ours becomes
INTERNAL "internal error" with an id; its details are only in the log. So are those of our own disk and folders.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from holdfast.errors import (
    ChainError,
    DeadlineError,
    FormatError,
    HoldfastError,
    LinkError,
    ModelError,
    OverloadedError,
    PolicyError,
    RequestError,
    RoundError,
    StateError,
    TrustError,
    UnknownModelError,
    UnsupportedError,
    UsageError,
)

logger = logging.getLogger(__name__)

STATUS_OF: tuple[tuple[type[HoldfastError], str, int], ...] = (
    (UnknownModelError, "NOT_FOUND", 404),
    (OverloadedError, "RESOURCE_EXHAUSTED", 429),
    (DeadlineError, "DEADLINE_EXCEEDED", 504),
    (UnsupportedError, "UNIMPLEMENTED", 501),
    (RequestError, "INVALID_ARGUMENT", 400),
    (StateError, "UNAVAILABLE", 503),
    (UsageError, "INVALID_ARGUMENT", 400),
    (ChainError, "FAILED_PRECONDITION", 409),
    (TrustError, "PERMISSION_DENIED", 403),
    (FormatError, "INVALID_ARGUMENT", 400),
    (PolicyError, "PERMISSION_DENIED", 403),
    (RoundError, "FAILED_PRECONDITION", 409),
    (ModelError, "FAILED_PRECONDITION", 409),
    (LinkError, "UNAVAILABLE", 503),
    (HoldfastError, "INTERNAL", 500),
)
INTERNAL_CODE = "HF-INTERNAL"


@dataclass(frozen=True, slots=True)
class Status:
    """What a caller is told: the name of a gRPC status code, an HTTP status, the error's own code, a text."""

    grpc: str
    http: int
    code: str
    text: str


def status_of(error: BaseException) -> Status:
    """The status of an error for a caller on the network. Logs in full what the caller is not told."""
    for kind, grpc, http in STATUS_OF:
        if isinstance(error, kind):
            text = str(error)
            if isinstance(error, StateError):
                text = f"the coordinator cannot store anything now (id {_log(error)}); try again later"
            return Status(grpc, http, error.code, text)
    return Status("INTERNAL", 500, INTERNAL_CODE, f"internal error (id {_log(error)})")


def _log(error: BaseException) -> str:
    error_id = secrets.token_hex(8)
    logger.error("internal error", exc_info=error, extra={"error_id": error_id})
    return error_id
