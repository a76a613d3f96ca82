"""`holdfast key`: makes the key of an author (signs models) or an approver (signs approvals)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from holdfast.cli.command import EXIT_OK, Command

ROLES = ("author", "approver")


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=ROLES, help="author: signs bundles; approver: a person who approves them")
    parser.add_argument("folder", type=Path, help="folder for the key; one principal per folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _create(arguments: argparse.Namespace) -> int:
    from holdfast.trust.keys import ECDSA_P256, ED25519
    from holdfast.trust.keystore import KeyStore

    role: str = arguments.role
    # bundles carry P-256, as OpenSSF Model Signing does
    key = KeyStore(arguments.folder).create(role, ECDSA_P256 if role == "author" else ED25519)
    public = arguments.folder / f"{role}.pub"
    if arguments.json:
        print(json.dumps({"role": role, "key_id": key.public_key.key_id, "public_key": str(public)}))
        return EXIT_OK
    print(f"{role} key {key.public_key.key_id[:16]} in {arguments.folder}; keep the folder to yourself")
    print(f"hand out the public half: {public}")
    return EXIT_OK


CREATE = Command(
    help="make the key of an author or an approver",
    add_arguments=_create_arguments,
    run=_create,
    description="Make a signing key. The private half never leaves the folder.\n\n"
    "example:\n  holdfast key create approver alice",
)
