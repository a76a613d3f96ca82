"""@grpc/grpc-js: a gRPC stack without C core, on Node's own HTTP/2."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conformance.conftest import Target
from tests.conformance.programs import ADVICE, JAVASCRIPT, PROTOS, output, program


def run(target: Target, scenario: str) -> dict[str, Any]:
    """The figures of a scenario of client.js, in which every answer was checked."""
    if not (JAVASCRIPT / "node_modules").is_dir():
        pytest.fail(f"the JavaScript client is not installed: {ADVICE}")
    config = {"target": str(target), "protos": str(PROTOS)}
    if target.authority is not None:
        config["ca"] = str(target.authority)
    told = output([program("node"), JAVASCRIPT / "client.js", scenario, json.dumps(config)])
    figures: dict[str, Any] = json.loads(told.splitlines()[-1])
    return figures


EXPECTED: dict[str, dict[str, Any]] = {
    "unary": {"calls": 2000},
    "compressed": {"calls": 200},
    "large": {"bytes": [602_112, 602_112, 6_400_000]},
    "large_compressed": {"bytes": 602_112},
    "stream": {"answers": 200},
    "stream_with_large_messages": {"answers": 5},
    "deadline": {},
    "cancellation": {"calls": 100},
    "error_text": {"details": "Request for unknown model: '50 % größer\n'' is not found"},
    "unimplemented": {"details": "CUDA shared memory (models run on the CPU) is not offered by this server"},
    "trace": {},
    "metadata": {},
    "keepalive": {},
    "health": {"check": 1, "watch": 1},
    "explicit_contents": {},
}


@pytest.mark.parametrize("scenario", sorted(EXPECTED))
def test_javascript_client_gets_what_it_asked_for(target: Target, scenario: str) -> None:
    assert run(target, scenario) == EXPECTED[scenario]


def test_javascript_client_finds_the_services_by_reflection(plain: Target) -> None:
    services = run(plain, "reflection")["services"]

    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
