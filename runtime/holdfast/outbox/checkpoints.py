"""The coordinator's log as this device last saw it. A log that shrank, or changed without growing, is refused.

That a grown log still holds what it held before needs a consistency proof, which the coordinator does not send yet;
until then devices notice a log that went back, and evidence exports are checked against the remembered text.
"""

from __future__ import annotations

from pathlib import Path

from holdfast.errors import StateError, TrustError
from holdfast.trust.checkpoint import MAX_NOTE_BYTES, Checkpoint, verify_checkpoint
from holdfast.trust.durable import write_atomic
from holdfast.trust.keys import PublicKey


class CheckpointMemory:
    """The last checkpoint, on disk in `folder`. Not thread-safe: the sender owns it."""

    def __init__(self, folder: Path, ledger_key: PublicKey) -> None:
        self._path = folder / "last"
        self._ledger_key = ledger_key
        self._last = self._load()

    @property
    def last(self) -> Checkpoint | None:
        return self._last

    def take(self, text: str) -> None:
        """Check a checkpoint against the last one and remember it. An empty text is nothing.

        Raises:
            TrustError: not signed by the ledger key, another log, or one that shrank or was rewritten.
            FormatError: it is not a checkpoint.
        """
        if not text:
            return
        new, old = self._verified(text), self._last
        if old is not None:
            if new.origin != old.origin:
                raise TrustError(f"the coordinator shows the log {new.origin!r}, this device knows {old.origin!r}")
            if new.size < old.size:
                raise TrustError(f"the coordinator's log went back from {old.size} to {new.size} entries")
            if new.size == old.size and new.root != old.root:
                raise TrustError(f"the coordinator's log of {old.size} entries was rewritten: its root changed")
        if old is None or new.size > old.size:
            write_atomic(self._path, text.encode(), 0o644)
            self._last = new

    def _verified(self, text: str) -> Checkpoint:
        # the log's key signs under the log's own name, which is the first line
        return verify_checkpoint(text, text.partition("\n")[0], self._ledger_key)

    def _load(self) -> Checkpoint | None:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"cannot read {self._path}: {error.strerror or error}") from error
        return self._verified(data.decode("utf-8", errors="replace"))
