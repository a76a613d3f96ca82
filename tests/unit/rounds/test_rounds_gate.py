"""The gate carries nine calls for a device's own node key, and nothing else."""

from __future__ import annotations

import base64

import pytest

from holdfast.errors import RoundError
from holdfast.trust.keystore import generate_flower_node_key
from holdfast.wire.fleet import FLEET_PATHS
from holdfast.wire.limits import MAX_FLEET_BODY_BYTES
from holdfast.wire.messages import FleetCallRequest
from holdfast_federation.rounds.gate import Gate
from holdfast_federation.rounds.node_keys import node_key_pem
from holdfast_federation.rounds.superlink import SuperLinkAddress

MINE, OTHER = (node_key_pem(generate_flower_node_key()[1].decode()) for _ in range(2))
NOBODY = SuperLinkAddress("127.0.0.1", 1, b"")


def call(path: str = "pull-messages", *, key: str = MINE, superlink: str = "", body: bytes = b"") -> FleetCallRequest:
    return FleetCallRequest(superlink, path, {"flwr-public-key": base64.b64encode(key.encode()).decode()}, body)


def gate() -> Gate:
    return Gate({"a": MINE, "b": OTHER, "none": ""}.__getitem__, {"": lambda: NOBODY})


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//pull-messages",
        "/v1/fleet/pull-messages",
        "../control/start-run",
        "pull-messages/../get-fab",
        "pull-messages/",
        "pull-messages?x=1",
        "%70ull-messages",
        "pull-messages\r\nHost: x",
        "PULL-MESSAGES",
        "get-fab",
        "register-node",
        "unregister-node",
        "start-run",
    ],
)
def test_another_path_is_refused(path: str):
    with pytest.raises(RoundError, match="not carried"):
        gate().forward("a", call(path))


def test_there_are_exactly_nine_paths_and_none_brings_code():
    assert len(FLEET_PATHS) == 9
    assert not {"get-fab", "register-node", "unregister-node"} & FLEET_PATHS


def test_a_device_may_not_speak_as_another_node():
    with pytest.raises(RoundError, match="not its own"):
        gate().forward("a", call(key=OTHER))


def test_a_device_without_a_node_key_is_refused():
    with pytest.raises(RoundError, match="not its own"):
        gate().forward("none", call(key=""))


def test_a_superlink_that_the_settings_do_not_name_is_refused():
    with pytest.raises(RoundError, match="unknown SuperLink"):
        gate().forward("a", call(superlink="evil"))


def test_a_body_above_the_bound_is_refused():
    with pytest.raises(RoundError, match="at most"):
        gate().forward("a", call(body=b"\0" * (MAX_FLEET_BODY_BYTES + 1)))


def test_a_header_with_a_line_break_is_refused():
    request = call()
    smuggled = FleetCallRequest("", request.path, {**request.headers, "accept": "x\r\ny: z"}, b"")

    with pytest.raises(RoundError, match="header"):
        gate().forward("a", smuggled)


def test_a_superlink_that_is_down_means_try_later(tmp_path):
    assert gate().forward("a", call()).status == 503
