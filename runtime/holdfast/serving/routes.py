"""The HTTP routes: (method, path, headers, body) in, an answer out, for every front. No sockets, no framing.

Rules: what stands in the table below is what is answered and what the OpenAPI document says; a path that exists under
another method is 405; errors leave through `status.py`. This is one of the three doors where unknown errors are caught
(the rpc edge). Loading a model waits: a front with a loop asks `is_slow` and answers elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from holdfast.errors import OverloadedError, RequestError, UnauthenticatedError, UnsupportedError
from holdfast.inference.tensors import TensorResponse
from holdfast.serving import compression, metrics, oip_json, openapi
from holdfast.serving.authorisation import Action
from holdfast.serving.control import Control
from holdfast.serving.descriptions import Value
from holdfast.serving.parameters import InferCall
from holdfast.serving.route_table import ROUTES
from holdfast.serving.route_tree import RouteTree
from holdfast.serving.rpc import CallContext, caller_of
from holdfast.serving.service import InferenceService
from holdfast.serving.status import status_of
from holdfast.serving.trace_context import trace_context

HEADER_LENGTH_NAME = "Inference-Header-Content-Length"
HEADER_LENGTH = HEADER_LENGTH_NAME.lower()
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
CLOSE = "Connection: close"  # of the last answer on a connection


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer before it is framed."""

    status: int
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)

    def head(self, *more: str) -> str:
        """Its head in HTTP/1.1, `more` fields last, without the empty line that ends it."""
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        if self.body:
            lines.append(f"Content-Type: {self.content_type}")
        lines.append(f"Content-Length: {len(self.body)}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join((*lines, *more))


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One request: what its path named, what it carries, and where it came from. Header names are lower case."""

    names: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | memoryview
    context: CallContext


Handler = Callable[[HttpCall], HttpResponse]


class Routes:
    """Answers HTTP requests. Thread-safe, never changes."""

    def __init__(self, control: Control, service: InferenceService) -> None:
        self._control = control
        self._service = service
        self._tree: RouteTree[Handler] = RouteTree()
        handlers = self._handlers()
        for route in ROUTES:
            self._tree.add(route, _refusal(route.not_offered) if route.not_offered else handlers[route.name])

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | memoryview, context: CallContext
    ) -> HttpResponse:
        """The answer to one request, whatever it is. `path` is without the query; `body` without its content coding."""
        try:
            response = self._answer(method, path, headers, body, context)
        except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
            response = failure(error)
        return self.finished(response, headers)

    def is_slow(self, method: str, path: str) -> bool:
        """Whether the answer may have to wait for a disk or a child process."""
        found = self._tree.find(path, method)
        return found is not None and found.route is not None and found.route.is_slow

    def infer_target(self, method: str, path: str) -> tuple[str, str] | None:
        """Model and version if this is an inference request, for a front that schedules by itself."""
        found = self._tree.find(path, method)
        if found is None or found.route is None or found.route.name != "infer":
            return None
        return found.names["model"], found.names.get("version", "")

    def decode_infer(
        self, target: tuple[str, str], headers: Mapping[str, str], body: bytes | memoryview, context: CallContext
    ) -> InferCall:
        """The request of an inference call.

        Raises:
            AccessError: the caller may not infer.
            RequestError: what is wrong with it.
        """
        if self._control.is_guarded:
            self._control.check(caller_of(context), Action.INFER)
        name, version = target
        regions = self._control.regions() if context.is_admin or context.is_local else None
        try:
            header_length = header_length_of(headers)
            if header_length == 0:
                return oip_json.decode_raw_infer(body, self._service.model(name, version), version)
            return oip_json.decode_infer(body, header_length, name, version, regions)
        except RequestError as error:
            error.about = target
            raise

    def encode_infer(self, call: InferCall, response: TensorResponse) -> HttpResponse:
        """The answer to an inference call.

        Raises:
            RequestError: an output cannot go out as it was asked for.
        """
        return infer_answer(oip_json.encode_response(response, call.form, self._control.regions()))

    def finished(self, response: HttpResponse, headers: Mapping[str, str]) -> HttpResponse:
        """The answer with what every answer gets: the trace context, and the coding that the client asked for."""
        added = dict(trace_context(headers))
        body = response.body
        if len(body) >= compression.MIN_BYTES and "accept-encoding" in headers:
            coding = compression.accepted(headers["accept-encoding"])
            if coding:
                body = compression.compress(body, coding)
                added["Content-Encoding"] = coding
        return replace(response, body=body, headers={**response.headers, **added}) if added else response

    def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | memoryview, context: CallContext
    ) -> HttpResponse:
        found = self._tree.find(path, method)
        if found is None:
            return HttpResponse(404, oip_json.error_body(f"no such route: {path[:200]}"))
        if found.handler is None:
            text = f"expected {' or '.join(found.methods)} for this route, got {method[:20]}"
            return HttpResponse(405, oip_json.error_body(text), headers={"Allow": ", ".join(found.methods)})
        return found.handler(HttpCall(found.names, headers, body, context))

    def _handlers(self) -> dict[str, Handler]:
        control, service = self._control, self._service
        return {
            "live": lambda call: HttpResponse(200, b'{"live": true}'),
            "ready": lambda call: _readiness({}, is_ready=service.is_ready),
            "server": self._reading(lambda call: control.server_metadata()),
            "model": self._reading(lambda call: control.model_metadata(*_target(call))),
            "config": self._reading(lambda call: control.model_config(*_target(call))),
            "stats": self._reading(lambda call: control.statistics(*_target(call))),
            "model_ready": self._model_ready,
            "infer": self._infer,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "region_status": self._region_status,
            "region_register": self._region_register,
            "region_unregister": self._region_unregister,
            "cuda_unregister": self._cuda_unregister,
            "metrics": self._metrics,
            "openapi": lambda call: HttpResponse(200, json.dumps(openapi.document()).encode()),
        }

    def _reading(self, answer: Callable[[HttpCall], Value]) -> Handler:
        def guarded(call: HttpCall) -> HttpResponse:
            self._control.check(caller_of(call.context), Action.READ)
            return HttpResponse(200, json.dumps(answer(call)).encode())

        return guarded

    def _infer(self, call: HttpCall) -> HttpResponse:
        target = _target(call)
        return self.encode_infer(
            *self._service.infer(lambda: self.decode_infer(target, call.headers, call.body, call.context))
        )

    def _model_ready(self, call: HttpCall) -> HttpResponse:
        self._control.check(caller_of(call.context), Action.READ)
        name, version = _target(call)
        return _readiness({"name": name}, is_ready=self._service.is_model_ready(name, version))

    def _index(self, call: HttpCall) -> HttpResponse:
        self._control.check(caller_of(call.context), Action.READ)
        ready_only = _fields(call).get("ready", False)
        if not isinstance(ready_only, bool):
            raise RequestError("expected true or false as ready")
        return HttpResponse(200, json.dumps(self._control.repository_index(ready_only=ready_only)).encode())

    def _load(self, call: HttpCall) -> HttpResponse:
        self._control.load(call.names["model"], _parameters(call), caller_of(call.context))
        return HttpResponse(200)

    def _unload(self, call: HttpCall) -> HttpResponse:
        self._control.unload(call.names["model"], _parameters(call), caller_of(call.context))
        return HttpResponse(200)

    def _region_status(self, call: HttpCall) -> HttpResponse:
        regions = self._control.region_status(call.names.get("region", ""), caller_of(call.context))
        return HttpResponse(200, json.dumps(list(regions.values())).encode())

    def _region_register(self, call: HttpCall) -> HttpResponse:
        self._control.register_region(call.names["region"], _fields(call), caller_of(call.context))
        return HttpResponse(200)

    def _region_unregister(self, call: HttpCall) -> HttpResponse:
        self._control.unregister_region(call.names.get("region", ""), caller_of(call.context))
        return HttpResponse(200)

    def _cuda_unregister(self, call: HttpCall) -> HttpResponse:
        """Nothing: no such region was ever registered. Triton's clients begin with this, whatever they do next."""
        self._control.check(caller_of(call.context), Action.READ)
        return HttpResponse(200)

    def _metrics(self, call: HttpCall) -> HttpResponse:
        self._control.check(caller_of(call.context), Action.READ)
        return HttpResponse(200, self._control.metrics().encode(), metrics.CONTENT_TYPE)


def infer_answer(body: oip_json.JsonBody) -> HttpResponse:
    """An answer to an inference call."""
    if body.header_length is None:
        return HttpResponse(200, body.data)
    return HttpResponse(200, body.data, BINARY_TYPE, {HEADER_LENGTH_NAME: str(body.header_length)})


def failure(error: BaseException) -> HttpResponse:
    """The answer that tells an error. Call it inside the `except` that caught it."""
    status = status_of(error)
    headers = {"Holdfast-Code": status.code}
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return HttpResponse(status.http, oip_json.error_body(status.text), headers=headers)


def _refusal(what: str) -> Handler:
    def refuse(_call: HttpCall) -> HttpResponse:
        raise UnsupportedError(f"{what} is not offered by this server")

    return refuse


def _readiness(of: Mapping[str, str], *, is_ready: bool) -> HttpResponse:
    """Triton's clients look at the status, KServe's at the body."""
    return HttpResponse(200 if is_ready else 400, json.dumps({**of, "ready": is_ready}).encode())


def _target(call: HttpCall) -> tuple[str, str]:
    return call.names.get("model", ""), call.names.get("version", "")


def _fields(call: HttpCall) -> Mapping[str, object]:
    """The body as an object; an empty body is an empty one."""
    return oip_json.as_object(oip_json.parse(call.body), "the request") if call.body else {}


def _parameters(call: HttpCall) -> Mapping[str, object]:
    return oip_json.as_object(_fields(call).get("parameters", {}), "parameters")


def header_length_of(headers: Mapping[str, str]) -> int | None:
    """How long the JSON before raw tensors is; None if there are none, 0 if the body is one raw tensor.

    Raises:
        RequestError: not a whole number.
    """
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(f"expected a whole number as Inference-Header-Content-Length, got {text[:40]!r}")
    return int(text)
