"""The OpenAPI document of the HTTP side, made from the table of routes.

Rules: a path is here if and only if it is answered; every answer that is not 200 is an `Error`. Source: OpenAPI 3.1.
"""

from __future__ import annotations

import re

from holdfast import __version__
from holdfast.serving.route_table import ROUTES, Route

Value = dict[str, object]

_TEXT: Value = {"type": "string"}
_WHOLE: Value = {"type": "integer"}
_PARAMETERS: Value = {"type": "object", "additionalProperties": True}
_SHAPE: Value = {"type": "array", "items": _WHOLE}


def _object(required: tuple[str, ...], **properties: Value) -> Value:
    return {"type": "object", "required": list(required), "properties": properties}


def _list_of(name: str) -> Value:
    return {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}


SCHEMAS: dict[str, Value] = {
    "Error": _object(("error",), error=_TEXT),
    "Liveness": _object(("live",), live={"type": "boolean"}),
    "Readiness": _object(("ready",), ready={"type": "boolean"}),
    "ModelReadiness": _object(("name", "ready"), name=_TEXT, ready={"type": "boolean"}),
    "ServerMetadata": _object(
        ("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions={"type": "array", "items": _TEXT}
    ),
    "TensorMetadata": _object(("name", "datatype", "shape"), name=_TEXT, datatype=_TEXT, shape=_SHAPE),
    "ModelMetadata": _object(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions={"type": "array", "items": _TEXT},
        platform=_TEXT,
        inputs=_list_of("TensorMetadata"),
        outputs=_list_of("TensorMetadata"),
    ),
    "ModelConfig": _object(("name", "platform", "backend", "max_batch_size", "input", "output"), name=_TEXT),
    "ModelStatistics": _object(("model_stats",), model_stats={"type": "array", "items": {"type": "object"}}),
    "InputTensor": _object(
        ("name", "datatype", "shape"),
        name=_TEXT,
        datatype=_TEXT,
        shape=_SHAPE,
        parameters=_PARAMETERS,
        data={"type": "array"},
    ),
    "RequestedOutput": _object(("name",), name=_TEXT, parameters=_PARAMETERS),
    "InferRequest": _object(
        ("inputs",),
        id=_TEXT,
        parameters=_PARAMETERS,
        inputs=_list_of("InputTensor"),
        outputs=_list_of("RequestedOutput"),
    ),
    "OutputTensor": _object(
        ("name", "datatype", "shape"),
        name=_TEXT,
        datatype=_TEXT,
        shape=_SHAPE,
        parameters=_PARAMETERS,
        data={"type": "array"},
    ),
    "InferResponse": _object(
        ("model_name", "model_version", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_list_of("OutputTensor"),
    ),
    "IndexRequest": _object((), ready={"type": "boolean"}),
    "IndexEntry": _object(("name", "version", "state"), name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT),
    "RepositoryIndex": _list_of("IndexEntry"),
    "ControlRequest": _object((), parameters=_PARAMETERS),
    "Region": _object(("name", "key", "offset", "byte_size"), name=_TEXT, key=_TEXT, offset=_WHOLE, byte_size=_WHOLE),
    "Regions": _list_of("Region"),
    "RegionRequest": _object(("key", "byte_size"), key=_TEXT, offset=_WHOLE, byte_size=_WHOLE),
}


def document() -> Value:
    """The whole document, JSON-ready."""
    paths: dict[str, Value] = {}
    for route in ROUTES:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast: the Open Inference Protocol over HTTP",
            "version": __version__,
            "description": "JSON; tensors also as raw bytes after the JSON, whose length is then in the header "
            "Inference-Header-Content-Length. Bodies may be gzip or deflate, both ways.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> Value:
    error = {"description": "Why not.", "content": _json("Error")}
    operation: Value = {"summary": route.summary, "responses": {"default": error}}
    if route.not_offered:
        operation["responses"] = {"501": error}
    else:
        good: Value = {"description": "It went well."}
        if route.gives:
            good["content"] = _json(route.gives)
        operation["responses"] = {"200": good, "default": error}
    if route.takes:
        operation["requestBody"] = {"content": _json(route.takes), "required": route.takes == "InferRequest"}
    names = re.findall(r"\{(\w+)\}", route.template)
    if names:
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]
    return operation


def _json(name: str) -> Value:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
