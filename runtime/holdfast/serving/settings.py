"""How models are served: the settings that `holdfast serve --settings FILE` and an agent's `[serving]` table share.

Rules: everything has a safe default. What is not here says which models are served, not how: that is the command
line's, or the coordinator's. Reading them loads nothing of the server: `options.py` makes its options of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.settings import setting

UNIX_MODES = ("600", "660", "666")


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """Where else to listen, who may call, how much is taken, and when a request runs."""

    also_listen: tuple[str, ...] = setting((), "more addresses to serve on, each HOST:PORT or unix:/PATH")
    unix_mode: str = setting(
        "600", "rights of unix sockets among the addresses: this user, also its group, or all", choices=UNIX_MODES
    )
    front: str = setting("native", "grpcio is the fallback, many times slower", choices=("native", "grpcio"))
    loop: str = setting(
        "asyncio",
        "event loop of the native front; uvloop needs the extra holdfast[uvloop]",
        choices=("asyncio", "uvloop"),
    )
    tls_certificate: Path | None = setting(None, "serve TLS with this certificate chain (PEM)")  # noqa: RUF009
    tls_key: Path | None = setting(None, "and with this key (PEM)")  # noqa: RUF009
    client_authority: Path | None = setting(  # noqa: RUF009
        None, "clients must show a certificate that one of these signed (PEM)"
    )
    allow_ids: tuple[str, ...] = setting((), "SPIFFE ids of clients that may call; needs client_authority")
    token_file: Path | None = setting(  # noqa: RUF009
        None, "bearer tokens that callers must show, one a line; mode 0600"
    )
    admin_socket: Path | None = setting(  # noqa: RUF009
        None, "a unix socket, of this user alone, for what is offered nowhere else: load, unload, shared memory"
    )
    shared_memory: bool = setting(False, "take and give tensors in shared memory; needs admin_socket")
    max_message_mib: int = setting(64, "largest request or answer", minimum=1, maximum=1_024)
    max_connections: int = setting(512, "connections open at once", minimum=1, maximum=65_536)
    max_in_flight: int = setting(
        1_024,
        "requests taken in and not answered yet, at once; 128 for each busy HTTP/2 connection",
        minimum=1,
        maximum=65_536,
    )
    max_queued: int = setting(1_024, "requests that wait for one model; more are refused", minimum=1, maximum=65_536)
    max_queued_mib: int = setting(256, "inputs of all requests that wait", minimum=1, maximum=65_536)
    max_wait_s: float = setting(
        10.0, "estimated work in front of a new request; where there is more it is refused", minimum=0.001
    )
    batch_delay_ms: float = setting(
        0.0, "how long the first request of a batch waits for others; 0 = never", minimum=0.0, maximum=1_000.0
    )
    inline_limit_ms: float = setting(
        1.0, "a run longer than this, as measured at load, goes to a thread of its own", minimum=0.0, maximum=100.0
    )
    turn_ms: float = setting(5.0, "how long short runs may keep the connections waiting", minimum=0.1, maximum=1_000.0)
    shared_threads: int = setting(
        0,
        "threads of one pool for all models, instead of some for each; 0 = none. They spin after a run: more CPU",
        minimum=0,
        maximum=1_024,
    )
    ping_interval_s: float = setting(
        300.0,
        "time between keepalive pings of a gRPC client in an open call; who often pings sooner is disconnected",
        minimum=0.0,
        maximum=86_400.0,
    )
    idle_pings: bool = setting(False, "keepalive pings are as welcome where no call is open")
    graph_cache: Path | None = setting(  # noqa: RUF009
        None, "keep optimised graphs in this folder, of this user alone: a later start is faster and takes less memory"
    )
