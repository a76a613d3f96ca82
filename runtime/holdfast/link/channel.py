"""gRPC channels with pinned roots, and calls that end in a message or in one clear error.

The coordinator is always checked under the stable name `coordinator.<trust-domain>`, whatever address was dialled, so
that addresses and tunnels may change. Proxies from the environment are not used: they would see who talks to whom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from holdfast.errors import FormatError, HoldfastError, LinkError, RefusedCallError
from holdfast.link.byte_ledger import ByteLedger
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_FLEET_MESSAGE_BYTES, MAX_MESSAGE_BYTES

T = TypeVar("T")

FLEET = "/holdfast.wire.v1.FleetService/"
ENROLMENT = "/holdfast.wire.v1.EnrolmentService/"
MAX_TUNNEL_BYTES = MAX_FLEET_MESSAGE_BYTES

KEEPALIVE_MS = 60_000  # notices a dead line within two minutes; servers tolerate one ping a minute
MAX_RECONNECT_MS = 5_000  # gRPC's own 2 minutes would come on top of the sender's pauses
MAX_DETAIL_CHARACTERS = 300  # of a coordinator's error text; it ends in logs and terminals

# The coordinator answered and will answer the same again: repeating the call is of no use.
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The device's TLS certificate and key, both PEM."""

    certificate: bytes
    key: bytes


def open_channel(
    address: str, roots: bytes, name: str, identity: ClientIdentity | None = None, *, max_bytes: int = MAX_MESSAGE_BYTES
) -> grpc.Channel:
    """A channel to `address` (host:port) that trusts only `roots` (PEM) and the server name `name`. Does not dial yet.

    Raises:
        LinkError: certificate and key do not fit together, or the roots are no certificates.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.ssl_target_name_override", name),
        ("grpc.max_send_message_length", max_bytes),
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),  # the sender retries; two layers of retries would multiply
        ("grpc.use_local_subchannel_pool", 1),  # a renewed certificate must not ride on the old connection
    ]
    credentials = grpc.ssl_channel_credentials(
        root_certificates=roots,
        private_key=identity.key if identity else None,
        certificate_chain=identity.certificate if identity else None,
    )
    return grpc.secure_channel(address, credentials, options=options)


@dataclass(frozen=True, slots=True)
class Method:
    """One remote method: its path, the purpose its bytes are counted under, its time and size limits."""

    path: str
    purpose: str
    timeout_s: float
    max_bytes: int = MAX_MESSAGE_BYTES


def call(
    channel: grpc.Channel,
    method: Method,
    request: object,
    answer: type[T],
    ledger: ByteLedger,
    explain: Callable[[], str] = lambda: "",
) -> T:
    """Send one request and read its answer.

    Args:
        explain: asked when the coordinator cannot be reached: what the device itself may have wrong.

    Raises:
        RefusedCallError: the coordinator said no.
        LinkError: it could not be reached in time, or answered with something that is not an `answer`.
    """
    received = call_bytes(channel, method, to_bytes(request), ledger, explain)
    try:
        return from_bytes(answer, received, max_bytes=method.max_bytes)
    except FormatError as error:
        raise LinkError(f"the coordinator's answer to {_short(method)} cannot be read: {error}") from error


def call_bytes(
    channel: grpc.Channel,
    method: Method,
    data: bytes,
    ledger: ByteLedger,
    explain: Callable[[], str] = lambda: "",
) -> bytes:
    """As `call`, for a request and an answer in their serialised form."""
    if len(data) > method.max_bytes:
        raise RefusedCallError(
            f"{_short(method)} request has {len(data)} bytes; at most {method.max_bytes} may be sent"
        )
    ledger.add(method.purpose, len(data))
    remote = channel.unary_unary(method.path, request_serializer=_as_is, response_deserializer=_as_is)
    try:
        received: bytes = remote(data, timeout=method.timeout_s)
    except grpc.RpcError as error:
        raise _explained(error, method, explain) from error
    return received


def _as_is(data: bytes) -> bytes:
    return data


def _explained(error: grpc.RpcError, method: Method, explain: Callable[[], str]) -> HoldfastError:
    failed: object = error  # the stubs do not know that the error of a unary call is a Call as well
    code = failed.code() if isinstance(failed, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (failed.details() or "") if isinstance(failed, grpc.Call) else ""
    text = "".join(char if char.isprintable() else " " for char in details[:MAX_DETAIL_CHARACTERS])
    if code in REFUSALS:
        return RefusedCallError(f"the coordinator refused {_short(method)}: {text or code.name}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LinkError(f"the coordinator is too busy for {_short(method)}: {text}")
    hint = explain() if code is grpc.StatusCode.UNAVAILABLE else ""
    cause = f"; {hint}" if hint else ""
    return LinkError(f"the coordinator cannot be reached for {_short(method)} ({code.name}: {text}){cause}")


def _short(method: Method) -> str:
    return method.path.rpartition("/")[2]
