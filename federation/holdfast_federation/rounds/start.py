"""Starts a run: picks base bundle and devices, checks the wish against the model, and enters it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.bundle.verify import read_bundle
from holdfast.errors import RoundError
from holdfast.update.codecs import codec_named
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.rounds.runs import RunSpec
from holdfast_federation.rounds.store import RunStore

DEFAULT_SHARE = 2  # one of so many invited devices must contribute, at least, if nothing else is said
FLAGS = {"proximal_mu": "proximal-mu", "gradient_clip": "clip-norm"}  # of `holdfast bundle pack`
SMALLEST_COHORT = 2  # of one device the mean would be its own update; sites refuse that by default


@dataclass(frozen=True, slots=True)
class RunWish:
    """What an operator or the schedule asks for; 0 or empty = the default.

    base_digest: the bundle to start from (default: what most devices serve). devices: default = all that serve it.
    batch: must be the one that the model's graphs were built for. clip_norm: default = the author's change envelope
    divided by the rounds, so that no run can leave the envelope. proximal_mu, gradient_clip: None = what the author
    packed the model with; 0 = none.
    """

    model: str
    purpose: str
    base_digest: str = ""
    devices: tuple[str, ...] = ()
    rounds: int = 8
    epochs: int = 5
    batch: int = 0
    learning_rate: float = 0.1
    clip_norm: float = 0.0
    quorum: int = 0
    minimum_devices: int = 0
    deadline_s: float = 300.0
    invite_s: float = 120.0
    codec: str = "int8-block256-stochastic"
    seed: int = 0
    proximal_mu: float | None = None
    gradient_clip: float | None = None


def start_run(wish: RunWish, store: RunStore, devices: Devices, container: Callable[[str], bytes]) -> RunSpec:
    """Enter a run as created; a run worker picks it up from there.

    Args:
        container: digest -> the bundle's container, from the registry.

    Raises: RoundError: no such base, no devices, or a wish that does not fit. BundleError: the base is damaged.
    """
    present = [device for device in devices.all() if not device.is_revoked]
    base = wish.base_digest or _most_served(wish.model, present)
    manifest = read_bundle(container(base)).manifest
    if manifest.name != wish.model:
        raise RoundError(f"bundle {base[:16]} is of model {manifest.name!r}, asked for {wish.model!r}")
    if manifest.training is None:
        raise RoundError(f"model {wish.model!r} has no training graphs; pack it with them first")
    if wish.batch not in (0, manifest.training.batch):
        raise RoundError(f"the graphs of {wish.model!r} are for batch {manifest.training.batch}, got {wish.batch}")
    proximal_mu = _option("proximal_mu", wish.proximal_mu, manifest.training.proximal_mu)
    gradient_clip = _option("gradient_clip", wish.gradient_clip, manifest.training.gradient_clip)
    invited = _invited(wish, base, present)
    quorum = wish.quorum or min(len(invited), max(SMALLEST_COHORT, -(-len(invited) // DEFAULT_SHARE)))
    spec = RunSpec(
        run_id=f"run-{secrets.token_hex(6)}",
        model=wish.model,
        base_digest=base,
        purpose=wish.purpose,
        devices=invited,
        rounds=wish.rounds,
        epochs=wish.epochs,
        batch=manifest.training.batch,
        learning_rate=wish.learning_rate,
        clip_norm=wish.clip_norm or _safe_clip(manifest.change_envelope.max_update_norm, wish),
        quorum=quorum,
        minimum_devices=wish.minimum_devices or quorum,
        deadline_s=wish.deadline_s,
        invite_s=wish.invite_s,
        codec=wish.codec,
        seed=wish.seed,
        proximal_mu=proximal_mu,
        gradient_clip=gradient_clip,
    )
    store.create(spec)
    return spec


def _option(name: str, wished: float | None, packed: float | None) -> float:
    """A number that a round sets; `packed` is the author's, None where the graphs have no such input."""
    if wished and packed is None:
        raise RoundError(f"the model's graphs have no {name}; pack it again with --{FLAGS[name]}")
    return (packed or 0.0) if wished is None else wished


def _safe_clip(max_update_norm: float, wish: RunWish) -> float:
    # each round moves the weights by at most clip * growth, since a mean is no longer than its longest part
    return max_update_norm / (max(1, wish.rounds) * codec_named(wish.codec).norm_growth * 1.001)


def _most_served(model: str, present: list[DeviceRecord]) -> str:
    served = Counter(device.active[model] for device in present if model in device.active)
    if not served:
        raise RoundError(f"no device serves {model!r}; assign it first, or name the base with --base")
    return served.most_common(1)[0][0]


def _invited(wish: RunWish, base: str, present: list[DeviceRecord]) -> tuple[str, ...]:
    known = {device.device_id for device in present}
    if wish.devices:
        unknown = sorted(set(wish.devices) - known)
        if unknown:
            raise RoundError(f"device {unknown[0]!r} is not known or was revoked; see: holdfast coordinator devices")
        return tuple(sorted(set(wish.devices)))
    invited = tuple(sorted(device.device_id for device in present if device.active.get(wish.model) == base))
    if not invited:
        raise RoundError(f"no device serves bundle {base[:16]} of {wish.model!r}; assign it first")
    return invited
