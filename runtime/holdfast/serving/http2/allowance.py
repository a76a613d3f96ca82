"""What a peer may do on one connection for nothing: frames that ask for nothing, streams cancelled, streams faulty.

Rules: each has a rate of its own (`Http2Limits`); a request answered pays for one more of the first two; whoever goes
beyond is told ENHANCE_YOUR_CALM, and the connection ends. Credit is only written down until somebody asks for it: an
answer must not pay for the accounting of floods that do not come.
"""

from __future__ import annotations

from holdfast.serving.http2.errors import ConnectionFault, ErrorCode
from holdfast.serving.http2.limits import Bucket, Http2Limits


class Allowance:
    """The accounts of one connection. `earned`: requests answered, not yet credited; `now_s`: of the turn under way."""

    __slots__ = ("_controls", "_faults", "_resets", "earned", "now_s")

    def __init__(self, limits: Http2Limits, now_s: float) -> None:
        self.earned = 0
        self.now_s = now_s
        self._resets = Bucket(limits.resets, now_s)
        self._controls = Bucket(limits.controls, now_s)
        self._faults = Bucket(limits.faults, now_s)

    def credit(self) -> None:
        """Useful work pays for frames that ask for nothing."""
        self._controls.give(self.earned)
        self._resets.give(self.earned)
        self.earned = 0

    def charge(self, text: str = "too many frames that ask for nothing") -> None:
        """A frame that asks for nothing. Raises: ConnectionFault: `text`; one too many."""
        if self.earned:
            self.credit()
        if not self._controls.take(self.now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)

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
