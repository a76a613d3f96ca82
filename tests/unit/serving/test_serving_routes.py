"""The HTTP routes without a socket: the table is what is answered, and what the OpenAPI document says."""

from __future__ import annotations

import gzip
import json
import re
import zlib

import pytest
from tests.fakes import served_models as models
from tests.fakes.offer import ADMIN, counter
from tests.fakes.serving import pool_of

from holdfast.serving import compression
from holdfast.serving.authorisation import rules_of
from holdfast.serving.route_table import ROUTES, Route
from holdfast.serving.shared_memory import SharedMemory

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def desk() -> object:
    return counter(pool_of({"m": models.scale(2.0), "stats": models.scale(3.0)}))


def filled(template: str) -> str:
    return template.format(model="m", version="1", region="r")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
def test_each_route_of_the_table_is_answered(desk, route: Route) -> None:
    response = desk.http(route.method, filled(route.template), BODY if route.name == "infer" else b"")

    if route.not_offered:
        assert response.status == 501
        assert route.not_offered in json.loads(response.body)["error"]
    elif "admin socket" in route.summary:
        assert response.status == 403
    else:
        assert response.status == 200, response.body


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.template}")
def test_other_methods_are_refused_and_told(desk, route: Route) -> None:
    methods = {other.method for other in ROUTES if other.template == route.template}

    response = desk.http("DELETE", filled(route.template))

    assert response.status == 405
    assert set(response.headers["Allow"].split(", ")) == methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/models",
        "/v2/models/m/nothing",
        "/v2/models//infer",
        "/v2/models/m/versions/1/infer/x",
        "/v2/" * 99,
    ],
)
def test_path_that_is_no_route_is_not_found(desk, path: str) -> None:
    assert desk.http("GET", path).status == 404


def test_written_out_segment_goes_before_a_name_and_gives_way_to_one(desk) -> None:
    assert "model_stats" in json.loads(desk.http("GET", "/v2/models/stats").body)
    assert json.loads(desk.http("POST", "/v2/models/stats/infer", BODY).body)["outputs"][0]["data"][0] == 3.0


def test_head_is_answered_as_get(desk) -> None:
    assert desk.http("HEAD", "/v2").status == 200


def test_document_names_exactly_the_routes_and_its_references_exist(desk) -> None:
    document = json.loads(desk.http("GET", "/openapi.json").body)

    described = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert described == {(route.method, route.template) for route in ROUTES}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    for path, verbs in document["paths"].items():
        for operation in verbs.values():
            named = {parameter["name"] for parameter in operation.get("parameters", [])}
            assert named == set(re.findall(r"\{(\w+)\}", path))


@pytest.mark.parametrize("route", [r for r in ROUTES if r.gives and "admin" not in r.summary], ids=lambda r: r.template)
def test_answer_has_what_the_document_requires(desk, route: Route) -> None:
    document = json.loads(desk.http("GET", "/openapi.json").body)
    schema = document["components"]["schemas"][route.gives]

    answer = json.loads(desk.http(route.method, filled(route.template), BODY if route.name == "infer" else b"").body)

    if schema["type"] == "array":
        name = schema["items"]["$ref"].rpartition("/")[2]
        for entry in answer:
            assert set(document["components"]["schemas"][name]["required"]) <= entry.keys()
    else:
        assert set(schema["required"]) <= answer.keys()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models/m/ready", 200, {"name": "m", "ready": True}),
        ("/v2/models/m/versions/2/ready", 400, {"name": "m", "ready": False}),
    ],
)
def test_readiness_is_told_by_status_and_by_body(desk, path: str, status: int, body: dict[str, object]) -> None:
    response = desk.http("GET", path)

    assert (response.status, json.loads(response.body)) == (status, body)


def test_trace_context_and_id_pass_through(desk) -> None:
    body = BODY.replace(b'{"inputs"', b'{"id": "q-7", "inputs"')

    response = desk.http("POST", "/v2/models/m/infer", body, {"traceparent": TRACE})

    assert response.headers["traceparent"] == TRACE
    assert json.loads(response.body)["id"] == "q-7"
    refused = desk.http("POST", "/v2/models/absent/infer", body, {"traceparent": TRACE})
    assert refused.headers["traceparent"] == TRACE


@pytest.mark.parametrize("value", ["00-1-2-3", TRACE.upper(), TRACE + "\r\nSet-Cookie: a=b", "x" * 9_000, ""])
def test_trace_context_that_is_none_is_dropped(desk, value: str) -> None:
    assert "traceparent" not in desk.http("GET", "/v2", headers={"traceparent": value}).headers


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, gzip;q=0.5, deflate;q=0.9", "deflate"),
        ("gzip;q=0", ""),
        ("gzip;q=nonsense", ""),
        ("identity", ""),
        ("*", ""),
    ],
)
def test_answer_is_coded_as_asked(desk, header: str, coding: str) -> None:
    plain = desk.http("GET", "/openapi.json").body

    response = desk.http("GET", "/openapi.json", headers={"accept-encoding": header})

    assert response.headers.get("Content-Encoding", "") == coding
    expand = {"gzip": gzip.decompress, "deflate": zlib.decompress, "": bytes}[coding]
    assert expand(response.body) == plain


def test_small_answer_is_not_coded(desk) -> None:
    assert len(desk.http("GET", "/v2").body) < compression.MIN_BYTES
    assert "Content-Encoding" not in desk.http("GET", "/v2", headers={"accept-encoding": "gzip"}).headers


def test_guarded_routes_want_a_token_except_liveness() -> None:
    desk = counter(pool_of({"m": models.scale(2.0)}), rules_of(tokens=[TOKEN]))
    open_to_all = {"live", "ready", "openapi"}

    for route in ROUTES:
        if route.not_offered:
            continue
        body = BODY if route.name == "infer" else b""
        response = desk.http(route.method, filled(route.template), body)
        expected = {200} if route.name in open_to_all else {401, 403}
        assert response.status in expected, route
        if response.status == 401:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            good = desk.http(route.method, filled(route.template), body, {"authorization": f"Bearer {TOKEN}"})
            assert good.status == 200, (route, good.body)


class Shelf:
    """A repository that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def index(self) -> list[object]:
        return []

    def load(self, name: str) -> None:
        self.told.append(("load", name))

    def unload(self, name: str) -> None:
        self.told.append(("unload", name))


@pytest.mark.parametrize(
    "parameters",
    [{"config": "{}"}, {"file:1/model.onnx": "AAAA"}, {"config": 1, "file:": 2}],
)
def test_overrides_are_refused_even_to_the_admin(parameters: dict[str, object]) -> None:
    shelf = Shelf()
    desk = counter(pool_of({}), rules_of(model_control=True), shelf)  # type: ignore[arg-type]  # a fake

    response = desk.http(
        "POST", "/v2/repository/models/m/load", json.dumps({"parameters": parameters}).encode(), {}, ADMIN
    )

    assert response.status == 403
    assert shelf.told == []


def test_admin_loads_and_unloads() -> None:
    shelf = Shelf()
    desk = counter(pool_of({}), rules_of(model_control=True), shelf)  # type: ignore[arg-type]  # a fake

    for verb in ("load", "unload"):
        assert desk.http("POST", f"/v2/repository/models/m%20x/{verb}", b"", {}, ADMIN).status == 200

    assert shelf.told == [("load", "m x"), ("unload", "m x")]
    assert desk.routes.is_slow("POST", "/v2/repository/models/m/load")
    assert not desk.routes.is_slow("POST", "/v2/models/m/infer")


@pytest.mark.parametrize(
    "fields",
    [
        {"key": "../etc/passwd", "byte_size": 1},
        {"key": "/a/b", "byte_size": 1},
        {"key": "..", "byte_size": 1},
        {"key": "k\0x", "byte_size": 1},
        {"key": 7, "byte_size": 1},
        {"key": "k", "byte_size": -1},
        {"key": "k", "byte_size": 2**63},
        {"key": "k", "byte_size": 1.5},
        {"key": "k", "byte_size": True},
        {"key": "k", "offset": 2**62, "byte_size": 2**62},
    ],
)
def test_region_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    regions = SharedMemory()
    desk = counter(pool_of({}), rules_of(shared_memory=True), None, regions)

    response = desk.http("POST", "/v2/systemsharedmemory/region/r/register", json.dumps(fields).encode(), {}, ADMIN)

    assert response.status == 400
    assert regions.status() == {}
