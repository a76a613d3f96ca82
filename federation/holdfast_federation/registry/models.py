"""Models and their versions: what was published, by whom it was signed, who said yes or no.

Rules: only a bundle that devices would accept is published (author's signature, or a run-signed candidate inside its
author's envelope); its blob is on disk before its row; row, ledger entry and event are one transaction. The checks here
spare everybody a useless rollout; devices repeat them with keys of their own and never rely on this room.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from holdfast.bundle.approval import REJECT, VerifiedApproval, check_approved, standing_decisions, verify_approval
from holdfast.bundle.files import WEIGHTS_FILE
from holdfast.bundle.manifest import Lineage
from holdfast.bundle.verify import Trust, VerifiedBundle, read_bundle, verify_bundle
from holdfast.clock import Clock
from holdfast.errors import TrustError, UnknownModelError, UsageError
from holdfast.trust.envelope import to_json
from holdfast.trust.keys import PublicKey
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import BundleRecord, FetchResponse
from holdfast_federation.database import Database
from holdfast_federation.events.outbox import emit
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry.blobs import Blobs


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One published bundle. `parent_digest`, `ancestor_digest` and `run_id` are empty unless it is a candidate."""

    name: str
    version: str
    digest: str
    blob_sha256: str
    blob_size_bytes: int
    signed_by: str
    author_key_ids: tuple[str, ...]
    owner: str
    purpose: str
    parent_digest: str
    ancestor_digest: str
    run_id: str
    change_norm: float
    added_utc_ns: int


class Registry:
    """The published models.

    Args:
        blobs: folder for the containers.
        trust: the authors' keys and the coordinator's own run key.
        approvers: keys of the people who may approve.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        blobs: Path,
        clock: Clock,
        trust: Trust,
        approvers: tuple[PublicKey, ...],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._blobs = Blobs(blobs)
        self._clock = clock
        self._trust = trust
        self._approvers = approvers

    def add(self, container: bytes) -> ModelVersion:
        """Publish a bundle; publishing it again changes nothing.

        Raises:
            FormatError, TrustError: it is damaged, or devices would not accept it.
            UsageError: its name and version are taken by another bundle.
        """
        unverified = read_bundle(container)
        bundle = verify_bundle(unverified, self._trust, ancestor_weights=self._ancestor_weights)
        known = self.find(bundle.digest)
        if known is not None:
            return known
        self._blobs.put(container)
        record = BundleRecord(bundle.manifest_bytes, to_json(unverified.signature), bundle.blob_sha256)
        with self._database.write() as cx:
            if self._insert(cx, bundle):
                self._ledger.record(cx, "bundle", bundle.digest, to_bytes(record))
                emit(cx, "bundle", bundle.digest, bundle.manifest.name.encode(), self._clock)
        return self.get(bundle.digest)

    def find(self, digest: str) -> ModelVersion | None:
        """The bundle of that digest, or None."""
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM bundles WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else _version(row)

    def get(self, digest: str) -> ModelVersion:
        """The bundle of that digest.

        Raises:
            UnknownModelError: it was never published.
        """
        version = self.find(digest)
        if version is None:
            raise UnknownModelError(f"bundle {digest[:16]!r} is not published; see: holdfast coordinator models")
        return version

    def named(self, name: str, version: str) -> ModelVersion:
        """The bundle of that name and version.

        Raises:
            UnknownModelError: there is none.
        """
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM bundles WHERE name = ? AND version = ?", (name, version)).fetchone()
        if row is None:
            raise UnknownModelError(
                f"model {name[:100]!r} has no version {version[:100]!r}; see: holdfast coordinator models"
            )
        return _version(row)

    def models(self) -> tuple[ModelVersion, ...]:
        """Everything published, by name and then by age."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT * FROM bundles ORDER BY name, added_utc_ns, version").fetchall()
        return tuple(_version(row) for row in rows)

    def container(self, digest: str) -> bytes:
        """The bytes of a bundle.

        Raises:
            UnknownModelError: it was never published. StateError: the disk lost or changed it.
        """
        return self._blobs.get(self.get(digest).blob_sha256)

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        """A part of a container. Who may have it is for the rollout to say."""
        return self._blobs.piece(blob_sha256, offset, max_bytes)

    def approve(self, document: bytes) -> VerifiedApproval:
        """Take in a person's signed decision, yes or no; the same document again changes nothing.

        Raises:
            TrustError: none of the known approvers signed it. FormatError: it is damaged.
            UnknownModelError: it is about a bundle that was never published.
        """
        verified = verify_approval(document, self._approvers)
        approval = verified.approval
        self.get(approval.subject_digest)
        sha256 = hashlib.sha256(document).hexdigest()
        with self._database.write() as cx:
            if cx.execute("SELECT 1 FROM approvals WHERE document_sha256 = ?", (sha256,)).fetchone() is not None:
                return verified
            cx.execute(
                "INSERT INTO approvals (document_sha256, digest, key_id, decision, role, document, received_utc_ns)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    sha256,
                    approval.subject_digest,
                    verified.key_id,
                    approval.decision,
                    approval.role,
                    document,
                    self._clock.utc_ns(),
                ),
            )
            self._ledger.record(cx, "approval", approval.subject_digest, document)
            emit(cx, "approval", approval.subject_digest, document, self._clock)
        return verified

    def approvals(self, digest: str) -> tuple[bytes, ...]:
        """All documents about a bundle, oldest first, as they were signed."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT document FROM approvals WHERE digest = ? ORDER BY received_utc_ns, document_sha256", (digest,)
            ).fetchall()
        return tuple(bytes(row["document"]) for row in rows)

    def check_approved(self, digest: str) -> VerifiedApproval:
        """The approval by which devices will accept a bundle now.

        Raises:
            TrustError: there is none, it has expired, only the author gave it, or somebody said no.
        """
        version = self.get(digest)
        verified = self._verified_approvals(digest)
        return check_approved(verified, digest, author_key_ids=version.author_key_ids, now_utc_ns=self._clock.utc_ns())

    def state(self, digest: str) -> str:
        """For people: "approved", "rejected" or "waits for approval"."""
        standing = standing_decisions(self._verified_approvals(digest), digest, self._clock.utc_ns())
        if any(each.approval.decision == REJECT for each in standing):
            return "rejected"
        authors = self.get(digest).author_key_ids
        return "approved" if any(each.key_id not in authors for each in standing) else "waits for approval"

    def _verified_approvals(self, digest: str) -> list[VerifiedApproval]:
        return [verify_approval(document, self._approvers) for document in self.approvals(digest)]

    def _ancestor_weights(self, lineage: Lineage) -> bytes:
        ancestor = self.find(lineage.ancestor_digest)
        if ancestor is None:
            raise TrustError(f"the author-signed ancestor {lineage.ancestor_digest[:16]} is not published here; add it")
        if ancestor.blob_sha256 != lineage.ancestor_blob_sha256:
            raise TrustError("devices could not fetch the ancestor: the candidate names another blob of it")
        return read_bundle(self._blobs.get(ancestor.blob_sha256)).files[WEIGHTS_FILE]

    def _insert(self, cx: sqlite3.Connection, bundle: VerifiedBundle) -> bool:
        """Whether it is new; somebody else may have published it a moment ago."""
        manifest, lineage = bundle.manifest, bundle.manifest.lineage
        taken = cx.execute(
            "SELECT digest FROM bundles WHERE name = ? AND version = ?", (manifest.name, manifest.version)
        ).fetchone()
        if taken is not None and taken["digest"] == bundle.digest:
            return False
        if taken is not None:
            raise UsageError(
                f"{manifest.name} {manifest.version} is published already with other content "
                f"({taken['digest'][:16]}); pack it under a new version"
            )
        cx.execute(
            "INSERT INTO bundles (digest, name, version, blob_sha256, blob_size_bytes, signed_by, author_key_ids,"
            " owner, purpose, parent_digest, ancestor_digest, run_id, change_norm, added_utc_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                bundle.digest,
                manifest.name,
                manifest.version,
                bundle.blob_sha256,
                bundle.blob_size_bytes,
                bundle.signed_by,
                json.dumps(bundle.author_key_ids),
                manifest.owner,
                manifest.purpose,
                lineage.parent_digest if lineage else "",
                lineage.ancestor_digest if lineage else "",
                lineage.run_id if lineage else "",
                bundle.change_norm,
                self._clock.utc_ns(),
            ),
        )
        return True


def _version(row: sqlite3.Row) -> ModelVersion:
    values = {key: row[key] for key in row.keys() if key != "author_key_ids"}  # noqa: SIM118  # a Row iterates its values
    return ModelVersion(author_key_ids=tuple(json.loads(row["author_key_ids"])), **values)
