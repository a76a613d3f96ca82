"""The routes of the coordinator's core: status, devices, join tokens, revocation, the ledger's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from holdfast.clock import Clock
from holdfast.errors import SettingsError
from holdfast.wire.enrolment import JoinToken
from holdfast_federation.admin.app import AdminCall, AdminRoute, int_field, text_field
from holdfast_federation.database import Database
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.enrolment.authority import CertificateAuthority
from holdfast_federation.enrolment.tokens import DEFAULT_TTL_S, Tokens
from holdfast_federation.events.outbox import emit
from holdfast_federation.ingest.fleet import FleetView, Reporting
from holdfast_federation.ledger.log import Ledger


@dataclass(frozen=True, slots=True)
class CoreRooms:
    """What the core routes read and change.

    addresses: name -> address of every listener, asked at each call. sites: known sites; none known = any may enrol.
    """

    database: Database
    devices: Devices
    tokens: Tokens
    ledger: Ledger
    fleet: FleetView
    authority: CertificateAuthority
    sites: tuple[str, ...]
    addresses: Callable[[], Mapping[str, str]]
    clock: Clock


def core_routes(rooms: CoreRooms) -> list[AdminRoute]:
    """The routes under /v1 that every coordinator has."""

    def status(call: AdminCall) -> object:
        devices = rooms.devices.all()
        return {
            "trust_domain": rooms.authority.trust_domain,
            "addresses": dict(rooms.addresses()),
            "devices": len(devices),
            "revoked": sum(device.is_revoked for device in devices),
            "ledger_size": rooms.ledger.size(),
            "utc_ns": rooms.clock.utc_ns(),
        }

    def devices(call: AdminCall) -> object:
        reporting = rooms.fleet.reporting()
        traffic = rooms.fleet.traffic()
        rows = rooms.devices.all()
        return {"devices": [_device(row, reporting.get(row.device_id), traffic) for row in rows]}

    def fleet(call: AdminCall) -> object:
        merged = rooms.fleet.models()
        return {"models": [{**asdict(each), "requests": each.requests, "failed": each.failed} for each in merged]}

    def create_token(call: AdminCall) -> object:
        body = call.json()
        site = text_field(body, "site")
        if rooms.sites and site not in rooms.sites:
            raise SettingsError(f"site {site[:100]!r} has no key here; known sites: {', '.join(rooms.sites)}")
        token = rooms.tokens.create(site, text_field(body, "name", ""), int_field(body, "ttl_s", DEFAULT_TTL_S))
        text = JoinToken(rooms.addresses()["enrolment"], token.token_id, token.secret, rooms.authority.pin).to_text()
        return {"token": text, "token_id": token.token_id, "expires_utc_ns": token.expires_utc_ns}

    def revoke(call: AdminCall) -> object:
        device_id = call.path["device_id"]
        reason = text_field(call.json(), "reason", "")
        with rooms.database.write() as cx:
            revoked = rooms.devices.revoke(cx, device_id, reason, rooms.clock.utc_ns())
            if revoked:
                rooms.ledger.record(cx, "revocation", device_id, reason.encode())
                emit(cx, "revocation", device_id, reason.encode(), rooms.clock)
        return {"device_id": device_id, "revoked_now": revoked}

    def checkpoint(call: AdminCall) -> object:
        key = rooms.ledger.public_key.to_pem()
        return {"checkpoint": rooms.ledger.checkpoint(), "origin": rooms.ledger.origin, "ledger_key_pem": key}

    return [
        AdminRoute("GET", "/v1/status", status),
        AdminRoute("GET", "/v1/devices", devices),
        AdminRoute("GET", "/v1/fleet", fleet),
        AdminRoute("POST", "/v1/tokens", create_token),
        AdminRoute("POST", "/v1/devices/{device_id}/revoke", revoke),
        AdminRoute("GET", "/v1/ledger/checkpoint", checkpoint),
    ]


def _device(row: DeviceRecord, reporting: Reporting | None, traffic: Mapping[str, Mapping[str, int]]) -> object:
    return {
        "device_id": row.device_id,
        "site": row.site,
        "name": row.name,
        "report_key_id": row.report_key.key_id,
        "enrolled_utc_ns": row.enrolled_utc_ns,
        "revoked_utc_ns": row.revoked_utc_ns,
        "revoked_reason": row.revoked_reason,
        "last_seen_utc_ns": row.last_seen_utc_ns,
        "active": dict(row.active),
        "policy_digest": row.policy_digest,
        "agent_version": row.agent_version,
        "head_seq": reporting.head_seq if reporting else 0,
        "last_report_utc_ns": reporting.received_utc_ns if reporting else None,
        "forks": reporting.forks if reporting else 0,
        "bytes_out": dict(traffic.get(row.device_id, {})),
    }
