"""`holdfast coordinator init | run | token | devices`: parse, call, print."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import UsageError


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the new state folder")
    parser.add_argument("--trust-domain", required=True, metavar="DOMAIN", help="for example plant7.example")
    parser.add_argument("--author-key", action="append", default=[], type=Path, metavar="FILE", help="public key (PEM)")
    parser.add_argument("--approver-key", action="append", default=[], type=Path, metavar="FILE", help="public key")
    parser.add_argument("--site-key", action="append", default=[], metavar="NAME=FILE", help="a site's public key")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _init(arguments: argparse.Namespace) -> int:
    from holdfast.clock import SystemClock
    from holdfast_federation.database import Database
    from holdfast_federation.enrolment.authority import CertificateAuthority
    from holdfast_federation.server.build import SCHEMAS
    from holdfast_federation.server.state import Principals, create_state, read_public_keys

    sites = {}
    for text in arguments.site_key:
        name, separator, file = text.partition("=")
        if not separator or name in sites:
            raise UsageError(f"--site-key {text!r} is not NAME=FILE with a name of its own; example: north=site.pub")
        sites[name] = read_public_keys([Path(file)])[0]
    authors, approvers = read_public_keys(arguments.author_key), read_public_keys(arguments.approver_key)
    clock = SystemClock()
    state = create_state(arguments.state, arguments.trust_domain, Principals(authors, approvers, sites), clock)
    Database(state.database, SCHEMAS).close()
    authority = CertificateAuthority.load(state.authority, clock)
    facts = {
        "state": str(arguments.state),
        "trust_domain": authority.trust_domain,
        "authority_sha256": authority.pin,
        "ledger_key": str(state.authority / "ledger.pub"),
    }
    if arguments.json:
        print(json.dumps(facts))
        return EXIT_OK
    print(f"coordinator of {facts['trust_domain']} made in {facts['state']}")
    print(f"root key of its ledger (auditors need it): {facts['ledger_key']}")
    print(f"start it with: holdfast coordinator run {facts['state']}")
    return EXIT_OK


INIT = Command(
    help="make the state folder of a new coordinator",
    description=(
        "Make a coordinator's state folder: its keys, its certificate authority and its database.\n"
        "The keys of authors, approvers and sites stay with them; give their public halves here.\n\n"
        "  holdfast coordinator init state --trust-domain plant7.example \\\n"
        "      --author-key author.pub --approver-key approver.pub --site-key north=north.pub"
    ),
    add_arguments=_init_arguments,
    run=_init,
)


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the state folder that `init` made")
    parser.add_argument("--enrolment-listen", metavar="HOST:PORT", help="port 0 takes any free one")
    parser.add_argument("--device-listen", metavar="HOST:PORT")
    parser.add_argument("--page-listen", metavar="HOST:PORT")
    parser.add_argument("--advertise-host", metavar="HOST", help="what tokens and devices are told")
    parser.add_argument("--check-in-s", type=float, metavar="S", help="how often devices ask what to do")
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="write the addresses here as JSON when ready")
    parser.add_argument("--json", action="store_true", help="print the addresses as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.clock import SystemClock
    from holdfast.errors import StateError
    from holdfast.lifecycle import Stop, Task, run, stop_on_signals
    from holdfast.settings import load
    from holdfast_federation.server.build import Coordinator
    from holdfast_federation.server.rounds_part import models_and_rounds
    from holdfast_federation.server.settings import CoordinatorSettings
    from holdfast_federation.server.state import StateFolder

    path = StateFolder(arguments.state).settings
    if not path.exists():
        raise StateError(f"{arguments.state} is not a coordinator's state folder; make it: holdfast coordinator init")

    def until_stopped(stop: Stop) -> None:
        while not stop.wait(3_600.0):
            pass

    names = ("enrolment_listen", "device_listen", "page_listen", "advertise_host", "check_in_s")
    settings = load(CoordinatorSettings, path=path, flags={name: getattr(arguments, name) for name in names})
    stop = Stop()
    coordinator = Coordinator(arguments.state, settings, SystemClock(), models_and_rounds)
    with stop_on_signals(stop):
        coordinator.start()
        try:
            _show_addresses(coordinator.addresses, as_json=arguments.json)
            if arguments.ready_file is not None:
                coordinator.write_ready_file(arguments.ready_file)
            run([Task("listeners", until_stopped), *coordinator.tasks], stop)
        finally:
            coordinator.stop()
    return EXIT_OK


def _show_addresses(addresses: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dict(addresses)), flush=True)
        return
    print(f"devices enrol at  {addresses['enrolment']}")
    print(f"devices report to {addresses['device']}")
    print(f"page              {addresses['page']}")
    print("stop with Ctrl-C", flush=True)


RUN = Command(
    help="run the coordinator until Ctrl-C",
    description=(
        "Run the coordinator of a state folder. Settings: settings.toml in it < HOLDFAST_* < flags.\n\n"
        "  holdfast coordinator run state\n"
        "  holdfast coordinator run state --device-listen 0.0.0.0:7444 --enrolment-listen 0.0.0.0:7443 \\\n"
        "      --advertise-host coordinator.plant7.example"
    ),
    add_arguments=_run_arguments,
    run=_run,
)


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the state folder of the running coordinator")
    parser.add_argument("--site", required=True, help="the site that the device belongs to")
    parser.add_argument("--name", default="", help="what the device shall be called")
    parser.add_argument("--ttl", type=int, metavar="S", help="seconds until the token expires (default 3600)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _token(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    body: dict[str, object] = {"site": arguments.site, "name": arguments.name}
    if arguments.ttl is not None:
        body["ttl_s"] = arguments.ttl
    answer = AdminClient(arguments.state).post("/v1/tokens", body)
    print(json.dumps(answer) if arguments.json else answer["token"])
    return EXIT_OK


TOKEN = Command(
    help="make a join token for one device",
    description=(
        "Make a join token: good for one device, for a limited time. It is a secret until it is used; give it only\n"
        "to whoever sets up the device.\n\n"
        "  holdfast coordinator token state --site north --name ward-3 --ttl 900"
    ),
    add_arguments=_token_arguments,
    run=_token,
)


def _devices_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the state folder of the running coordinator")
    parser.add_argument("action", nargs="?", choices=["list", "revoke"], default="list")
    parser.add_argument("device_id", nargs="?", metavar="ID", help="the device to revoke")
    parser.add_argument("--reason", default="", help="why, for the record")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _devices(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    client = AdminClient(arguments.state)
    if arguments.action == "revoke":
        if not arguments.device_id:
            raise UsageError("name the device to revoke: holdfast coordinator devices STATE revoke ID")
        answer = client.post(f"/v1/devices/{_quoted(arguments.device_id)}/revoke", {"reason": arguments.reason})
        said = "is revoked" if answer["revoked_now"] else "was revoked before"
        print(json.dumps(answer) if arguments.json else f"device {arguments.device_id} {said}")
        return EXIT_OK
    answer = client.get("/v1/devices")
    if arguments.json:
        print(json.dumps(answer))
        return EXIT_OK
    rows = cast("list[dict[str, object]]", answer["devices"])
    print(f"{'device':<24} {'site':<12} {'name':<16} {'records':>8}  state")
    for row in rows:
        state = "revoked" if row["revoked_utc_ns"] else "forked" if row["forks"] else "enrolled"
        print(f"{row['device_id']:<24} {row['site']:<12} {row['name']:<16} {row['head_seq']:>8}  {state}")
    return EXIT_OK


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


DEVICES = Command(
    help="list the devices, or revoke one",
    description=(
        "List the devices of the running coordinator, or take one out for good.\n\n"
        "  holdfast coordinator devices state\n"
        "  holdfast coordinator devices state revoke ward-3 --reason 'stolen'"
    ),
    add_arguments=_devices_arguments,
    run=_devices,
)
