"""Keeps a run worker alive for every unfinished run, the SuperLink under them, and the recurring schedule.

The SuperLink is started with the first run, not before: a coordinator without rounds does not pay for it. A worker
that crashes is started again and goes on from its checkpoint; after too many crashes its run fails with that reason.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, RoundError
from holdfast.lifecycle import Stop
from holdfast.trust.durable import make_folder
from holdfast_federation.rounds.schedule import ScheduledRun, next_due
from holdfast_federation.rounds.start import RunWish
from holdfast_federation.rounds.store import RunStore
from holdfast_federation.rounds.superlink import SuperLink

logger = logging.getLogger(__name__)

TICK_S = 0.3
STOP_TIMEOUT_S = 5.0
MAX_CRASHES = 5  # of one run's worker, since this coordinator started
MAX_WORKERS = 4  # at once, 130 MB each; further runs wait


class RoundSupervisor:
    """For a lifecycle task. Args: origin: of the ledger; start: enters a run (for the schedule)."""

    def __init__(
        self,
        state: Path,
        origin: str,
        store: RunStore,
        clock: Clock,
        schedule: Sequence[ScheduledRun] = (),
        start: Callable[[RunWish], object] | None = None,
    ) -> None:
        self._state = state
        self._origin = origin
        self._store = store
        self._clock = clock
        self._schedule = schedule
        self._start = start
        self._superlink: SuperLink | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._crashes: dict[str, int] = {}

    @property
    def superlink_pid(self) -> int:
        """Process id of the SuperLink; 0 before the first run."""
        return 0 if self._superlink is None else self._superlink.pid

    def worker_pids(self) -> dict[str, int]:
        """Run id -> process id."""
        return {run_id: process.pid for run_id, process in self._workers.items()}

    def run(self, stop: Stop) -> None:
        """Until `stop` is set; then end the children. What they were at is on disk."""
        try:
            while not stop.wait(TICK_S):
                self.tick()
        finally:
            self.stop()

    def tick(self) -> None:
        """One look: the schedule, the SuperLink, the workers."""
        self._start_due()
        self._reap()
        waiting = [run for run in self._store.unfinished() if run.spec.run_id not in self._workers]
        if not waiting and not self._workers:
            return
        if self._superlink is None:
            self._superlink = SuperLink(self._state / "flower", self._clock)
            self._superlink.start()
        self._superlink.tend()
        for run in waiting[: MAX_WORKERS - len(self._workers)]:
            self._spawn(run.spec.run_id)

    def stop(self) -> None:
        """End workers and SuperLink."""
        for process in self._workers.values():
            process.send_signal(signal.SIGTERM)
        for process in self._workers.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers.clear()
        if self._superlink is not None:
            self._superlink.stop()
            self._superlink = None

    def _spawn(self, run_id: str) -> None:
        folder = self._state / "flower" / "runs"
        make_folder(folder)
        command = [
            *(sys.executable, "-m", "holdfast_federation.rounds.run_worker"),
            *(str(self._state), run_id, "--origin", self._origin, "--parent", str(os.getpid())),
        ]
        environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        with (folder / f"{run_id}.log").open("ab") as log:
            self._workers[run_id] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _reap(self) -> None:
        for run_id, process in list(self._workers.items()):
            if process.poll() is None:
                continue
            del self._workers[run_id]
            if process.returncode == 0:
                continue
            self._crashes[run_id] = self._crashes.get(run_id, 0) + 1
            logger.warning("a run worker crashed", extra={"run_id": run_id, "exit_code": process.returncode})
            if self._crashes[run_id] >= MAX_CRASHES:
                try:
                    self._store.move(run_id, "fail", reason=f"its worker crashed {MAX_CRASHES} times; read its log")
                except RoundError:
                    logger.info("the run had ended", extra={"run_id": run_id})

    def _start_due(self) -> None:
        if self._start is None:
            return
        now = self._clock.utc_ns()
        for entry in self._schedule:
            if now < next_due(entry, self._store.last_started(entry.name), now):
                continue
            self._store.enter_start(entry.name, now)  # first: a start that fails is tried again at its next time
            wish = RunWish(
                model=entry.model,
                purpose=entry.purpose,
                rounds=entry.rounds,
                quorum=entry.quorum,
                minimum_devices=entry.minimum_devices,
                deadline_s=entry.deadline_s,
            )
            try:
                self._start(wish)
            except HoldfastError as error:
                logger.warning("a scheduled run was not started", extra={"schedule": entry.name, "reason": str(error)})
