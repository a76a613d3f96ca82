"""`holdfast site`: the owner of the data makes a key and signs the policy its devices obey."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from holdfast.cli.command import EXIT_OK, Command


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="new folder for the site's key and policies")
    parser.add_argument("--name", help="name of the site; default: the folder's name")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _init(arguments: argparse.Namespace) -> int:
    from holdfast.site.folder import KEY_NAME, SOURCE_NAME, init_site

    folder: Path = arguments.folder
    name = arguments.name or folder.resolve().name
    key = init_site(folder, name)
    public, source = folder / f"{KEY_NAME}.pub", folder / SOURCE_NAME
    if arguments.json:
        print(json.dumps({"site": name, "key_id": key.key_id, "public_key": str(public), "source": str(source)}))
        return EXIT_OK
    print(f"site {name}: key {key.key_id[:16]} in {folder}")
    print(f"hand {public} to whoever enrols devices, edit {source}, then:")
    print(f"  holdfast site sign-policy {folder}")
    return EXIT_OK


def _sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the site's folder")
    parser.add_argument("--source", type=Path, help="policy source in TOML; default: FOLDER/policy.toml")
    parser.add_argument("--number", type=int, help="number of the policy; default: one more than the last")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _sign(arguments: argparse.Namespace) -> int:
    from holdfast.clock import SystemClock
    from holdfast.policy.rules import format_time
    from holdfast.site.folder import sign

    now_utc_ns = SystemClock().utc_ns()
    signed = sign(arguments.folder, now_utc_ns=now_utc_ns, source=arguments.source, number=arguments.number)
    policy = signed.policy.policy
    expires = format_time(policy.expires_utc_ns)
    if arguments.json:
        facts = {"path": str(signed.path), "number": policy.number, "digest": signed.policy.digest, "expires": expires}
        print(json.dumps(facts))
        return EXIT_OK
    print(f"signed policy {policy.number} of {policy.site} ({signed.policy.digest[:16]}), valid until {expires}")
    print(f"install it on a device of this site: holdfast agent run STATE --policy {signed.path}")
    return EXIT_OK


INIT = Command(
    help="make the key of a site and a policy to edit",
    add_arguments=_init_arguments,
    run=_init,
    description="Make the key of a site and a policy to edit. Run it on a machine of the site, not on a device.\n\n"
    "example:\n  holdfast site init north --name 'North hospital'",
)
SIGN_POLICY = Command(
    help="sign the policy that the site's devices obey",
    add_arguments=_sign_arguments,
    run=_sign,
    description="Sign a policy with the site's key. Each signed policy gets a higher number than the one before.\n\n"
    "example:\n  holdfast site sign-policy north",
)
