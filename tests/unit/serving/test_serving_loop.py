"""The event loop of the native front: asyncio's own unless another one was asked for and is installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_client import Http2Client
from tests.fakes.serving import call, connect, exchange, http_infer, pool_of, running, status_of
from tests.fakes.tls_site import Site

from holdfast.errors import MissingExtraError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.native.loop import LoopKind, loop_maker
from holdfast.serving.server import Address, Server, ServerOptions

LISTEN = Address("127.0.0.1", 0)
BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> LoopKind:
    kind: LoopKind = request.param
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    return kind


def request_of(rows: int) -> bytes:
    x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    return oip.encode_request(TensorRequest("m", "", "", {"x": x}))


def test_loop_is_the_one_that_was_asked_for(loop: LoopKind) -> None:
    made = loop_maker(loop)()

    try:
        assert type(made).__module__.partition(".")[0] == loop
        assert isinstance(made, asyncio.AbstractEventLoop)
    finally:
        made.close()


def test_missing_loop_is_told_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    path = tmp_path / "s.sock"

    with pytest.raises(MissingExtraError, match=r"pip install 'holdfast\[uvloop\]'"):
        Server(pool_of({}), options=ServerOptions(Address.unix(path), loop="uvloop")).start()

    assert not path.exists()


def test_both_protocols_and_sockets_are_served(loop: LoopKind, tmp_path: Path) -> None:
    at_path = Address.unix(tmp_path / "s.sock")
    with running(pool_of({"m": models.scale(2.0)}), ServerOptions(LISTEN, (at_path,), loop=loop)) as address:
        for at in (address, at_path):
            assert status_of(exchange(at, http_infer("m", BODY))) == 200
            answer = oip.decode_response(call(at, request_of(1)))
            assert answer.outputs["y"].tolist() == [[0, 2, 4, 6]]
        large = oip.decode_response(call(address, request_of(100_000)))  # more than any window or buffer on its way

    assert large.outputs["y"].shape == (100_000, 4)
    assert float(large.outputs["y"][-1, -1]) == 2.0 * 399_999


def test_tls_is_served(loop: LoopKind, tmp_path: Path) -> None:
    site = Site(tmp_path)
    options = ServerOptions(LISTEN, tls=site.files(mutual=False), loop=loop)
    with running(pool_of({"m": models.scale(2.0)}), options) as address:
        assert exchange(address, LIVE)[:5] != b"HTTP/"  # not TLS: ended, and nobody harmed
        with Http2Client(address, site.connect(address, site.client_context())) as client:
            assert client.ask(request_of(1)).grpc_status == (0, "")


def test_broken_connection_ends_alone(loop: LoopKind) -> None:
    with running(pool_of({"m": models.scale(2.0)}), ServerOptions(LISTEN, loop=loop)) as address:
        with connect(address) as silent, Http2Client(address) as bystander:
            silent.sendall(PREFACE[:9])
            exchange(address, PREFACE + frame(6, 0, 0, b"no settings before"))
            exchange(address, b"\0\xff garbage\r\n\r\n")
            assert bystander.ask(request_of(1)).grpc_status == (0, "")


@pytest.mark.slow
def test_every_test_of_the_sockets_passes_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    here = Path(__file__).parent
    plain = ("-m", "not slow", f"--ignore={here / 'test_serving_settings.py'}")  # what the defaults are is tested there

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plain, "-p", "tests.fakes.on_uvloop", str(here)],
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3_000:]
