"""The flags of `holdfast serve` that say where it listens, who may do what and when a request runs.

They are names of settings (`serving/settings.py`): a flag wins over HOLDFAST_SERVING_*, and that over a settings file.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.inference.graph_cache import GraphCache
    from holdfast.serving.server import ServerOptions
    from holdfast.serving.settings import ServingSettings

DEFAULT_LISTEN = "127.0.0.1:8080"
LOOPBACK = "127.0.0.1"
TRITON_PORTS = (8000, 8001)  # where clients of Triton look for HTTP and for gRPC
ENVIRONMENT_PREFIX = "HOLDFAST_SERVING_"  # as for the same settings of an agent
FLAGS = (
    "front",
    "tls_certificate",
    "tls_key",
    "client_authority",
    "token_file",
    "admin_socket",
    "shared_memory",
    "max_queued",
    "batch_delay_ms",
    "shared_threads",
    "graph_cache",
)


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say where to listen and who may do what."""
    listen = f"where to serve gRPC and HTTP, port 0 = any; may be given again (default {DEFAULT_LISTEN})"
    parser.add_argument("--listen", action="append", metavar="HOST:PORT|unix:/PATH", help=listen)
    parser.add_argument(
        "--triton-ports", action="store_true", help="listen on 8000 and 8001 too, where clients of Triton look"
    )
    parser.add_argument("--insecure", action="store_true", help="allow an address that other machines can reach")
    parser.add_argument(
        "--front", choices=("native", "grpcio"), help="default native; grpcio is the fallback, many times slower"
    )
    parser.add_argument(
        "--tls-certificate", type=Path, metavar="FILE", help="serve TLS with this certificate chain (PEM)"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="and with this key (PEM)")
    parser.add_argument(
        "--client-authority", type=Path, metavar="FILE", help="clients must show a certificate signed by one of these"
    )
    parser.add_argument(
        "--allow-id",
        action="append",
        metavar="SPIFFE-ID",
        help="a client that may call, by the id in its certificate; may be given again",
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="bearer tokens that callers must show, one a line; mode 0600"
    )
    parser.add_argument(
        "--admin-socket", type=Path, metavar="PATH", help="a unix socket, yours alone, to load and unload models"
    )
    parser.add_argument(
        "--shared-memory",
        action="store_true",
        default=None,
        help="take and give tensors in shared memory; regions are registered on the admin socket",
    )


def add_scheduling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say when a request runs; the rarer ones are in the settings file only."""
    parser.add_argument(
        "--max-queued", type=int, metavar="N", help="requests that may wait for one model (default 1024)"
    )
    parser.add_argument(
        "--batch-delay-ms",
        type=float,
        metavar="MS",
        help="let the first request of a batch wait for others this long (default 0: an idle server waits for nobody)",
    )
    parser.add_argument(
        "--shared-threads",
        type=int,
        metavar="N",
        help="one pool of N threads for all models instead of --threads for each; they spin, so only for busy machines",
    )
    parser.add_argument(
        "--graph-cache",
        type=Path,
        metavar="DIR",
        help="keep optimised graphs here, in a folder of yours alone: a later start is faster and takes less memory",
    )
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="these and more in TOML; a flag wins over it (see the README)"
    )


def settings_from(arguments: argparse.Namespace) -> ServingSettings:
    """Settings file < HOLDFAST_SERVING_* < flags.

    Raises:
        SettingsError: an unknown key, or a value out of range.
    """
    from holdfast.serving.settings import ServingSettings
    from holdfast.settings import load

    flags: dict[str, object] = {name: getattr(arguments, name) for name in FLAGS}
    if arguments.allow_id is not None:
        flags["allow_ids"] = tuple(arguments.allow_id)
    return load(ServingSettings, path=arguments.settings, flags=flags, prefix=ENVIRONMENT_PREFIX)


def graph_cache_of(settings: ServingSettings) -> GraphCache | None:
    """The cache of optimised graphs, if the settings name a folder for it.

    Raises:
        StateError: the folder cannot be made, or others may write to it.
    """
    if settings.graph_cache is None:
        return None
    from holdfast.inference.graph_cache import GraphCache

    return GraphCache(settings.graph_cache)


def options_from(
    arguments: argparse.Namespace,
    settings: ServingSettings,
    *,
    has_repository: bool,
    triton_ports: Sequence[int] = TRITON_PORTS,
) -> ServerOptions:
    """Where to listen and for whom, as flags and settings say.

    Raises:
        UsageError: flags that do not fit together, or a file that cannot be used.
    """
    from holdfast.serving.without_tls import load_asyncio_without_tls

    if settings.tls_certificate is None:
        load_asyncio_without_tls()
    from holdfast.serving.options import server_options
    from holdfast.serving.server import Address

    first, *others = (Address.parse(text) for text in arguments.listen or (DEFAULT_LISTEN,))
    options = server_options(settings, first, insecure=arguments.insecure, has_repository=has_repository)
    if arguments.triton_ports:
        others += [Address(first.host or LOOPBACK, port) for port in triton_ports]
    return replace(options, also_listen=(*others, *options.also_listen))
