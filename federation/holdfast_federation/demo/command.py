"""`holdfast demo`: the whole of Holdfast at work on this machine, with real data, keys, processes and rounds."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_FAILED, EXIT_OK, Command
from holdfast.clock import SystemClock
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast_federation.demo.narrator import Narrator
    from holdfast_federation.demo.processes import Children
    from holdfast_federation.demo.story import Story
    from holdfast_federation.demo.world import World


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=2, metavar="N", help="devices per site (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, metavar="R", help="federated rounds (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, metavar="E", help="local epochs a round (default %(default)s)")
    parser.add_argument("--batch", type=int, default=10, metavar="B", help="samples per step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=0.1, metavar="LR", help="learning rate (default %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of the split and of training (default %(default)s)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep all files here (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave everything running and print the addresses")
    parser.add_argument("--json", action="store_true", help="print one JSON object; the story goes to stderr")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast_federation.demo.narrator import Narrator
    from holdfast_federation.demo.processes import Children, terminate_as_interrupt
    from holdfast_federation.demo.record import Terms
    from holdfast_federation.demo.story import Story
    from holdfast_federation.demo.world import World

    if not (1 <= arguments.devices <= 8 and 1 <= arguments.rounds <= 100):
        raise UsageError("--devices must be 1 to 8 per site, --rounds 1 to 100")
    clock = SystemClock()
    root = _folder(arguments.state)
    terms = Terms(arguments.rounds, arguments.epochs, arguments.batch, arguments.lr, arguments.seed)
    narrator = Narrator(clock, on_stderr=arguments.json)
    holds = False
    try:
        with terminate_as_interrupt(), Children(root / "logs", clock) as children:
            world = World(root, children, clock, arguments.devices)
            story = Story(world, terms, narrator)
            try:
                story.tell()
            finally:
                story.stop_traffic()
            holds = _conclude(story, world, narrator, as_json=arguments.json)
            if arguments.keep:
                _leave_running(children, world)
    finally:
        if arguments.state is None and holds and not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
        elif not holds:
            narrator.fact(f"everything it wrote is in {root}")
    return EXIT_OK if holds else EXIT_FAILED


def _folder(state: Path | None) -> Path:
    if state is None:
        return Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    if state.exists() and any(state.iterdir()):
        raise UsageError(f"{state} is not empty; give --state a new folder, so that nothing of yours is overwritten")
    state.mkdir(parents=True, exist_ok=True)
    return state.resolve()


def _conclude(story: Story, world: World, narrator: Narrator, *, as_json: bool) -> bool:
    """Print the summary and whether each claim holds."""
    from holdfast_federation.demo.record import as_json_text
    from holdfast_federation.demo.summary import claims, table

    narrator.heading("What came out")
    for line in table(story.record, world, story.device_names()):
        narrator.fact(line)
    for line in story.scorecard_lines():
        narrator.fact(line)
    found = list(claims(story.record))
    for claim in found:
        narrator.check(claim.text, holds=claim.holds)
    holds = all(claim.holds for claim in found)
    narrator.fact(f"{'all of it held' if holds else 'NOT all of it held'}, in {narrator.elapsed_s:.0f} s")
    if as_json:
        print(as_json_text(story.record, found, narrator.elapsed_s))
    return holds


def _leave_running(children: Children, world: World) -> None:
    pids = children.release()
    print(f"page         {world.addresses['page']}")
    for name, address in world.listening.items():
        print(f"{name:12} http://{address}/v2/models/digits")
    print(f"state        {world.root}")
    print(f"end it with  kill {' '.join(str(pid) for pid in pids)}")


DEMO = Command(
    help="the whole of Holdfast at work on real data, in about a minute",
    add_arguments=_arguments,
    run=_run,
    description=(
        "Two hospitals with two devices each, a coordinator, an author and an approver, all real processes on this\n"
        "machine. Exit code 0 only if everything that is claimed held.\n\n"
        "example:\n  holdfast demo --rounds 4 --keep"
    ),
)
