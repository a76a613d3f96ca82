"""A pipe carries all bytes both ways, and ends when a side falls silent, stalls or breaks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from holdfast.serving.pipe import PipeLimits, pipe

TIMEOUT_S = 20.0
BIG = bytes(range(256)) * 32_768  # 8 MiB: more than every buffer on the way


class Piped:
    """A pipe on a thread of its own between two sockets that the test holds the other ends of."""

    def __init__(self, limits: PipeLimits) -> None:
        self.client, inner_client = socket.socketpair()
        self.backend, inner_backend = socket.socketpair()
        for end in (self.client, self.backend):
            end.settimeout(TIMEOUT_S)
        for end in (inner_client, inner_backend):
            end.setblocking(False)
        self.thread = threading.Thread(target=lambda: asyncio.run(pipe(inner_client, inner_backend, b"first", limits)))
        self.thread.start()

    def close(self) -> None:
        self.client.close()
        self.backend.close()
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()


@pytest.fixture
def piped() -> Iterator[Piped]:
    made = Piped(PipeLimits())
    yield made
    made.close()


def read_all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_pipe_carries_more_than_it_buffers_both_ways(piped: Piped) -> None:
    got: dict[str, bytes] = {}
    readers = [
        threading.Thread(target=lambda: got.update(backend=read_all(piped.backend))),
        threading.Thread(target=lambda: got.update(client=read_all(piped.client))),
    ]
    for reader in readers:
        reader.start()

    piped.client.sendall(BIG)
    piped.client.shutdown(socket.SHUT_WR)
    piped.backend.sendall(BIG[::-1])
    piped.backend.shutdown(socket.SHUT_WR)

    for reader in readers:
        reader.join(TIMEOUT_S)
    assert got["backend"] == b"first" + BIG
    assert got["client"] == BIG[::-1]


def test_half_closed_pipe_still_answers(piped: Piped) -> None:
    piped.client.shutdown(socket.SHUT_WR)
    assert read_all(piped.backend) == b"first"

    piped.backend.sendall(b"answer")
    piped.backend.shutdown(socket.SHUT_WR)

    assert read_all(piped.client) == b"answer"


def test_broken_side_ends_the_other(piped: Piped) -> None:
    piped.backend.recv(5)
    piped.backend.close()

    assert piped.client.recv(1) == b""


def test_last_words_of_a_backend_that_closes_under_our_writing_arrive() -> None:
    async def main() -> bytes:
        (client, ours), (backend, theirs) = (socket.socketpair() for _ in range(2))
        for end in (client, ours, backend, theirs):
            end.setblocking(False)
        piping = asyncio.get_running_loop().create_task(pipe(ours, theirs, b"first", PipeLimits()))
        client.send(b" and second")
        while not backend_has(backend, b"first and second"):
            await asyncio.sleep(0)

        client.send(b"more")  # the pipe takes this first, and finds that it can write no more
        backend.send(b"too many pings")
        backend.close()
        await piping

        with client:
            return client.recv(100)

    assert asyncio.run(main()) == b"too many pings"


def backend_has(backend: socket.socket, octets: bytes) -> bool:
    try:
        return backend.recv(100, socket.MSG_PEEK) == octets
    except BlockingIOError:
        return False


def test_silent_pipe_ends() -> None:
    piped = Piped(PipeLimits(idle_timeout_s=0.02))

    assert piped.client.recv(1) == b""
    assert read_all(piped.backend) == b"first"
    piped.close()


def test_side_that_takes_nothing_ends_the_pipe() -> None:
    piped = Piped(PipeLimits(stalled_timeout_s=0.02))

    with pytest.raises(ConnectionError):
        piped.client.sendall(BIG * 4)
    piped.close()
