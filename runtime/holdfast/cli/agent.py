"""`holdfast agent enrol | run | status`: the enrolled device."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import FormatError, StateError, UsageError

if TYPE_CHECKING:
    from holdfast.trust.keys import PublicKey

MAX_FILE_BYTES = 16_384  # a public key or a join token; more is another file
NS_PER_S = 1_000_000_000


def _enrol_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="folder for the new device")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="the join token, from: holdfast coordinator token")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds it; - reads standard input")
    parser.add_argument("--site-key", type=Path, required=True, metavar="FILE", help="the site's public key")
    for role in ("author", "approver"):
        text = f"public key of an {role}; may be given more than once"
        parser.add_argument(f"--{role}-key", type=Path, action="append", required=True, metavar="FILE", help=text)
    parser.add_argument("--name", default="", help="what the device is called; the coordinator may refuse it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _enrol(arguments: argparse.Namespace) -> int:
    from holdfast.clock import SystemClock
    from holdfast.identity.enrol import SiteKeys, enrol
    from holdfast.identity.state import create_state, owned
    from holdfast.wire.enrolment import JoinToken

    text = arguments.token if arguments.token is not None else _read_token(arguments.token_file)
    token = JoinToken.from_text(text)
    keys = SiteKeys(
        site=_read_key(arguments.site_key),
        authors=tuple(_read_key(path) for path in arguments.author_key),
        approvers=tuple(_read_key(path) for path in arguments.approver_key),
    )
    state = create_state(arguments.state)
    with owned(state):
        record = enrol(state, token, keys, SystemClock(), arguments.name).record
    if arguments.json:
        print(json.dumps({"device_id": record.device_id, "site": record.site, "state": str(arguments.state)}))
        return EXIT_OK
    print(f"enrolled {record.device_id} of site {record.site} at {record.device_address}")
    print(f"start it with: holdfast agent run {arguments.state}")
    return EXIT_OK


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the device's folder")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML; flags win over it")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="install this signed policy first")
    parser.add_argument("--listen", metavar="HOST:PORT|unix:/PATH", help="where the models are served; port 0 = any")
    parser.add_argument("--insecure", action="store_true", default=None, help="allow an address others can reach")
    parser.add_argument("--data", type=Path, metavar="FILE", help="local samples (npz) for federated rounds")
    parser.add_argument("--window-s", type=float, help="length of an operational window")
    parser.add_argument("--data-window-s", type=float, help="least time between two data windows")
    parser.add_argument("--check-in-interval-s", type=float, help="time between two check-ins")
    parser.add_argument("--json", action="store_true", help="print the ready line as one JSON object")


FLAGS = ("listen", "insecure", "data", "window_s", "data_window_s", "check_in_interval_s")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.agent import Agent, open_parts
    from holdfast.agent_rounds import join_rounds
    from holdfast.clock import SystemClock
    from holdfast.config import AgentConfig
    from holdfast.identity.policy_store import read_document
    from holdfast.identity.state import open_state, owned
    from holdfast.inference.memory import settle, share_heap
    from holdfast.lifecycle import Stop, run, stop_on_signals
    from holdfast.settings import load

    share_heap()
    settle()
    config = load(AgentConfig, path=arguments.config, flags={name: getattr(arguments, name) for name in FLAGS})
    logging.getLogger("holdfast").setLevel(config.log_level.upper())
    state = open_state(arguments.state)
    stop = Stop()
    with owned(state), stop_on_signals(stop):
        parts = open_parts(state, config, SystemClock())
        try:
            if arguments.policy is not None:
                parts.policy.install(read_document(arguments.policy), parts.journal.append)
            agent = Agent(parts, join_rounds)
            address = agent.start()
            try:
                _say_ready(parts.device.record.device_id, str(address), as_json=arguments.json)
                run(agent.tasks(), stop)
            finally:
                agent.stop()
        finally:
            parts.close()
    return EXIT_OK


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", metavar="STATE", type=Path, help="the device's folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _status(arguments: argparse.Namespace) -> int:
    from holdfast.agent import read_status
    from holdfast.clock import SystemClock
    from holdfast.identity.state import open_state

    facts = read_status(open_state(arguments.state), SystemClock())
    if arguments.json:
        print(json.dumps(facts))
        return EXIT_OK
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):24} {value if value not in ('', None, {}) else '-'}")
    return EXIT_OK


def _say_ready(device_id: str, address: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "ready", "device_id": device_id, "listen": address}), flush=True)
    else:
        print(f"device {device_id} serves on {address} (gRPC and HTTP); Ctrl-C stops", flush=True)


def _read_token(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read(MAX_FILE_BYTES)
    return _read(path)


def _read_key(path: Path) -> PublicKey:
    from holdfast.trust.keys import PublicKey

    try:
        return PublicKey.from_pem(_read(path))
    except FormatError as error:
        raise UsageError(f"{path} is not a public key file (*.pub): {error}") from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror or error}") from error


ENROL = Command(
    help="make this machine a device of a coordinator",
    add_arguments=_enrol_arguments,
    run=_enrol,
    description="Enrol a device. The keys to trust come from the site, not from the coordinator.\n\n"
    "example:\n  holdfast agent enrol /var/lib/holdfast --token-file token.txt --site-key site.pub \\\n"
    "      --author-key author.pub --approver-key approver.pub",
)
RUN = Command(
    help="serve, report and learn as an enrolled device",
    add_arguments=_run_arguments,
    run=_run,
    description="Run an enrolled device. It serves whether or not the coordinator can be reached.\n\n"
    "example:\n  holdfast agent run /var/lib/holdfast --policy policy-1.json",
)
STATUS = Command(
    help="what a device is, what it serves and what waits to be delivered",
    add_arguments=_status_arguments,
    run=_status,
    description="Show the state of a device, running or not.\n\nexample:\n  holdfast agent status /var/lib/holdfast",
)
