"""The rooms for models, put together on the core: registry, rollout, their routes and their rows of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from holdfast.bundle.verify import Trust
from holdfast_federation.admin.app import AdminRoute
from holdfast_federation.admin.models_api import model_routes
from holdfast_federation.dashboard.view import ModelRow
from holdfast_federation.registry.models import Registry
from holdfast_federation.rollout.assign import Rollout, nothing_else
from holdfast_federation.server.build import Core, Parts
from holdfast_federation.server.fleet_service import FleetParts


@dataclass(frozen=True, slots=True)
class ModelsPart:
    """`rollout` is both the `Deliveries` and the `Pieces` of the device listener."""

    registry: Registry
    rollout: Rollout
    routes: Sequence[AdminRoute]
    rows: Callable[[], Sequence[ModelRow]]


def open_models(core: Core, extra: Callable[[str], Iterable[str]] = nothing_else) -> ModelsPart:
    """Open registry and rollout. `extra`: device id -> digests of bundles it may fetch for an open round."""
    run_key = core.authority.key("run").public_key
    trust = Trust(core.principals.authors, (run_key,))
    blobs = core.state.blobs
    registry = Registry(core.database, core.ledger, blobs, core.clock, trust, core.principals.approvers)
    key = core.authority.key("assignment")
    rollout = Rollout(core.database, registry, core.ledger, key, core.clock, extra)

    def rows() -> Sequence[ModelRow]:
        active = [device.active for device in core.devices.all() if not device.is_revoked]
        return [
            ModelRow(
                name=each.name,
                version=each.version,
                digest=each.digest,
                signed_by=each.signed_by,
                state=registry.state(each.digest),
                devices=sum(models.get(each.name) == each.digest for models in active),
            )
            for each in registry.models()
        ]

    return ModelsPart(registry, rollout, model_routes(registry, rollout, core.devices), rows)


def models_only(core: Core) -> Parts:
    """A coordinator that publishes models and runs no federated rounds."""
    part = open_models(core)
    return Parts(
        fleet=FleetParts(deliveries=part.rollout, pieces=part.rollout), routes=tuple(part.routes), models=part.rows
    )
