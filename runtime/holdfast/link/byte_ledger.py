"""What left this device, in bytes by purpose: the serialised requests of every call, sent or resent.

Counts payload bytes as handed to gRPC; TLS and HTTP/2 framing are not in it.
"""

from __future__ import annotations

import threading
from collections import Counter

REPORT = "report"
CHECK_IN = "check_in"
FETCH = "fetch"
FEDERATED = "federated"
ENROLMENT = "enrolment"


class ByteLedger:
    """Thread-safe counters that are read out once per window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_take: Counter[str] = Counter()
        self._total: Counter[str] = Counter()

    def add(self, purpose: str, size_bytes: int) -> None:
        """Note that `size_bytes` are about to leave for `purpose`."""
        with self._lock:
            self._since_take[purpose] += size_bytes
            self._total[purpose] += size_bytes

    def take(self) -> dict[str, int]:
        """Bytes by purpose since the last `take`."""
        with self._lock:
            taken = dict(self._since_take)
            self._since_take.clear()
        return taken

    def total(self) -> dict[str, int]:
        """Bytes by purpose since the process started; does not reset anything."""
        with self._lock:
            return dict(self._total)
