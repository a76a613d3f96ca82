"""The table of other servers, and the requests that it rests on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from benchmarks.harness import Comparison, NotRun, Options, Outcome, Spread, _record
from benchmarks.http_request import HttpRequest, list_request, oip_json_request, oip_request, raw_request
from benchmarks.peers.install import REQUIREMENTS, reason_against
from benchmarks.peers_table import CELLS, NAME, peers_table
from benchmarks.serving_models import MODELS
from benchmarks.serving_peers import PEERS

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.serving.server import Address, Server, ServerOptions


@pytest.fixture
def address() -> Iterator[str]:
    pool = ModelPool()
    pool.swap("tiny0", "1", prepare_session(ModelSource(MODELS["tiny0"]())))
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0)))
    yield str(server.start())
    server.stop(2.0)


@pytest.mark.parametrize("make", [oip_request, oip_json_request])
def test_requests_over_http_get_the_models_answer(address: str, make: object) -> None:
    request = make("tiny0")  # type: ignore[operator]  # one of the two makers

    request.check(address)


def test_requests_over_http_see_another_answer(address: str) -> None:
    request = oip_request("tiny0")
    other = HttpRequest(request.path, request.headers, request.body, request.expected + 1, request.read)

    with pytest.raises(RuntimeError, match="another tensor"):
        other.check(address)
    with pytest.raises(RuntimeError, match="HTTP status 404"):
        raw_request("tiny0").check(address)


def test_requests_of_peers_carry_ones() -> None:
    assert np.frombuffer(raw_request("tiny0").body, np.float32).tolist() == [1.0] * 16
    assert json.loads(list_request("tiny0").body) == {"x": [[1.0] * 16]}
    assert raw_request("tiny0").lua().count("\\") == 64


def test_peers_table_has_a_line_per_server_and_the_reasons_of_the_others() -> None:
    outcomes: list[Outcome] = [NotRun("peers/Other", "it does not install")]
    for index, cell in enumerate(CELLS):
        for metric, a, b in (
            ("server_cpu_us", 1234.0, 5.67),
            ("requests_per_s", 800.0, 150_000.0),
            ("pss_mb", 150, 60),
        ):
            a_spread, b_spread = (Spread(value, value + index, value) for value in (a, b))
            outcomes.append(Comparison(f"peers/{cell}", metric, "A server", "Ours", a_spread, b_spread, None, 5))

    lines = peers_table({NAME: _record(outcomes, {}, Options())}).splitlines()

    assert lines[2].startswith("| Ours | 5.67 us, 150,000/s | 6.67 us")
    assert lines[3].startswith("| A server | 1,234 us, 800/s |")
    assert lines[3].endswith("| 151 MB |")
    assert lines[-1] == "Other: not run, it does not install."


def test_peers_table_says_how_to_make_it() -> None:
    assert "benchmarks.peers.install" in peers_table({})


def test_peers_are_installed_from_pinned_requirements() -> None:
    assert {peer.environment for peer in PEERS if peer.environment} == set(REQUIREMENTS)
    assert all("==" in requirements[0] for requirements in REQUIREMENTS.values())
    assert reason_against("no-such-peer").startswith("not installed")
