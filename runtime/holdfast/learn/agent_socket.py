"""The worker's end of its only line: HTTP POST over the agent's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping

from holdfast.errors import RoundError
from holdfast.learn.transport import PostAnswer
from holdfast.wire.limits import MAX_FLEET_BODY_BYTES

TIMEOUT_S = 90.0  # the agent's own call over a weak line takes up to a minute


class AgentSocket:
    """Posts to the agent. A new connection per call: simple, and a call is never half answered. Thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path

    def fleet(self, path: str, headers: Mapping[str, str], body: bytes) -> PostAnswer:
        """A `Post`: one Fleet call through the agent's tunnel."""
        return self._post(f"/fleet/{path}", headers, body)

    def ask(self, path: str, body: bytes) -> dict[str, object]:
        """POST to the agent itself; its JSON object. Raises: RoundError: it said no; the text is a reason code."""
        answer = self._post(path, {"content-type": "application/octet-stream"}, body)
        try:
            fields = json.loads(answer.body)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise RoundError("internal")
        if answer.status != 200:
            raise RoundError(str(fields.get("code", "internal"))[:64])
        return fields

    def sign(self, fields: dict[str, object]) -> bytes:
        """The serialised envelope over a statement. Raises: RoundError: the agent does not sign it."""
        answer = self._post("/sign", {"content-type": "application/json"}, json.dumps(fields).encode())
        if answer.status != 200:
            raise RoundError("not-signed")
        return answer.body

    def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> PostAnswer:
        connection = _UnixConnection(self._path)
        try:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            data = answer.read(MAX_FLEET_BODY_BYTES + 1)
            if len(data) > MAX_FLEET_BODY_BYTES:
                raise OSError("answer too large")
            return PostAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)
        except http.client.HTTPException as error:
            raise OSError("the agent's answer broke off") from error
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
