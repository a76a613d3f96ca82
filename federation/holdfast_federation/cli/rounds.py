"""`holdfast rounds start|list|show|stop`: federated runs, as an operator sees them."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

from holdfast.cli.command import EXIT_FAILED, EXIT_OK, Command
from holdfast.clock import SystemClock

POLL_S = 0.5
FINAL = ("done", "failed")


def _start_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", type=Path, metavar="STATE", help="state folder of the running coordinator")
    parser.add_argument("model", metavar="MODEL", help="name of the model to improve")
    parser.add_argument("--purpose", required=True, help="what for; the sites' policies allow or refuse purposes")
    parser.add_argument("--rounds", type=int, help="how many rounds (default 8)")
    parser.add_argument("--epochs", type=int, help="passes over the local samples per round (default 5)")
    parser.add_argument("--batch", type=int, help="samples per step; must be the one the graphs were built for")
    parser.add_argument("--lr", type=float, dest="learning_rate", help="learning rate (default 0.1)")
    parser.add_argument(
        "--clip", type=float, dest="clip_norm", help="L2 bound of an update (default: what the author allows)"
    )
    parser.add_argument("--proximal-mu", type=float, help="pull towards the round's start (default: as packed)")
    parser.add_argument("--gradient-clip", type=float, help="L2 bound of each step's gradient (default: as packed)")
    parser.add_argument("--quorum", type=int, help="updates that a round needs (default: half of the devices, and two)")
    parser.add_argument("--minimum-devices", type=int, help="acceptances that the run needs (default: the quorum)")
    parser.add_argument("--deadline", type=float, dest="deadline_s", help="seconds per round (default 300)")
    parser.add_argument("--invite", type=float, dest="invite_s", help="seconds to wait for answers (default 120)")
    parser.add_argument("--base", dest="base_digest", help="digest of the base bundle (default: what is served)")
    parser.add_argument("--device", action="append", dest="devices", metavar="ID", help="invite only these; repeatable")
    parser.add_argument("--seed", type=int, help="of shuffling (default 0)")
    parser.add_argument("--wait", action="store_true", help="return when the run has ended; exit 1 if it failed")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


WISHES = (
    *("purpose", "rounds", "epochs", "batch", "learning_rate", "clip_norm", "quorum", "minimum_devices"),
    *("deadline_s", "invite_s", "base_digest", "devices", "seed", "proximal_mu", "gradient_clip"),
)


def _start(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    client = AdminClient(arguments.state)
    wish = {name: getattr(arguments, name) for name in WISHES if getattr(arguments, name) is not None}
    started = client.post("/v1/rounds", {"model": arguments.model, **wish})
    if not arguments.wait:
        if arguments.json:
            print(json.dumps(started))
        else:
            print(f"run {started['run_id']} started; see: holdfast rounds show {arguments.state} {started['run_id']}")
        return EXIT_OK
    run = _wait(client.get, str(started["run_id"]))
    print(json.dumps(run) if arguments.json else _story(run))
    return EXIT_OK if run["state"] == "done" else EXIT_FAILED


def _wait(get: object, run_id: str) -> dict[str, object]:
    """Poll until the run has ended; its own deadlines bound that."""
    assert callable(get)
    pause, clock, said = threading.Event(), SystemClock(), ""
    while True:
        run: dict[str, object] = get(f"/v1/rounds/{run_id}")
        line = f"{run_id}: {run['state']}, round {run['round']} of {run['rounds']}, {run['accepted']} accepted"
        if line != said:
            print(line, file=sys.stderr)
            said = line
        if run["state"] in FINAL:
            return run
        clock.wait(pause, POLL_S)


def _list(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    answer = AdminClient(arguments.state).get("/v1/rounds")
    if arguments.json:
        print(json.dumps(answer))
        return EXIT_OK
    runs = answer["runs"]
    assert isinstance(runs, list)
    if not runs:
        print(f"no runs yet; start one: holdfast rounds start {arguments.state} MODEL --purpose PURPOSE")
    for run in runs:
        reason = f"  ({run['reason']})" if run["reason"] else ""
        print(
            f"{run['run_id']}  {run['model']}  {run['purpose']}  {run['state']}  {run['round']}/{run['rounds']}{reason}"
        )
    return EXIT_OK


def _show(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    run = AdminClient(arguments.state).get(f"/v1/rounds/{arguments.run_id}")
    print(json.dumps(run) if arguments.json else _story(run))
    return EXIT_OK


def _stop(arguments: argparse.Namespace) -> int:
    from holdfast_federation.admin.client import AdminClient

    run = AdminClient(arguments.state).post(f"/v1/rounds/{arguments.run_id}/stop", {})
    print(json.dumps(run) if arguments.json else f"run {run['run_id']} is {run['state']}")
    return EXIT_OK


def _story(run: dict[str, object]) -> str:
    """A run as a few lines of text."""
    lines = [
        f"run {run['run_id']} of {run['model']} for {run['purpose']}: {run['state']}"
        + (f" ({run['reason']})" if run["reason"] else ""),
        f"round {run['round']} of {run['rounds']}; invited {run['invited']}, accepted {run['accepted']}, "
        f"refused {run['refused']}",
    ]
    members, parts = run["members"], run["parts"]
    assert isinstance(members, list)
    assert isinstance(parts, list)
    for member in members:
        why = f": {member['reason_code']} ({member['policy_rule']})" if member["reason_code"] else ""
        lines.append(f"  {member['device_id']}  {member['answer']}{why}")
    for part in parts:
        why = f" ({part['reason_code']})" if part["reason_code"] else ""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(part["metrics"].items()))
        lines.append(
            f"  round {part['round']} {part['step']}  {part['device_id']}  {part['state']}{why}"
            f"  {part['sample_count']} samples  {figures}"
        )
    if run["candidate_digest"]:
        lines.append(f"candidate {run['candidate_digest']}; it is served only after a person approved it")
    return "\n".join(lines)


def _state_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", type=Path, metavar="STATE", help="state folder of the running coordinator")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _run_argument(parser: argparse.ArgumentParser) -> None:
    _state_argument(parser)
    parser.add_argument("run_id", metavar="RUN_ID", help="as `holdfast rounds list` shows it")


START = Command(
    help="start a federated run",
    add_arguments=_start_arguments,
    run=_start,
    description="""Invite the devices that serve a model to improve it together; their data stays where it is.

example:
  holdfast rounds start coordinator/ digits --purpose improve-digits --rounds 8 --wait
""",
)
LIST = Command(help="list federated runs", add_arguments=_state_argument, run=_list)
SHOW = Command(help="show one run: answers, rounds, devices that vanished", add_arguments=_run_argument, run=_show)
STOP = Command(help="end a run without a candidate", add_arguments=_run_argument, run=_stop)
