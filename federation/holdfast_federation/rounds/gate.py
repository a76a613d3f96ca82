"""The gate between the devices' tunnel and the SuperLink: nine calls, by name, and nothing else.

A call names one of nine words, never a path, so there is nothing to normalise and no way to another API of the same
port (Flower's Control API has no authentication of its own). A device speaks only as the node key that it was enrolled
with. Bodies are bounded on both ways; only the headers that Flower needs go through.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import logging
import ssl
from collections.abc import Callable, Mapping

from holdfast.errors import RoundError
from holdfast.wire.fleet import FLEET_PATHS
from holdfast.wire.limits import MAX_FLEET_BODY_BYTES
from holdfast.wire.messages import FleetCallRequest, FleetCallResponse
from holdfast_federation.rounds.superlink import SuperLinkAddress

logger = logging.getLogger(__name__)

REQUEST_HEADERS = ("content-type", "accept", "flwr-public-key", "flwr-timestamp", "flwr-signature")
RESPONSE_HEADERS = ("content-type", "date")
MAX_HEADER_CHARACTERS = 2_048  # a P-384 key in PEM in base64 is about 300
TIMEOUT_S = 30.0  # one call on loopback; a busy SuperLink needs seconds for a large object

NodeKey = Callable[[str], str]  # device id -> PEM of its registered node key; "" if it has none
Address = Callable[[], SuperLinkAddress]  # read per call: the port may change with a restart


class Gate:
    """Forwards the Fleet calls of enrolled devices.

    Args:
        node_key: which node key speaks for a device.
        superlinks: by name; "" is the coordinator's own. Only names in its settings exist.
    """

    def __init__(self, node_key: NodeKey, superlinks: Mapping[str, Address]) -> None:
        self._node_key = node_key
        self._superlinks = superlinks

    def forward(self, device_id: str, request: FleetCallRequest) -> FleetCallResponse:
        """Carry one call of `device_id`. A SuperLink that is down answers 503: try later.

        Raises: RoundError: another path or SuperLink, a body too large, or another node's key.
        """
        self._check(device_id, request)
        headers = {name: request.headers[name] for name in REQUEST_HEADERS if name in request.headers}
        try:
            return _post(self._superlinks[request.superlink](), request.path, headers, request.body)
        except (OSError, http.client.HTTPException, RoundError) as error:
            logger.warning("the SuperLink did not answer", extra={"error": type(error).__name__, "call": request.path})
            return FleetCallResponse(503, {}, b"")

    def _check(self, device_id: str, call: FleetCallRequest) -> None:
        if call.path not in FLEET_PATHS:
            raise RoundError(f"fleet call {call.path[:40]!r} is not carried; allowed: {', '.join(sorted(FLEET_PATHS))}")
        if call.superlink not in self._superlinks:
            raise RoundError(f"unknown SuperLink {call.superlink[:40]!r}; name it in the coordinator's settings first")
        if len(call.body) > MAX_FLEET_BODY_BYTES:
            raise RoundError(f"fleet call has {len(call.body)} bytes; at most {MAX_FLEET_BODY_BYTES} are carried")
        if any(len(value) > MAX_HEADER_CHARACTERS or not value.isprintable() for value in call.headers.values()):
            raise RoundError("a header of the fleet call is too long or holds characters that cannot be printed")
        registered = self._node_key(device_id)
        if not registered or _claimed_key(call.headers) != registered:
            raise RoundError(f"device {device_id} spoke with a node key that is not its own; enrol it again")


def _claimed_key(headers: Mapping[str, str]) -> str:
    try:
        return base64.b64decode(headers.get("flwr-public-key", ""), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _post(address: SuperLinkAddress, path: str, headers: Mapping[str, str], body: bytes) -> FleetCallResponse:
    # a connection per call: a SuperLink that was restarted leaves none behind that is half dead
    context = ssl.create_default_context(cadata=address.certificate.decode("ascii"))
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("POST", f"/v1/fleet/{path}", body, dict(headers))
        answer = connection.getresponse()
        data = answer.read(MAX_FLEET_BODY_BYTES + 1)
        if len(data) > MAX_FLEET_BODY_BYTES:
            raise RoundError("the SuperLink's answer is larger than a fleet call carries")
        kept = {name: answer.headers[name] for name in RESPONSE_HEADERS if name in answer.headers}
        return FleetCallResponse(answer.status, kept, data)
    finally:
        connection.close()
