"""The flags of `holdfast serve` that say where it listens and who may do what; for a file and for a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.serving.authorisation import AccessRules
    from holdfast.serving.server import ServerOptions

MAX_TOKEN_FILE_BYTES = 65_536
TRITON_PORTS = (8000, 8001)  # where clients of Triton look for HTTP and for gRPC


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say who may do what; for a file and for a folder of models."""
    parser.add_argument(
        "--front", choices=("native", "grpcio"), default="native", help="grpcio is the fallback, slower and without TLS"
    )
    parser.add_argument(
        "--triton-ports", action="store_true", help="listen on 8000 and 8001 too, where clients of Triton look"
    )
    parser.add_argument("--insecure", action="store_true", help="allow an address that other machines can reach")
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
        default=[],
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
        help="take and give tensors in shared memory; regions are registered on the admin socket",
    )


def options_from(arguments: argparse.Namespace, *, has_repository: bool) -> ServerOptions:
    """Where to listen and for whom, as the flags say.

    Raises:
        UsageError: flags that do not fit together, or a file that cannot be used.
    """
    from holdfast.serving.native.tls import TlsFiles
    from holdfast.serving.server import Address, ServerOptions

    tls = None
    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise UsageError("--tls-certificate and --tls-key go together")
    if arguments.tls_certificate is not None:
        tls = TlsFiles(arguments.tls_certificate, arguments.tls_key, arguments.client_authority)
    elif arguments.client_authority is not None:
        raise UsageError("--client-authority needs --tls-certificate and --tls-key")
    if arguments.allow_id and arguments.client_authority is None:
        raise UsageError("--allow-id needs --client-authority: without it nobody can show an id")
    listen = Address.parse(arguments.listen)
    triton_ports = tuple(Address(listen.host, port) for port in TRITON_PORTS) if arguments.triton_ports else ()
    return ServerOptions(
        listen,
        triton_ports,
        insecure=arguments.insecure,
        rules=_rules_from(arguments, has_repository=has_repository),
        admin_socket=arguments.admin_socket,
        front=arguments.front,
        tls=tls,
    )


def _rules_from(arguments: argparse.Namespace, *, has_repository: bool) -> AccessRules:
    from holdfast.serving.authorisation import rules_of

    if arguments.shared_memory and arguments.admin_socket is None:
        raise UsageError("--shared-memory needs --admin-socket: regions are registered there")
    tokens = () if arguments.token_file is None else read_tokens(arguments.token_file)
    return rules_of(
        arguments.allow_id,
        tokens,
        model_control=has_repository and arguments.admin_socket is not None,
        shared_memory=arguments.shared_memory,
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
