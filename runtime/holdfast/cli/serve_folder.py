"""`holdfast serve DIR`: a repository of models, several versions of each, changed while the server runs."""

from __future__ import annotations

import argparse
import json
import logging
from functools import partial
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK
from holdfast.cli.serve_options import graph_cache_of
from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.serving.repository import FolderRepository
    from holdfast.serving.server import ServerOptions
    from holdfast.serving.settings import ServingSettings

logger = logging.getLogger(__name__)

IDLE_S = 3_600.0
READY = "READY"  # a version's state, in the words of the protocol


def serve_folder(arguments: argparse.Namespace, settings: ServingSettings, options: ServerOptions) -> int:
    """Serve the models of a folder until a signal."""
    from holdfast.inference.memory import settle
    from holdfast.inference.pool import ModelPool
    from holdfast.inference.session import share_threads
    from holdfast.lifecycle import Stop, stop_on_signals
    from holdfast.serving.repository import FolderRepository, prepare_safely
    from holdfast.serving.repository_folder import root_of
    from holdfast.serving.server import Server

    settle()
    if arguments.name is not None:
        raise UsageError("--name goes with a file; in a folder of models each folder is a name")
    if arguments.labels is not None:
        raise UsageError("--labels goes with a file; in a folder put labels.txt beside session.toml")
    if (arguments.threads, arguments.spinning) != (1, False):
        raise UsageError("--threads and --spinning go with a file; in a folder write them to NAME/session.toml")
    pool = ModelPool()
    shared = settings.shared_threads > 0
    if shared:
        share_threads(settings.shared_threads)
    prepare = partial(prepare_safely, cache=graph_cache_of(settings), shared_threads=shared)
    root = root_of(arguments.model)
    repository = FolderRepository(root, pool, prepare)
    repository.load_all()
    server = Server(pool, options=options, repository=repository)
    stop = Stop()
    with stop_on_signals(stop):
        address = server.start()
        try:
            _say_ready(repository, root, str(address), as_json=arguments.json)
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


def _say_ready(repository: FolderRepository, root: Path, address: str, *, as_json: bool) -> None:
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
    if all(state.state != READY for state in states):
        print(f"no model is served: expected files like {root}/NAME/1/model.onnx (--poll-s 5 looks for them again)")
    print(f"serving on {address} (gRPC and HTTP); Ctrl-C stops", flush=True)
