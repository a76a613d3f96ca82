"""A run worker over a folder of bundles: `python -m tests.fakes.run_worker STATE RUN_ID`.

The same process as the coordinator's own, except that bundles lie as files in `shelf/` and keys in `lab/`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fakes.folder_shelf import FolderShelf

from holdfast.clock import SystemClock
from holdfast.trust.keystore import KeyStore
from holdfast_federation.database import Database
from holdfast_federation.devices.records import Devices
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.working import Surroundings, work


def main(folder: Path, run_id: str) -> int:
    clock = SystemClock()
    keys = KeyStore(folder / "authority")
    database = Database(folder / "holdfast.db", ())
    ledger = Ledger(database, keys.load("ledger"), "lab/ledger", clock)
    around = Surroundings(
        flower=folder / "flower",
        store=RunStore(database, ledger, clock),
        devices=Devices(database),
        shelf=FolderShelf(folder / "shelf"),
        run_key=keys.load("run"),
        clock=clock,
    )
    print(work(run_id, around))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
