"""From windows to records: closes them in time, asks the policy, and hands on what may leave.

A record that cannot be stored now (the disk is full) is kept and tried again with the next window, up to a bound; what
is beyond it is counted and logged, and serving goes on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, StateError
from holdfast.lifecycle import Stop
from holdfast.observe.data_window import DataMeter
from holdfast.observe.window import WindowMeter
from holdfast.policy.document import VerifiedPolicy
from holdfast.policy.evaluate import may_report
from holdfast.wire.messages import DataWindow, OperationalWindow

logger = logging.getLogger(__name__)

MAX_WAITING = 60  # windows that wait for a disk with room: an hour of 60 s windows

Window = OperationalWindow | DataWindow


@dataclass(frozen=True, slots=True)
class Pace:
    """window_s: length of an operational window. data_window_s: the least time between two data windows."""

    window_s: float
    data_window_s: float


class WindowRecorder:
    """The task that closes windows.

    Args:
        append: signs and stores one record; `Journal.append`.
        policy: the policy in force, None before the first.
    """

    def __init__(
        self,
        meters: tuple[WindowMeter, DataMeter],
        policy: Callable[[], VerifiedPolicy | None],
        append: Callable[[Window], int],
        pace: Pace,
        clock: Clock,
    ) -> None:
        self._meter, self._data_meter = meters
        self._policy = policy
        self._append = append
        self._pace = pace
        self._clock = clock
        self._waiting: deque[Window] = deque()
        self._data_since_s = clock.monotonic_s()

    def run(self, stop: Stop) -> None:
        """Close windows until `stop`; the last one is closed by whoever stops the server."""
        while not stop.wait(self._pace.window_s):
            self.tick()

    def tick(self) -> None:
        """Close what is due and hand it on."""
        policy, now_utc_ns = self._policy(), self._clock.utc_ns()
        window = self._meter.close()
        if may_report(policy, "operational", 0, now_utc_ns=now_utc_ns).accepted:
            self._wait(window)
        self._data_meter.count()
        now_s = self._clock.monotonic_s()
        if now_s - self._data_since_s >= self._pace.data_window_s:
            self._data_since_s = now_s
            minimum_rows = policy.policy.reports.minimum_rows if policy is not None else 0
            for data in self._data_meter.close(minimum_rows):
                # asked again with the true number of rows: the policy decides, not the meter
                if may_report(policy, "data", data.rows, now_utc_ns=now_utc_ns).accepted:
                    self._wait(data)
        self._store()

    def _wait(self, window: Window) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            logger.error("window lost: the journal cannot be written", extra={"waiting": MAX_WAITING})
        self._waiting.append(window)

    def _store(self) -> None:
        while self._waiting:
            try:
                self._append(self._waiting[0])
            except StateError as error:
                logger.error("window not stored", extra={"error": str(error), "waiting": len(self._waiting)})
                return
            except HoldfastError as error:
                # not a matter of waiting, for example larger than a record may be
                logger.error("window refused by the journal", extra={"error": str(error)})
            self._waiting.popleft()


def data_allowed(policy: VerifiedPolicy | None, clock: Clock) -> bool:
    """Whether data windows may be counted now: the policy allows them for some number of rows."""
    if policy is None:
        return False
    rows = policy.policy.reports.minimum_rows
    return may_report(policy, "data", rows, now_utc_ns=clock.utc_ns()).accepted
