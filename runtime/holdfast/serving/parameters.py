"""The parameters of the protocol that change an answer: their names, types and bounds, for gRPC and HTTP alike. Pure.

Rules: a known parameter of the wrong type or range is refused; one that this server does not follow and that would
change the answer (sequences) is refused by name; one that nobody knows is the client's own and ignored, as in Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.errors import RequestError, UnsupportedError
from holdfast.inference.tensors import TensorRequest

MAX_PARAMETERS = 256  # of one request, input or output; clients send a handful
MAX_PRIORITY = 2**32 - 1
MAX_TIMEOUT_US = 3_600_000_000  # one hour; more is a mistake in the unit
RESERVED_PREFIX = "triton_"
EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"  # of streams: the one reserved name that clients send

REGION = "shared_memory_region"
REGION_SIZE = "shared_memory_byte_size"
REGION_OFFSET = "shared_memory_offset"
CLASSIFICATION = "classification"
BINARY_OUTPUT = "binary_data"
BINARY_OUTPUTS = "binary_data_output"
BINARY_SIZE = "binary_data_size"

Parameters = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RegionSlice:
    """A part of a registered shared memory region."""

    region: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How outputs go out, by name: raw or as JSON (HTTP), as the best classes, or into shared memory."""

    default_binary: bool = False
    binary_of: Mapping[str, bool] = field(default_factory=dict)
    classes_of: Mapping[str, int] = field(default_factory=dict)
    region_of: Mapping[str, RegionSlice] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        return self.binary_of.get(name, self.default_binary)


@dataclass(slots=True)  # not frozen: that costs 1 us in every request; nobody changes one
class InferCall:
    """A decoded inference request with what the protocol says around it.

    priority: 0 = not said, 1 = first. timeout_s: how long it may wait in the queue; None = as the server lets it.
    """

    request: TensorRequest
    form: OutputForm = field(default_factory=OutputForm)
    priority: int = 0
    timeout_s: float | None = None


def queue_terms(parameters: Parameters) -> tuple[int, float | None]:
    """Priority and timeout (seconds) of a request's parameters.

    Raises:
        RequestError: one of them is of the wrong type or range, or reserved.
        UnsupportedError: the request belongs to a sequence.
    """
    require_known(parameters, "the request")
    for key in ("sequence_id", "sequence_start", "sequence_end"):
        if parameters.get(key):
            raise UnsupportedError(f"parameter '{key}': sequences are not offered; models here keep no state")
    priority = _whole(parameters.get("priority", 0), "priority", MAX_PRIORITY)
    timeout_us = _whole(parameters.get("timeout", 0), "timeout", MAX_TIMEOUT_US)
    return priority, timeout_us / 1e6 if timeout_us else None


def region_slice(parameters: Parameters, where: str) -> RegionSlice | None:
    """Where in shared memory a tensor lies, if the parameters say so.

    Raises:
        RequestError: the parameters are incomplete or of the wrong type.
    """
    require_known(parameters, where)
    if REGION not in parameters and REGION_SIZE not in parameters and REGION_OFFSET not in parameters:
        return None
    name = parameters.get(REGION)
    if not isinstance(name, str) or not name or REGION_SIZE not in parameters:
        raise RequestError(f"{where}: {REGION} and {REGION_SIZE} go together")
    limit = 2**63 - 1
    return RegionSlice(
        name,
        _whole(parameters.get(REGION_OFFSET, 0), REGION_OFFSET, limit),
        _whole(parameters[REGION_SIZE], REGION_SIZE, limit),
    )


def output_form(requested: Mapping[str, Parameters], *, default_binary: bool = False) -> OutputForm:
    """The form of the requested outputs, from the parameters of each.

    Raises:
        RequestError: a parameter of the wrong type or range, or two that exclude each other.
    """
    binary_of: dict[str, bool] = {}
    classes_of: dict[str, int] = {}
    region_of: dict[str, RegionSlice] = {}
    for name, parameters in requested.items():
        where = f"output '{name[:80]}'"
        place = region_slice(parameters, where)
        classes = _whole(parameters.get(CLASSIFICATION, 0), CLASSIFICATION, 2**31 - 1)
        if place is not None and classes:
            raise RequestError(f"{where}: {CLASSIFICATION} beside {REGION}; use one of them")
        if place is not None:
            region_of[name] = place
        if classes:
            classes_of[name] = classes
        if BINARY_OUTPUT in parameters:
            binary_of[name] = flag(parameters[BINARY_OUTPUT], BINARY_OUTPUT)
    return OutputForm(default_binary, binary_of, classes_of, region_of)


def require_known(parameters: Parameters, where: str) -> None:
    """Refuse reserved parameters and too many of them.

    Raises:
        RequestError: naming the parameter.
    """
    if len(parameters) > MAX_PARAMETERS:
        raise RequestError(f"{where}: expected at most {MAX_PARAMETERS} parameters, got {len(parameters)}")
    for key in parameters:
        if key.startswith(RESERVED_PREFIX) and key != EMPTY_FINAL_RESPONSE:
            raise RequestError(f"{where}: parameter '{key[:80]}' is reserved")


def flag(value: object, what: str) -> bool:
    """A parameter that is true or false.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(f"expected true or false as {what}, got {type(value).__name__}")
    return value


def _whole(value: object, what: str, maximum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= maximum:
        got = value if isinstance(value, int) else type(value).__name__
        raise RequestError(f"expected a whole number from 0 to {maximum} as {what}, got {str(got)[:40]}")
    return value
