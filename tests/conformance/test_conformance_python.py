"""Python clients that need an environment of their own: KServe's, and gRPC's reflection client."""

from __future__ import annotations

import json

from tests.conformance.conftest import Target
from tests.conformance.programs import HERE, output, python_of

VENV = ".venv-conformance"


def test_kserve_clients_get_what_they_asked_for(plain: Target) -> None:
    told = json.loads(output([python_of(VENV), HERE / "kserve_client.py", str(plain)]).splitlines()[-1])

    text = "Request for unknown model: 'absent' is not found"
    assert told == {"grpc": ["NOT_FOUND", text], "http/1.1": ["404", text], "http/2": ["404", text]}


def test_reflection_is_enough_to_infer(plain: Target) -> None:
    told = json.loads(output([python_of(VENV), HERE / "reflection_client.py", str(plain)]).splitlines()[-1])

    assert "grpc.health.v1.Health" in told["services"]
    assert told["name"] == "holdfast"
    assert told["y"] == [2, 4, 6, 8]
    assert told["methods"] > 10
    assert told["absent"] == []
