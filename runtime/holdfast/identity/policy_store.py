"""The policy in force on this device: installed by its owner, verified by the pinned site key, told in the chain.

A newer policy is dropped into `policy/` as any *.json, or given to `agent run --policy`; nothing comes from the
coordinator. Only a signed, unexpired policy with a higher number is installed; a dropped file that is refused is
renamed to *.refused and stays to be looked at. An installed policy that expires stays in force for what it forbids.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import PolicyError, StateError
from holdfast.lifecycle import Stop
from holdfast.policy.document import VerifiedPolicy, read_policy, verify_policy
from holdfast.trust.durable import write_atomic
from holdfast.trust.keys import PublicKey
from holdfast.wire.limits import MAX_DOCUMENT_BYTES
from holdfast.wire.messages import PolicyChange

logger = logging.getLogger(__name__)

INSTALLED, RECORDED = "installed.json", "recorded"
SCAN_S = 2.0  # a dropped policy is in force this soon

Record = Callable[[PolicyChange], int]


class PolicyStore:
    """The policy folder of one device. `current` and `digest` may be read from any thread.

    Raises:
        StateError: the installed policy cannot be read, or is not by the pinned site key any more.
    """

    def __init__(self, folder: Path, site_key: PublicKey, clock: Clock) -> None:
        self._folder = folder
        self._site_key = site_key
        self._clock = clock
        self._lock = threading.Lock()
        self._refused: dict[str, tuple[int, int]] = {}
        self._current = self._load()

    def current(self) -> VerifiedPolicy | None:
        """The policy in force; None before the first. It may have expired: evaluation says so."""
        return self._current

    def digest(self) -> str:
        """Of the policy in force, "" before the first."""
        policy = self._current
        return "" if policy is None else policy.digest

    def install(self, document: bytes, record: Record) -> VerifiedPolicy:
        """Put a newer policy in force and tell it in the chain. The one that is in force already is no error.

        Raises:
            PolicyError: unsigned, by another key, expired, or not newer. Nothing is changed.
            StateError: it cannot be stored.
        """
        with self._lock:
            current = self._current
            if current is not None and document == current.document:
                self._record(current, record)
                return current
            number = None if current is None else current.policy.number
            verified = verify_policy(document, self._site_key, now_utc_ns=self._clock.utc_ns(), installed_number=number)
            write_atomic(self._folder / INSTALLED, document, 0o644)
            self._current = verified
            logger.info("policy installed", extra={"number": verified.policy.number, "digest": verified.digest})
            self._record(verified, record)
            return verified

    def record_installed(self, record: Record) -> None:
        """At the start: tell the chain about a policy whose telling was cut off by a crash."""
        with self._lock:
            if self._current is not None:
                self._record(self._current, record)

    def scan(self, record: Record) -> None:
        """Install what was dropped into the folder, lowest name first.

        A file that is refused twice without having changed in between is renamed. One caller at a time.
        """
        for path in sorted(self._folder.glob("*.json")):
            if path.name == INSTALLED:
                continue
            try:
                self.install(read_document(path), record)
                path.unlink(missing_ok=True)
            except PolicyError as error:
                self._refuse(path, error)

    def _refuse(self, path: Path, error: PolicyError) -> None:
        status = path.stat()
        form = (status.st_size, status.st_mtime_ns)
        if self._refused.get(path.name) != form:
            self._refused[path.name] = form  # perhaps it is being copied just now: judge it when it has settled
            return
        self._refused.pop(path.name)
        logger.error("policy refused", extra={"file": path.name, "error": str(error)})
        path.replace(path.with_suffix(".refused"))

    def watch(self, record: Record, stop: Stop) -> None:
        """Scan until `stop`: a task."""
        while not stop.is_set:
            try:
                self.scan(record)
            except (StateError, OSError) as error:
                logger.error("policy folder not scanned", extra={"error": str(error)})
            stop.wait(SCAN_S)

    def _record(self, policy: VerifiedPolicy, record: Record) -> None:
        marker = self._folder / RECORDED
        if marker.exists() and marker.read_text(encoding="ascii", errors="replace") == policy.digest:
            return
        record(PolicyChange(policy.digest, policy.policy.number, policy.document))
        write_atomic(marker, policy.digest.encode(), 0o644)

    def _load(self) -> VerifiedPolicy | None:
        path = self._folder / INSTALLED
        if not path.exists():
            return None
        try:
            return read_policy(read_document(path), self._site_key)
        except PolicyError as error:
            raise StateError(f"the installed policy {path} does not hold any more: {error}") from error


def read_document(path: Path) -> bytes:
    """The bytes of a policy file, bounded.

    Raises:
        StateError: it cannot be read.
        PolicyError: it is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise StateError(f"policy {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PolicyError(f"policy {path} is larger than {MAX_DOCUMENT_BYTES} bytes; is it the right file?")
    return data
