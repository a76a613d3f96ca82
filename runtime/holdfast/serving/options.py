"""Settings of serving as a server takes them: addresses parsed, files read, what does not fit together refused."""

from __future__ import annotations

from pathlib import Path

from holdfast.errors import UsageError
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.authorisation import AccessRules, rules_of
from holdfast.serving.http2.limits import PingRules
from holdfast.serving.native.tls import TlsFiles
from holdfast.serving.server import Address, ServerOptions
from holdfast.serving.settings import ServingSettings

MIB = 1_048_576
MAX_TOKEN_FILE_BYTES = 65_536


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
