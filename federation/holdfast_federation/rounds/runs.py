"""What a run is, and the states it goes through: a pure table.

created -> inviting -> running -> combining -> evaluating -> done
any of them but done -> failed (with a reason)
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from holdfast.errors import RoundError
from holdfast.update.codecs import WEIGHTED_MEAN, check_legal

CREATED, INVITING, RUNNING, COMBINING, EVALUATING, DONE, FAILED = (
    "created",
    "inviting",
    "running",
    "combining",
    "evaluating",
    "done",
    "failed",
)
FINAL = frozenset({DONE, FAILED})
_NEXT: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        (CREATED, "invite"): INVITING,
        (INVITING, "start"): RUNNING,
        (RUNNING, "combine"): COMBINING,
        (COMBINING, "evaluate"): EVALUATING,
        (EVALUATING, "finish"): DONE,
        **{(state, "fail"): FAILED for state in (CREATED, INVITING, RUNNING, COMBINING, EVALUATING)},
    }
)

# steps of a run that devices take part in
TRAIN, EVALUATE_BASE, EVALUATE_CANDIDATE = "train", "evaluate_base", "evaluate_candidate"

# what became of a device in a step
INVITED, ORDERED, CONTRIBUTED, REJECTED, VANISHED, LATE = (
    "invited",
    "ordered",
    "contributed",
    "rejected",
    "vanished",
    "late",
)

MAX_ROUNDS = 10_000
MAX_DEVICES = 4_096


def after(state: str, event: str) -> str:
    """The state after an event. Raises: RoundError: it cannot happen in this state."""
    try:
        return _NEXT[state, event]
    except KeyError as error:
        raise RoundError(f"a run that is {state} cannot {event}") from error


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything a run was asked to do; never changes after it was created.

    quorum: updates that a round needs, and the cohort promised to the devices. minimum_devices: acceptances without
    which the run does not start. deadline_s: per round. invite_s: how long answers are waited for. join_s: how long
    accepted devices have to come online. clip_norm: of an update. gradient_clip: of each step's gradient; 0 = none,
    as for proximal_mu.
    """

    run_id: str
    model: str
    base_digest: str
    purpose: str
    devices: tuple[str, ...]
    rounds: int = 8
    epochs: int = 5
    batch: int = 10
    learning_rate: float = 0.1
    clip_norm: float = 10.0
    quorum: int = 2
    minimum_devices: int = 2
    deadline_s: float = 300.0
    invite_s: float = 120.0
    join_s: float = 60.0
    max_samples: int = 100_000
    codec: str = "int8-block256-stochastic"
    seed: int = 0
    proximal_mu: float = 0.0
    gradient_clip: float = 0.0

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise RoundError(f"this run cannot be started: {problem}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "devices": tuple(fields["devices"])})


def _problem(spec: RunSpec) -> str:
    if not 1 <= len(spec.devices) <= MAX_DEVICES or len(set(spec.devices)) != len(spec.devices):
        return f"it needs 1 to {MAX_DEVICES} different devices, got {len(spec.devices)}; assign the model first"
    if not 1 <= spec.rounds <= MAX_ROUNDS:
        return f"rounds must be 1 to {MAX_ROUNDS}, got {spec.rounds}"
    if not 1 <= spec.quorum <= spec.minimum_devices <= len(spec.devices):
        return (
            f"quorum ({spec.quorum}) <= minimum devices ({spec.minimum_devices}) <= devices ({len(spec.devices)}) "
            f"does not hold"
        )
    if spec.epochs < 1 or spec.batch < 1 or spec.max_samples < 1:
        return "epochs, batch and max samples must be 1 or more"
    positive = (spec.learning_rate, spec.clip_norm, spec.deadline_s, spec.invite_s, spec.join_s)
    if not all(math.isfinite(value) and value > 0 for value in positive):
        return "learning rate, clip and times must be positive numbers"
    if not all(math.isfinite(value) and value >= 0 for value in (spec.proximal_mu, spec.gradient_clip)):
        return "proximal mu and gradient clip must be numbers of 0 or more"
    check_legal(spec.codec, WEIGHTED_MEAN)
    return ""
