"""The operator's API: JSON over HTTP, one function per route; rooms add theirs as a list of `AdminRoute`.

It is reached only through a unix socket that its owner alone can open; there is no other login. Bodies are bounded
before they are read into memory. This door maps errors by the coordinator's one table; to the operator, who owns the
folder, errors of the disk are told in full.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from holdfast.errors import FormatError, HoldfastError
from holdfast_federation.status import status_of

MAX_BODY_BYTES = 65_536  # 64 KiB: a route that takes documents or models states its own bound


@dataclass(frozen=True, slots=True)
class AdminCall:
    """One request: what stood in the path, after the question mark, and in the body."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """The body as a JSON object; an empty body is an empty object.

        Raises:
            FormatError: it is something else.
        """
        try:
            value: object = json.loads(self.body) if self.body else {}
        except (ValueError, RecursionError) as error:
            raise FormatError("body is not JSON; expected one object") from error
        if not isinstance(value, dict):
            raise FormatError(f"body is a JSON {type(value).__name__}; expected one object")
        return value


@dataclass(frozen=True, slots=True)
class AdminRoute:
    """`call` runs in a worker thread and returns something that JSON can say, or bytes to send as they are."""

    method: str
    path: str
    call: Callable[[AdminCall], object]
    max_body_bytes: int = MAX_BODY_BYTES


def admin_app(routes: Sequence[AdminRoute]) -> Starlette:
    """The ASGI application over these routes."""
    return Starlette(routes=[Route(each.path, _endpoint(each), methods=[each.method]) for each in routes])


def text_field(body: Mapping[str, object], name: str, default: str | None = None) -> str:
    """A text out of a JSON object.

    Raises:
        FormatError: it is missing without a default, or not a text.
    """
    value = body.get(name, default)
    if not isinstance(value, str):
        raise FormatError(f"field {name!r} is missing or not a text")
    return value


def int_field(body: Mapping[str, object], name: str, default: int | None = None) -> int:
    """A whole number out of a JSON object.

    Raises:
        FormatError: it is missing without a default, or not a whole number.
    """
    value = body.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"field {name!r} is missing or not a whole number")
    return value


def _endpoint(route: AdminRoute) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            body = await _read(request, route.max_body_bytes)
            call = AdminCall(dict(request.path_params), dict(request.query_params), body)
            result = await run_in_threadpool(route.call, call)
        except Exception as error:  # noqa: BLE001  # the operator's door; status_of logs what is not ours
            status = status_of(error)
            text = str(error) if isinstance(error, HoldfastError) else status.text
            return _json({"error": {"code": status.code, "message": text}}, status.http)
        if isinstance(result, bytes):
            return Response(result, media_type="application/octet-stream")
        return _json(result, 200)

    return endpoint


async def _read(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise FormatError(f"body is larger than {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)


def _json(value: object, status: int) -> Response:
    return Response(json.dumps(value, sort_keys=True), status, media_type="application/json")
