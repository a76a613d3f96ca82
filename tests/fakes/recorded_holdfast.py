"""`python -m tests.fakes.recorded_holdfast ...` is `holdfast ...` that also writes down what its link sends.

Every request of every remote method is kept as it is before TLS encrypts it: the one function through which all of
them go is wrapped before anything imports it. The file is named by the variable RECORDED_REQUESTS.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from holdfast.link import channel

HEADER = struct.Struct("<HI")  # bytes of the method's path, bytes of the request


def record(path: Path) -> None:
    """From now on append each request to `path`."""
    send, lock = channel.call_bytes, threading.Lock()

    def call_bytes(connection, method, data, *more):  # type: ignore[no-untyped-def]  # as the wrapped one
        name = method.path.encode()
        with lock, path.open("ab") as file:
            file.write(HEADER.pack(len(name), len(data)) + name + data)
        return send(connection, method, data, *more)

    channel.call_bytes = call_bytes


def read_record(path: Path) -> Iterator[tuple[str, bytes]]:
    """(method, request) of everything that was recorded."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        name_bytes, size_bytes = HEADER.unpack_from(data, at)
        at += HEADER.size
        yield data[at : at + name_bytes].decode(), data[at + name_bytes : at + name_bytes + size_bytes]
        at += name_bytes + size_bytes


if __name__ == "__main__":
    record(Path(os.environ["RECORDED_REQUESTS"]))
    from holdfast.cli.main import main

    sys.exit(main())
