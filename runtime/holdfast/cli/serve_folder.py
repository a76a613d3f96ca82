"""`holdfast serve DIR`: a repository of models, several versions of each, changed while the server runs."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK
from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.serving.authorisation import AccessRules
    from holdfast.serving.repository import FolderRepository
    from holdfast.serving.server import ServerOptions

logger = logging.getLogger(__name__)

MAX_TOKEN_FILE_BYTES = 65_536
IDLE_S = 3_600.0


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say who may do what; for a file and for a folder of models."""
    parser.add_argument("--insecure", action="store_true", help="allow an address that other machines can reach")
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


def rules_from(arguments: argparse.Namespace, *, has_repository: bool) -> AccessRules:
    """The access rules that the flags ask for.

    Raises:
        UsageError: the token file cannot be used, or shared memory is asked for without an admin socket.
    """
    from holdfast.serving.authorisation import rules_of

    if arguments.shared_memory and arguments.admin_socket is None:
        raise UsageError("--shared-memory needs --admin-socket: regions are registered there")
    tokens = () if arguments.token_file is None else read_tokens(arguments.token_file)
    return rules_of(
        tokens=tokens,
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


def serve_folder(arguments: argparse.Namespace, options: ServerOptions) -> int:
    """Serve the models of a folder until a signal."""
    from holdfast.cli.logs import set_up_logging
    from holdfast.inference.pool import ModelPool
    from holdfast.lifecycle import Stop, stop_on_signals
    from holdfast.serving.repository import FolderRepository
    from holdfast.serving.repository_folder import root_of
    from holdfast.serving.server import Server

    if arguments.name is not None:
        raise UsageError("--name goes with a file; in a folder of models each folder is a name")
    if (arguments.threads, arguments.spinning) != (1, False):
        raise UsageError("--threads and --spinning go with a file; in a folder write them to NAME/session.toml")
    set_up_logging("WARNING")
    pool = ModelPool()
    repository = FolderRepository(root_of(arguments.model), pool)
    repository.load_all()
    server = Server(pool, options=options, repository=repository)
    stop = Stop()
    with stop_on_signals(stop):
        address = server.start()
        try:
            _say_ready(repository, str(address), as_json=arguments.json)
            while not stop.wait(arguments.poll_s or IDLE_S):
                _poll(repository, arguments.poll_s)
        finally:
            server.stop()
    if not arguments.json:
        print("stopped", flush=True)
    return EXIT_OK


def _poll(repository: FolderRepository, poll_s: float) -> None:
    if not poll_s:
        return
    try:
        repository.poll()
    except HoldfastError as error:  # the folder is gone for a moment: what is served goes on
        logger.warning("repository not read", extra={"reason": str(error)})


def _say_ready(repository: FolderRepository, address: str, *, as_json: bool) -> None:
    states = repository.index()
    if as_json:
        models = [
            {"name": state.name, "version": state.version, "state": state.state, "reason": state.reason}
            for state in states
        ]
        print(json.dumps({"event": "ready", "models": models, "listen": address}), flush=True)
        return
    for state in states:
        print(f"{state.state:<12} {state.name} version {state.version}{state.reason and ': ' + state.reason}")
    print(f"serving on {address} (gRPC and HTTP); Ctrl-C stops", flush=True)
