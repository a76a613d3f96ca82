"""The command line's side of the operator's API: HTTP over the unix socket in the state folder.

Errors come back as the type and code that the coordinator raised, so that the command line shows them alike.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from holdfast.errors import HoldfastError, StateError

SOCKET_NAME = "admin.sock"
TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 268_435_456  # 256 MiB: an evidence export or a model; a fleet of 10,000 is 10 MiB


class AdminClient:
    """Calls the coordinator that runs on one state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def get(self, path: str) -> dict[str, object]:
        """GET a JSON object. Raises as `call`."""
        return _object(self.call("GET", path))

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """POST a JSON object, get one back. Raises as `call`."""
        return _object(self.call("POST", path, json.dumps(body).encode()))

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One request with raw bytes in and out.

        Raises:
            StateError: no coordinator runs on the folder, or it went away.
            HoldfastError: what the coordinator answered.
        """
        try:
            with _connected(self._state / SOCKET_NAME) as connection:
                connection.request(method, path, body or None)
                response = connection.getresponse()
                data = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise StateError(
                f"no coordinator answers on {self._state}; start it with: holdfast coordinator run {self._state}"
            ) from error
        if len(data) > MAX_ANSWER_BYTES:
            raise StateError(f"the coordinator's answer is larger than {MAX_ANSWER_BYTES} bytes")
        if response.status != 200:
            raise _error(response.status, data)
        return data


@contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """A name for a unix socket that fits the kernel's 107 bytes, however deep its folder lies."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


@contextmanager
def _connected(path: Path) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("coordinator", timeout=TIMEOUT_S)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(TIMEOUT_S)
        with short_socket_path(path) as name:
            connection.sock.connect(name)
        yield connection
    finally:
        connection.close()


def _object(data: bytes) -> dict[str, object]:
    value: object = json.loads(data)
    if not isinstance(value, dict):
        raise RuntimeError("the coordinator answered something that is not a JSON object")
    return value


def _error(status: int, data: bytes) -> HoldfastError:
    try:
        error = json.loads(data)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return StateError(f"the coordinator answered with HTTP status {status}; is it of another version?")
    for kind in _kinds(HoldfastError):
        # one with more constructor arguments than its text cannot be rebuilt here
        if kind.code == code and kind.__init__ is HoldfastError.__init__:
            return kind(message)
    return HoldfastError(message)


def _kinds(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
