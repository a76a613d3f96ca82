"""Where a sub-command is found by its name: our own in a table, those of other packages by their entry points.

Rules: reading the entry points of what is installed takes 3 MB and 20 ms that a server keeps until it ends, so it is
done only for a name, or a help page, that the table does not settle. A name of the table is never another package's.
A test holds the table equal to the entry points in pyproject.toml, which tell others what is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

ENTRY_POINT_GROUP = "holdfast.commands"
OWN: Mapping[str, str] = {
    "agent.enrol": "holdfast.cli.agent:ENROL",
    "agent.run": "holdfast.cli.agent:RUN",
    "agent.status": "holdfast.cli.agent:STATUS",
    "approve": "holdfast.cli.approve:APPROVE",
    "bench": "holdfast.cli.bench:BENCH",
    "bundle.contract": "holdfast.cli.contract:CONTRACT",
    "bundle.coverage": "holdfast.cli.coverage:COVERAGE",
    "bundle.inspect": "holdfast.cli.bundle:INSPECT",
    "bundle.pack": "holdfast.cli.bundle:PACK",
    "bundle.verify": "holdfast.cli.bundle:VERIFY",
    "coordinator.devices": "holdfast_federation.cli.coordinator:DEVICES",
    "coordinator.init": "holdfast_federation.cli.coordinator:INIT",
    "coordinator.models": "holdfast_federation.cli.models:MODELS",
    "coordinator.rounds": "holdfast_federation.cli.rounds:LIST",
    "coordinator.run": "holdfast_federation.cli.coordinator:RUN",
    "coordinator.token": "holdfast_federation.cli.coordinator:TOKEN",
    "demo": "holdfast_federation.demo.command:DEMO",
    "evidence.export": "holdfast_federation.cli.evidence:EXPORT",
    "evidence.verify": "holdfast.cli.evidence:VERIFY",
    "example": "holdfast.cli.example:EXAMPLE",
    "key.create": "holdfast.cli.key:CREATE",
    "rounds.list": "holdfast_federation.cli.rounds:LIST",
    "rounds.show": "holdfast_federation.cli.rounds:SHOW",
    "rounds.start": "holdfast_federation.cli.rounds:START",
    "rounds.stop": "holdfast_federation.cli.rounds:STOP",
    "serve": "holdfast.cli.serve:SERVE",
    "site.init": "holdfast.cli.site:INIT",
    "site.sign-policy": "holdfast.cli.site:SIGN_POLICY",
    "train": "holdfast.cli.train:TRAIN",
}


def known_commands(words: Sequence[str]) -> dict[str, str]:
    """All commands that these words of a command line may mean, or their help lists: name -> "module:object"."""
    if words and (words[0] in OWN or ".".join(words[:2]) in OWN):
        return dict(OWN)
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | dict(OWN)


def load_object(where: str) -> object:
    """What "module:object" names.

    Raises:
        ModuleNotFoundError: the module, or one that it needs, is not installed.
    """
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
