"""A server that stops while a connection is being made leaves nothing open, whichever turn of the loop it stops in."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import connect, pool_of
from tests.fakes.tls_site import Site

from holdfast.serving.pipe import PipeLimits, pipe, tls_pipe
from holdfast.serving.server import Address, Front, Server, ServerOptions

TURNS = 20  # of the loop: as many as a handshake takes


@pytest.fixture(autouse=True)
def only_ours() -> Iterator[None]:
    """What earlier tests left to be collected is not looked at here."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def ends() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


async def broken_off(task: asyncio.Task[None], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    for _ in range(2):
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(1, 8))
def test_pipe_that_is_cancelled_closes_both_sides(turns: int) -> None:
    (client, ours), (backend, theirs) = ends(), ends()

    async def main() -> None:
        await broken_off(asyncio.get_running_loop().create_task(pipe(ours, theirs, b"first", PipeLimits())), turns)

    asyncio.run(main())

    assert client.recv(1) == b""
    assert backend.recv(100) in (b"", b"first")
    assert backend.recv(1) == b""
    client.close()
    backend.close()
    gc.collect()  # what was left open is a warning here, and that an error


def test_pipe_that_is_cancelled_in_a_handshake_closes_its_side(site: Site) -> None:
    trusting = site.client_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.folder / "server.pem", site.folder / "server.key")

    async def choose(_peer: ssl.SSLObject) -> socket.socket:
        await asyncio.sleep(0)
        raise OSError("nobody is there")

    async def main(turns: int) -> None:
        client, ours = ends()
        loop = asyncio.get_running_loop()
        made = loop.create_connection(asyncio.Protocol, sock=client, ssl=trusting, server_hostname="127.0.0.1")
        connecting = loop.create_task(made)
        await broken_off(loop.create_task(tls_pipe(ours, context, choose, PipeLimits())), turns)
        assert ours.fileno() == -1
        (outcome,) = await asyncio.gather(connecting, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            outcome[0].abort()
        await asyncio.sleep(0.001)

    for turns in range(1, TURNS):
        asyncio.run(main(turns))
    gc.collect()


def shake_hands(connection: socket.socket, context: ssl.SSLContext) -> None:
    """A handshake by hand: `wrap_socket` itself leaves a socket open where the other end is gone too early."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65_536) or b"the end")
        else:
            connection.sendall(outgoing.read())
            return


def test_front_that_stops_while_connections_come_waits_for_each(front: Front, site: Site) -> None:
    context = site.client_context()
    pool = pool_of({"m": models.scale(2.0)})

    def come_and_go(address: Address, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                with connect(address) as connection:
                    shake_hands(connection, context)
            except OSError:
                pass

    context.set_alpn_protocols(["http/1.1"])
    for turn in range(4):
        server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), front=front, tls=site.files(mutual=False)))
        address, ended = server.start(), threading.Event()
        clients = [threading.Thread(target=come_and_go, args=(address, ended)) for _ in range(3)]
        for client in clients:
            client.start()
        ended.wait(turn * 0.01)
        server.stop(0.0)
        ended.set()
        for client in clients:
            client.join()
    gc.collect()
