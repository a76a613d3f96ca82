"""The one table from Holdfast's errors to gRPC and HTTP status, and the door where unknown errors end.

Rules: the first row that fits decides, so special errors stand above their parents; an error that is not ours becomes
INTERNAL with an id, its details only in the log. Source: Triton's mapping, which its clients expect; overload is
RESOURCE_EXHAUSTED / 429.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from holdfast.errors import (
    AbandonedError,
    AccessError,
    ConflictError,
    DeadlineError,
    HoldfastError,
    InferenceError,
    InvalidTensorError,
    ModelError,
    OverloadedError,
    RequestError,
    StoppingError,
    UnauthenticatedError,
    UnknownModelError,
    UnknownRegionError,
    UnreadyModelError,
    UnsupportedError,
    VersionFormError,
)

logger = logging.getLogger(__name__)

STATUS_OF: tuple[tuple[type[HoldfastError], str, int], ...] = (
    (UnreadyModelError, "UNAVAILABLE", 503),
    (VersionFormError, "INVALID_ARGUMENT", 400),
    (UnknownModelError, "NOT_FOUND", 404),
    (UnknownRegionError, "NOT_FOUND", 404),
    (UnauthenticatedError, "UNAUTHENTICATED", 401),
    (AccessError, "PERMISSION_DENIED", 403),
    (ConflictError, "ALREADY_EXISTS", 400),
    (InvalidTensorError, "INVALID_ARGUMENT", 400),
    (OverloadedError, "RESOURCE_EXHAUSTED", 429),
    (DeadlineError, "DEADLINE_EXCEEDED", 504),
    (UnsupportedError, "UNIMPLEMENTED", 501),
    (StoppingError, "UNAVAILABLE", 503),
    (AbandonedError, "CANCELLED", 400),
    (InferenceError, "INTERNAL", 500),
    (RequestError, "INVALID_ARGUMENT", 400),
    (ModelError, "UNAVAILABLE", 503),
    (HoldfastError, "INTERNAL", 500),
)
INTERNAL_CODE = "HF-INTERNAL"


@dataclass(frozen=True, slots=True)
class Status:
    """What a client is told: the name of a gRPC status code, an HTTP status, a text; `code` is the error's own."""

    grpc: str
    http: int
    text: str
    code: str


def status_of(error: BaseException) -> Status:
    """The status of an error. Logs errors that are not ours in full; call it inside the `except` that caught them."""
    for kind, grpc, http in STATUS_OF:
        if isinstance(error, kind):
            return Status(grpc, http, str(error), error.code)
    error_id = os.urandom(8).hex()
    logger.error("internal error", exc_info=error, extra={"error_id": error_id})
    return Status("INTERNAL", 500, f"internal error; the log holds it under id {error_id}", INTERNAL_CODE)
