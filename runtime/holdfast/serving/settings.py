"""How models are served: the settings that `holdfast serve --settings FILE` and an agent's `[serving]` table share.

Rules: everything has a safe default; where the fields stand together in pairs, one without the other is refused. What
is not here says which models are served, not how: that is the command line's, or the coordinator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.authorisation import AccessRules, rules_of
from holdfast.serving.http2.limits import PingRules
from holdfast.serving.native.tls import TlsFiles
from holdfast.serving.server import Address, ServerOptions
from holdfast.settings import setting

MIB = 1_048_576
MAX_TOKEN_FILE_BYTES = 65_536
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


def server_options(
    settings: ServingSettings, listen: Address, *, insecure: bool = False, has_repository: bool = False
) -> ServerOptions:
    """The settings as a server takes them.

    Args:
        has_repository: models may be loaded and unloaded, on the admin socket.
    Raises:
        UsageError: settings that do not fit together, or a file that cannot be used.
    """
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise UsageError("tls_certificate and tls_key go together; give both, or none")
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_certificate, settings.tls_key, settings.client_authority)
    elif settings.client_authority is not None:
        raise UsageError("client_authority needs tls_certificate and tls_key")
    if settings.allow_ids and settings.client_authority is None:
        raise UsageError("allow_ids needs client_authority: without it nobody can show an id")
    return ServerOptions(
        listen,
        tuple(map(Address.parse, settings.also_listen)),
        insecure=insecure,
        max_message_bytes=settings.max_message_mib * MIB,
        max_connections=settings.max_connections,
        max_in_flight=settings.max_in_flight,
        rules=_rules(settings, has_repository=has_repository),
        admin_socket=settings.admin_socket,
        front="grpcio" if settings.front == "grpcio" else "native",
        loop="uvloop" if settings.loop == "uvloop" else "asyncio",
        tls=tls,
        scheduler=scheduler_options(settings),
        unix_mode=int(settings.unix_mode, 8),
        pings=ping_rules(settings),
    )


def ping_rules(settings: ServingSettings) -> PingRules:
    """How often clients may ping."""
    interval_s, rules = settings.ping_interval_s, PingRules()
    return PingRules(interval_s, interval_s if settings.idle_pings else max(interval_s, rules.min_idle_interval_s))


def scheduler_options(settings: ServingSettings) -> SchedulerOptions:
    """When a request runs, and how many may wait."""
    return SchedulerOptions(
        max_queued=settings.max_queued,
        max_queued_bytes=settings.max_queued_mib * MIB,
        max_wait_s=settings.max_wait_s,
        delay_s=settings.batch_delay_ms / 1e3,
        inline_limit_s=settings.inline_limit_ms / 1e3,
        turn_s=settings.turn_ms / 1e3,
    )


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one a line.

    Raises:
        UsageError: the file cannot be read, holds none, or others may read it.
    """
    try:
        status = path.stat()
        if status.st_mode & 0o077:
            raise UsageError(f"{path} can be read by others; run: chmod 600 {path}")
        if status.st_size > MAX_TOKEN_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_TOKEN_FILE_BYTES} bytes; is it the right file?")
        tokens = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"token file {path} cannot be read: {error}") from error
    if not tokens:
        raise UsageError(f"token file {path} holds no token")
    return tokens


def _rules(settings: ServingSettings, *, has_repository: bool) -> AccessRules:
    if settings.shared_memory and settings.admin_socket is None:
        raise UsageError("shared_memory needs admin_socket: regions are registered there")
    return rules_of(
        settings.allow_ids,
        () if settings.token_file is None else read_tokens(settings.token_file),
        model_control=has_repository and settings.admin_socket is not None,
        shared_memory=settings.shared_memory,
    )
