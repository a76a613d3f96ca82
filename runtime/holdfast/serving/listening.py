"""Listening sockets: TCP ports, and unix sockets that appear with their final rights and go with their server.

Rules: a unix socket is made with its mode, never wider for a moment; one that a dead server left is replaced, one that
somebody answers on is not, and nothing but a socket ever is; at the end only what we made is removed.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from pathlib import Path

from holdfast.errors import UsageError

BACKLOG = 128
MAX_PATH_BYTES = 107  # unix(7): sun_path has 108, the last is zero
PRIVATE_MODE = 0o600

_umask_lock = threading.Lock()  # the mask is the whole process's: two servers that start together take turns


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[object, ...], bool]:
    """Family and address of a host, and whether only this machine can reach it.

    Raises:
        UsageError: there is no such host.
    """
    try:
        plain = host.encode() if host.isascii() else host  # as text it loads the codec of foreign names, 0.7 MB
        family, _, _, _, where = socket.getaddrinfo(plain, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: unknown host name") from error
    return family, where, ipaddress.ip_address(str(where[0]).split("%")[0]).is_loopback


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listener on a port.

    Raises:
        UsageError: there is no such host, or the port is in use or not ours to take.
    """
    family, where, _ = resolve(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            advice = f"stop it, or choose another with --listen {host}:PORT (0 = any free one)"
            raise UsageError(f"port {port} on {host} is in use by another program; {advice}") from error
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class SocketFile:
    """The name of a unix socket that we listen on, to be removed at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove it, unless somebody else has put something in its place."""
        if self._identity is not None and _identity(self._path) == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None


def listen_unix(path: Path, mode: int = PRIVATE_MODE) -> tuple[socket.socket, SocketFile]:
    """A listener on a unix socket that those whom `mode` allows can reach; by default this user alone.

    Raises:
        UsageError: the path is too long, something else is there, or the folder is not ours to write in.
    """
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise UsageError(f"expected a path of at most {MAX_PATH_BYTES} bytes for a unix socket, got {size}: {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        with _umask_lock:
            mask = os.umask(0o777 & ~mode)
            try:
                listener.bind(str(path))
            finally:
                os.umask(mask)
        file = SocketFile(path)
        listener.listen(BACKLOG)
    except (OSError, ValueError, UsageError) as error:
        listener.close()
        if isinstance(error, UsageError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"cannot listen on {path}: {reason}") from error
    return listener, file


def _clear(path: Path) -> None:
    """Make room for our socket, if what is there is one that nobody answers on."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)  # of a full backlog: then somebody listens
        found = probe.connect_ex(str(path))
    if found in (errno.EACCES, errno.EPERM):
        raise UsageError(f"{path} belongs to somebody else; choose another path")
    if found != errno.ECONNREFUSED:
        raise UsageError(f"{path} is in use by another server; stop it, or choose another path")
    path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
