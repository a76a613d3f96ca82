"""The operator's routes for models: list, publish a bundle, hand in an approval, assign."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.errors import FormatError
from holdfast.wire.limits import MAX_DOCUMENT_BYTES
from holdfast_federation.admin.app import AdminCall, AdminRoute, text_field
from holdfast_federation.devices.records import Devices
from holdfast_federation.registry.models import ModelVersion, Registry
from holdfast_federation.rollout.assign import Rollout

MAX_BUNDLE_BYTES = 268_435_456  # 256 MiB over the socket, whole in memory; what the command line's client reads, too
MAX_DEVICES = 100_000


def model_routes(registry: Registry, rollout: Rollout, devices: Devices) -> list[AdminRoute]:
    """The routes under /v1/models, /v1/approvals and /v1/assignments."""

    def models(call: AdminCall) -> object:
        active = [device.active for device in devices.all() if not device.is_revoked]
        assigned = list(rollout.assigned().values())
        return {"models": [_row(version, registry, active, assigned) for version in registry.models()]}

    def add(call: AdminCall) -> object:
        return _plain(registry.add(call.body))

    def container(call: AdminCall) -> object:
        return registry.container(call.path["digest"])

    def approve(call: AdminCall) -> object:
        verified = registry.approve(call.body)
        approval = verified.approval
        return {
            "digest": approval.subject_digest,
            "decision": approval.decision,
            "role": approval.role,
            "key_id": verified.key_id,
            "state": registry.state(approval.subject_digest),
        }

    def assign(call: AdminCall) -> object:
        body = call.json()
        version = registry.named(text_field(body, "name"), text_field(body, "version"))
        assignments = rollout.assign(version.name, version.digest, _device_ids(body, devices))
        numbers = {each.device_id: each.number for each in assignments}
        return {"model": version.name, "version": version.version, "digest": version.digest, "numbers": numbers}

    return [
        AdminRoute("GET", "/v1/models", models),
        AdminRoute("POST", "/v1/models", add, MAX_BUNDLE_BYTES),
        AdminRoute("GET", "/v1/models/{digest}/bundle", container),
        AdminRoute("POST", "/v1/approvals", approve, MAX_DOCUMENT_BYTES),
        AdminRoute("POST", "/v1/assignments", assign),
    ]


def _device_ids(body: Mapping[str, object], devices: Devices) -> list[str]:
    if body.get("all") is True:
        return [device.device_id for device in devices.all() if not device.is_revoked]
    named = body.get("devices")
    if not isinstance(named, list) or len(named) > MAX_DEVICES or not all(isinstance(each, str) for each in named):
        raise FormatError("field 'devices' must be a list of device ids, or 'all' true")
    return list(named)


def _row(
    version: ModelVersion, registry: Registry, active: list[Mapping[str, str]], assigned: list[dict[str, str]]
) -> dict[str, object]:
    return {
        **_plain(version),
        "state": registry.state(version.digest),
        "active_on": sum(each.get(version.name) == version.digest for each in active),
        "assigned_to": sum(each.get(version.name) == version.digest for each in assigned),
    }


def _plain(version: ModelVersion) -> dict[str, object]:
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "size_bytes": version.blob_size_bytes,
        "signed_by": version.signed_by,
        "owner": version.owner,
        "purpose": version.purpose,
        "parent_digest": version.parent_digest,
        "run_id": version.run_id,
        "change_norm": version.change_norm,
        "added_utc_ns": version.added_utc_ns,
    }
