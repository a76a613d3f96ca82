"""The knobs of serving: reachable by file, variable and flag, for a bare server and for an agent, and what they do."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import call, exchange, pool_of, status_of

from holdfast.cli import serve_options
from holdfast.cli.serve import SERVE
from holdfast.config import AgentConfig
from holdfast.errors import SettingsError, UsageError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.options import server_options
from holdfast.serving.server import Address, Server, ServerOptions
from holdfast.serving.settings import ServingSettings
from holdfast.settings import load

LISTEN = Address("127.0.0.1", 0)
EVERY_KNOB = """
max_message_mib = 2
max_connections = 3
max_in_flight = 4
max_queued = 5
max_queued_mib = 6
max_wait_s = 7
batch_delay_ms = 8
inline_limit_ms = 9
turn_ms = 10
also_listen = ["127.0.0.1:0"]
front = "grpcio"
loop = "uvloop"
"""
EXPECTED = ServerOptions(
    LISTEN,
    (LISTEN,),
    max_message_bytes=2 * 1024**2,
    max_connections=3,
    max_in_flight=4,
    front="grpcio",
    loop="uvloop",
    scheduler=SchedulerOptions(
        max_queued=5,
        max_queued_bytes=6 * 1024**2,
        max_wait_s=7.0,
        delay_s=0.008,
        inline_limit_s=0.009,
        turn_s=0.01,
    ),
)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    SERVE.add_arguments(parser)
    return parser.parse_args(["m.onnx", *flags])


def served_with(*flags: str, triton_ports: tuple[int, ...] = serve_options.TRITON_PORTS) -> ServerOptions:
    arguments = parsed(*flags)
    settings = serve_options.settings_from(arguments)
    return serve_options.options_from(arguments, settings, has_repository=False, triton_ports=triton_ports)


def test_defaults_of_the_settings_are_those_of_a_server() -> None:
    assert server_options(ServingSettings(), LISTEN) == ServerOptions(LISTEN)
    assert served_with() == ServerOptions(Address("127.0.0.1", 8080))


def test_every_knob_of_a_file_reaches_the_server(tmp_path: Path) -> None:
    (tmp_path / "serving.toml").write_text(EVERY_KNOB)

    got = served_with("--settings", str(tmp_path / "serving.toml"), "--listen", "127.0.0.1:0")

    assert got == EXPECTED


def test_every_knob_of_an_agents_file_reaches_its_server(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(f"window_s = 9\n[serving]\n{EVERY_KNOB}")

    config = load(AgentConfig, path=tmp_path / "agent.toml", environment={})

    assert server_options(config.serving, LISTEN) == EXPECTED
    assert config.window_s == 9.0


def test_variable_wins_over_a_file_and_a_flag_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "serving.toml"
    path.write_text("max_queued = 5\nbatch_delay_ms = 5\nturn_ms = 5")
    monkeypatch.setenv("HOLDFAST_SERVING_MAX_QUEUED", "6")
    monkeypatch.setenv("HOLDFAST_SERVING_BATCH_DELAY_MS", "6")

    got = served_with("--settings", str(path), "--batch-delay-ms", "7").scheduler

    assert (got.max_queued, got.delay_s, got.turn_s) == (6, 0.007, 0.005)


def test_variable_reaches_the_table_of_an_agent(tmp_path: Path) -> None:
    environment = {"HOLDFAST_SERVING_MAX_QUEUED": "6", "HOLDFAST_MAX_QUEUED": "7", "HOLDFAST_SERVING": "x"}

    config = load(AgentConfig, environment=environment)

    assert config == AgentConfig(serving=ServingSettings(max_queued=6))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_queued = 0", "'max_queued' in .* is 0; allowed: 1 .. 65536"),
        ("batch_delay_ms = -1", "'batch_delay_ms' in .* allowed"),
        ("inline_limit_ms = nan", "'inline_limit_ms' in .* is nan"),
        ('loop = "trio"', "'loop' in .* allowed: asyncio"),
        ('front = "apache"', "'front' in .* allowed: native"),
        ("also_listen = [8080]", "'also_listen' in .* must be a list of str, got 8080"),
        ("batch_delay = 1", "unknown setting 'batch_delay'"),
    ],
)
def test_wrong_setting_is_named_also_in_the_table_of_an_agent(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.toml"

    path.write_text(text)
    with pytest.raises(SettingsError, match=reason):
        served_with("--settings", str(path))
    path.write_text(f"[serving]\n{text}")
    with pytest.raises(SettingsError, match=reason) as refused:
        load(AgentConfig, path=path, environment={})

    assert "[serving] of " in str(refused.value)


def test_table_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("serving = 3")

    with pytest.raises(SettingsError, match=r"'serving' in .* must be a table, got 3"):
        load(AgentConfig, path=tmp_path / "x.toml", environment={})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ServingSettings(tls_key=Path("k")), "tls_certificate and tls_key go together"),
        (ServingSettings(client_authority=Path("c")), "client_authority needs tls_certificate"),
        (ServingSettings(allow_ids=("spiffe://a/b",)), "allow_ids needs client_authority"),
        (ServingSettings(shared_memory=True), "shared_memory needs admin_socket"),
        (ServingSettings(also_listen=("nowhere",)), "expected HOST:PORT"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(settings: ServingSettings, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        server_options(settings, LISTEN)


def test_every_flag_is_a_setting() -> None:
    known = {field.name for field in dataclasses.fields(ServingSettings)}

    assert set(serve_options.FLAGS) <= known
    for name in serve_options.FLAGS:
        assert getattr(parsed(), name) is None, "a default of its own would hide the settings file"


def test_triton_ports_are_listened_on_beside_the_first_address() -> None:
    got = served_with("--listen", "127.0.0.1:9", "--listen", "[::1]:9", "--triton-ports")

    assert (got.listen, *got.also_listen) == (
        Address("127.0.0.1", 9),
        Address("::1", 9),
        Address("127.0.0.1", 8000),
        Address("127.0.0.1", 8001),
    )


@pytest.mark.parametrize("flags", [(), ("--front", "grpcio")])
def test_clients_find_grpc_and_http_on_the_triton_ports(flags: tuple[str, ...]) -> None:
    options = served_with("--listen", "127.0.0.1:0", "--triton-ports", *flags, triton_ports=(0, 0))
    server = Server(pool_of({"m": models.scale(2.0)}), options=options)
    server.start()
    request = oip.encode_request(TensorRequest("m", "", "", {"x": np.ones((1, 4), dtype=np.float32)}))

    try:
        _, for_http, for_grpc = server.addresses
        answer = exchange(for_http, b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status_of(answer) == 200
        assert oip.decode_response(call(for_grpc, request)).outputs["y"].tolist() == [[2, 2, 2, 2]]
        assert len({at.port for at in server.addresses}) == 3
    finally:
        server.stop(2.0)
