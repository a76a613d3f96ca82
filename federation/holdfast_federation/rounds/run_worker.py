"""`python -m holdfast_federation.rounds.run_worker STATE RUN_ID`: the process that drives one run.

It dies with the coordinator that started it (--parent) and is started again with it; what it was at is on disk.
Exit code 0: the run has ended, as done or as failed; anything else is a crash.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from holdfast.bundle.verify import Trust
from holdfast.clock import SystemClock
from holdfast.errors import HoldfastError, StateError
from holdfast.trust.keys import MAX_KEY_BYTES, PublicKey
from holdfast.trust.keystore import KeyStore
from holdfast_federation.database import Database
from holdfast_federation.devices import schema as devices_schema
from holdfast_federation.devices.records import Devices
from holdfast_federation.events import schema as events_schema
from holdfast_federation.ledger import schema as ledger_schema
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry import schema as registry_schema
from holdfast_federation.registry.models import Registry
from holdfast_federation.rounds import schema as rounds_schema
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.tether import tether
from holdfast_federation.rounds.working import Surroundings, work

logger = logging.getLogger("holdfast_federation.rounds.run_worker")

SCHEMAS = (
    ledger_schema.SCHEMA,
    devices_schema.SCHEMA,
    events_schema.SCHEMA,
    registry_schema.SCHEMA,
    rounds_schema.SCHEMA,
)


class RegistryShelf:
    """The registry, as a run worker needs it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def container(self, digest: str) -> bytes:
        return self._registry.container(digest)

    def add(self, container: bytes) -> str:
        return self._registry.add(container).digest


def main(argv: Sequence[str] | None = None) -> int:
    """Drive one run. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="run_worker")
    parser.add_argument("state", type=Path)
    parser.add_argument("run_id")
    parser.add_argument("--origin", required=True, help="of the ledger")
    parser.add_argument("--parent", type=int, default=0, help="process to die with")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if arguments.parent:
        tether()
        if os.getppid() != arguments.parent:
            return 1  # it was gone before the wish was made
    try:
        state = work(arguments.run_id, open_surroundings(arguments.state, arguments.origin))
    except HoldfastError as error:
        logger.error("the run worker cannot go on: %s", error)
        return 1
    logger.warning("run %s ended as %s", arguments.run_id, state)
    return 0


def open_surroundings(state: Path, origin: str) -> Surroundings:
    """Open what a run worker needs in a coordinator's state folder. Raises: StateError, TrustError."""
    clock = SystemClock()
    keys = KeyStore(state / "authority")
    run_key = keys.load("run")
    database = Database(state / "holdfast.db", SCHEMAS)
    ledger = Ledger(database, keys.load("ledger"), origin, clock)
    trust = Trust(_authors(state / "principals" / "author"), (run_key.public_key,))
    return Surroundings(
        flower=state / "flower",
        store=RunStore(database, ledger, clock),
        devices=Devices(database),
        shelf=RegistryShelf(Registry(database, ledger, state / "blobs", clock, trust, ())),
        run_key=run_key,
        clock=clock,
    )


def _authors(folder: Path) -> tuple[PublicKey, ...]:
    try:
        texts = [path.read_bytes()[: MAX_KEY_BYTES + 1].decode("ascii") for path in sorted(folder.glob("*.pem"))]
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"an author's key in {folder} cannot be read") from error
    return tuple(PublicKey.from_pem(text) for text in texts)


if __name__ == "__main__":
    sys.exit(main())
