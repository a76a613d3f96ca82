"""What the run worker makes of a SuperLink's answers, with a server that gives them; no SuperLink is started."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from holdfast.clock import SystemClock
from holdfast.errors import RoundError
from holdfast_federation.rounds.grid import Ticket
from holdfast_federation.rounds.superlink import SuperLinkAddress, prepare_folder

# flwr's own imports warn; the imports are inside, so that the mark covers them
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with one status."""

    status = 401

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[SuperLinkAddress]:
    prepare_folder(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield SuperLinkAddress("127.0.0.1", server.server_address[1], (tmp_path / "tls.crt").read_bytes())
    server.shutdown()
    thread.join(20)
    server.server_close()


@pytest.mark.parametrize("status", [401, 403], ids=["its time is up", "its run is over"])
def test_a_mailbox_that_the_superlink_gave_up_is_lost_and_the_process_lives(
    address: SuperLinkAddress, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    # a coordinator that was away for half a minute finds its mailbox gone; flwr's own answer to that is SIGINT
    from holdfast_federation.rounds.flower_grid import FlowerGrid

    monkeypatch.setattr(Refusing, "status", status)
    grid = FlowerGrid(address, Ticket(1, 2, "a token of before"), SystemClock())

    try:
        with pytest.raises(RoundError, match="gave this run up"):
            grid.online()
        with pytest.raises(RoundError, match="gave this run up"):
            grid.pull(["a message"])
        assert grid.is_lost
    finally:
        grid.finish(completed=False)
