"""`holdfast approve`: a person says yes or no to a bundle; the signed document goes to the coordinator."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from holdfast.cli.bundle import read_bytes
from holdfast.cli.command import EXIT_OK, Command

DEFAULT_DAYS = 90
NS_PER_DAY = 86_400_000_000_000
KEY_NAME = "approver"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="BUNDLE|DIGEST", help="a bundle file, or the digest of one")
    parser.add_argument("--key", type=Path, required=True, metavar="DIR", help="folder of your approver's key")
    parser.add_argument("--reject", action="store_true", help="say no; it outweighs every yes")
    parser.add_argument("--role", default="approver", help="in which role you decide (default: approver)")
    parser.add_argument("--comment", default="", help="why")
    parser.add_argument("--days", type=int, default=DEFAULT_DAYS, help=f"valid for (default: {DEFAULT_DAYS})")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: DIGEST16.approval.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.bundle.approval import APPROVE, REJECT, Approval, sign_approval
    from holdfast.clock import SystemClock
    from holdfast.errors import UsageError
    from holdfast.trust.durable import write_atomic
    from holdfast.trust.keystore import KeyStore

    if not 1 <= arguments.days <= 3_660:
        raise UsageError(f"--days is {arguments.days}, expected 1 to 3660")
    digest, name = _subject(arguments.subject)
    now_utc_ns = SystemClock().utc_ns()
    approval = Approval(
        subject_digest=digest,
        decision=REJECT if arguments.reject else APPROVE,
        role=arguments.role,
        issued_utc_ns=now_utc_ns,
        expires_utc_ns=now_utc_ns + arguments.days * NS_PER_DAY,
        comment=arguments.comment,
    )
    signer = KeyStore(arguments.key).load(KEY_NAME)
    output: Path = arguments.output or Path(f"{digest[:16]}.approval.json")
    write_atomic(output, sign_approval(approval, signer), 0o644)
    if arguments.json:
        facts = {"document": str(output), "digest": digest, "decision": approval.decision}
        print(json.dumps({**facts, "key_id": signer.public_key.key_id}))
        return EXIT_OK
    print(f"{approval.decision} {name}, signed by key {signer.public_key.key_id[:16]}: {output}")
    print(f"hand it in: holdfast coordinator models STATE approve {output}")
    return EXIT_OK


def _subject(text: str) -> tuple[str, str]:
    """The digest, and how to call the bundle to the person who decides."""
    from holdfast.bundle.documents import SHA256
    from holdfast.bundle.verify import read_bundle
    from holdfast.wire.limits import MAX_BLOB_BYTES

    if re.fullmatch(SHA256, text):
        return text, f"bundle {text[:16]}"
    bundle = read_bundle(read_bytes(Path(text), "bundle", MAX_BLOB_BYTES))
    return bundle.digest, f"{bundle.manifest.name} {bundle.manifest.version} ({bundle.digest[:16]})"


APPROVE = Command(
    help="approve or reject a bundle with your own key",
    add_arguments=_arguments,
    run=_run,
    description="Sign a decision about one bundle. Devices run a model only with a yes by a pinned person's key\n"
    "that is not its author's. The document is handed to the coordinator by whoever operates it.\n\n"
    "example:\n  holdfast approve digits-1.bundle --key alice/ --role 'clinical lead'",
)
