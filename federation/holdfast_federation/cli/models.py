"""`holdfast coordinator models STATE [list | add | approve | assign]`: parse, call the operator's API, print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import StateError, UsageError

if TYPE_CHECKING:
    from holdfast_federation.admin.client import AdminClient


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the state folder of the running coordinator")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (default: list)")
    as_json = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: the flag may stand before the action, too, and must not be reset here
    as_json.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    actions.add_parser("list", help="what is published, and where it runs", parents=[as_json])
    add = actions.add_parser("add", help="publish a bundle", parents=[as_json])
    add.add_argument("bundle", metavar="FILE", type=Path, help="a bundle signed by a known author")
    approve = actions.add_parser("approve", help="hand in a person's signed decision", parents=[as_json])
    approve.add_argument("document", metavar="FILE", type=Path, help="what `holdfast approve` wrote")
    assign = actions.add_parser("assign", help="have devices serve an approved bundle", parents=[as_json])
    assign.add_argument("name", metavar="NAME")
    assign.add_argument("version", metavar="VERSION")
    who = assign.add_mutually_exclusive_group(required=True)
    who.add_argument("--device", action="append", metavar="ID", help="a device; may be repeated")
    who.add_argument("--all", action="store_true", help="every device that is not revoked")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    client = AdminClient(arguments.state)
    action = arguments.action or "list"
    if action == "list":
        result = client.get("/v1/models")
        text = _table(cast("list[dict[str, object]]", result["models"]))
    elif action == "add":
        result = _post(client, "/v1/models", arguments.bundle)
        text = f"published {result['name']} {result['version']}, signed by the {result['signed_by']} key\n"
        text += f"digest {result['digest']}\nit can be assigned once a person approved it: holdfast approve"
    elif action == "approve":
        result = _post(client, "/v1/approvals", arguments.document)
        text = (
            f"{result['decision']} by key {str(result['key_id'])[:16]} taken in; the bundle is now: {result['state']}"
        )
    elif action == "assign":
        body: dict[str, object] = {"name": arguments.name, "version": arguments.version}
        result = client.post("/v1/assignments", {**body, **_devices(arguments)})
        numbers = cast("dict[str, int]", result["numbers"])
        text = f"{result['model']} {result['version']} assigned to {len(numbers)} devices: {', '.join(sorted(numbers))}"
    else:
        raise UsageError(f"unknown action {action!r}")
    print(json.dumps(result) if arguments.json else text)
    return EXIT_OK


def _devices(arguments: argparse.Namespace) -> dict[str, object]:
    return {"all": True} if arguments.all else {"devices": list(arguments.device)}


def _post(client: AdminClient, path: str, file: Path) -> dict[str, object]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror or error}") from error
    result: object = json.loads(client.call("POST", path, data))
    return cast("dict[str, object]", result)


def _table(models: list[dict[str, object]]) -> str:
    if not models:
        return "nothing is published; publish a bundle: holdfast coordinator models STATE add FILE"
    lines = [f"{'MODEL':24} {'VERSION':12} {'DIGEST':16} {'SIGNED BY':9} {'STATE':18} ASSIGNED ACTIVE"]
    for each in models:
        digest = str(each["digest"])[:16]
        lines.append(
            f"{each['name']!s:24} {each['version']!s:12} {digest} {each['signed_by']!s:9} {each['state']!s:18}"
            f" {each['assigned_to']!s:>8} {each['active_on']!s:>6}"
        )
    return "\n".join(lines)


MODELS = Command(
    help="publish, approve, assign and list models",
    add_arguments=_arguments,
    run=_run,
    description=(
        "The models of a running coordinator. Devices check every signature again with keys of their own.\n\n"
        "  holdfast coordinator models state add digits-1.bundle\n"
        "  holdfast approve digits-1.bundle --key alice/ -o yes.json\n"
        "  holdfast coordinator models state approve yes.json\n"
        "  holdfast coordinator models state assign digits 1 --all\n"
        "  holdfast coordinator models state"
    ),
)
