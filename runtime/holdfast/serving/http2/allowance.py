"""What a peer may do on one connection for nothing: frames that ask for nothing, streams cancelled, streams faulty.

Rules: each has a rate of its own (`Http2Limits`); a request answered pays for one more of the first two; for PINGs
gRPC's own rule holds besides; whoever goes beyond is told ENHANCE_YOUR_CALM, and the connection ends. Credit is only
written down until somebody asks for it: an answer must not pay for the accounting of floods that do not come.
"""

from __future__ import annotations

from typing import Final

from holdfast.serving.http2.errors import ConnectionFault, ErrorCode
from holdfast.serving.http2.limits import Bucket, Http2Limits

TOO_MANY_PINGS: Final = "too_many_pings"  # gRPC clients know the word: they ping half as often from then on (gRFC A8)
NEVER_S: Final = float("-inf")


class Allowance:
    """The accounts of one connection. `earned`: requests answered, not yet credited; `now_s`: of the turn under way."""

    __slots__ = ("_controls", "_faults", "_pinged_s", "_pings", "_resets", "_strikes", "earned", "now_s")

    def __init__(self, limits: Http2Limits, now_s: float) -> None:
        self.earned = 0
        self.now_s = now_s
        self._pings = limits.pings
        self._strikes, self._pinged_s = 0, NEVER_S
        self._resets = Bucket(limits.resets, now_s)
        self._controls = Bucket(limits.controls, now_s)
        self._faults = Bucket(limits.faults, now_s)

    def credit(self) -> None:
        """Useful work pays for frames that ask for nothing."""
        self._controls.give(self.earned)
        self._resets.give(self.earned)
        self.earned = 0
        self.forgive_pings()

    def charge(self, text: str = "too many frames that ask for nothing") -> None:
        """A frame that asks for nothing. Raises: ConnectionFault: `text`; one too many."""
        if self.earned:
            self.credit()
        if not self._controls.take(self.now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)

    def ping(self, *, is_idle: bool) -> None:
        """A PING; `is_idle`: no stream is open. Raises: ConnectionFault: too many, too early."""
        self.charge(TOO_MANY_PINGS)
        rules = self._pings
        due_s = self._pinged_s + (rules.min_idle_interval_s if is_idle else rules.min_interval_s)
        self._pinged_s = self.now_s
        if self.now_s < due_s and rules.max_strikes:
            self._strikes += 1
            if self._strikes > rules.max_strikes:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, TOO_MANY_PINGS)

    def forgive_pings(self) -> None:
        """We sent something of use: a PING after it may well ask whether it came."""
        self._strikes, self._pinged_s = 0, NEVER_S

    def cancel(self) -> None:
        """A stream cancelled by the peer. Raises: ConnectionFault: one too many."""
        if self.earned:
            self.credit()
        if not self._resets.take(self.now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams cancelled")

    def fault(self) -> None:
        """A stream refused or faulty. Raises: ConnectionFault: one too many."""
        if not self._faults.take(self.now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many faulty streams")
