"""Rows for the page out of the core rooms: devices, reports, refusals, ledger."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.clock import Clock
from holdfast_federation.dashboard.view import DeviceRow, LedgerRow, RefusalRow, ServedRow
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.ingest.fleet import FleetView, Reporting
from holdfast_federation.ledger.log import Ledger

MISSED_CHECK_INS = 3  # a device that missed that many is called silent


class CoreFigures:
    """Reads the core rooms for the page."""

    def __init__(
        self, devices: Devices, fleet: FleetView, ledger: Ledger, clock: Clock, *, check_in_s: float, window_s: float
    ) -> None:
        self._devices = devices
        self._fleet = fleet
        self._ledger = ledger
        self._clock = clock
        self._silent_after_ns = round(check_in_s * MISSED_CHECK_INS * 1e9)
        self._window_ns = round(window_s * 1e9)

    def devices(self) -> Sequence[DeviceRow]:
        reporting, traffic = self._fleet.reporting(), self._fleet.traffic()
        rows = []
        for device in self._devices.all():
            report = reporting.get(device.device_id)
            rows.append(
                DeviceRow(
                    device_id=device.device_id,
                    name=device.name,
                    site=device.site,
                    state=self._state(device, report),
                    last_seen_utc_ns=_last_seen(device, report),
                    records=report.head_seq if report else 0,
                    active=device.active,
                    bytes_out=traffic.get(device.device_id, {}),
                )
            )
        return rows

    def served(self) -> Sequence[ServedRow]:
        return [
            ServedRow(
                each.model,
                each.version,
                each.devices,
                each.requests,
                each.failed,
                each.p50_s,
                each.p90_s,
                each.p99_s,
            )
            for each in self._fleet.models(self._clock.utc_ns() - self._window_ns)
        ]

    def refusals(self) -> Sequence[RefusalRow]:
        sites = {device.device_id: device.site for device in self._devices.all()}
        return [
            RefusalRow(
                device_id=each.device_id,
                site=sites.get(each.device_id, ""),
                run_id=each.run_id,
                round=each.round,
                reason_code=each.reason_code,
                policy_rule=each.policy_rule,
                utc_ns=each.received_utc_ns,
            )
            for each in self._fleet.refusals()
        ]

    def ledger(self) -> LedgerRow:
        size = self._ledger.size()
        return LedgerRow(self._ledger.origin, size, self._ledger.root(size).hex())

    def _state(self, device: DeviceRecord, report: Reporting | None) -> str:
        if device.is_revoked:
            return "revoked"
        if report is not None and report.forks:
            return "forked"
        last = _last_seen(device, report)
        return "online" if last is not None and self._clock.utc_ns() - last <= self._silent_after_ns else "silent"


def _last_seen(device: DeviceRecord, report: Reporting | None) -> int | None:
    times = [device.last_seen_utc_ns, report.received_utc_ns if report else None]
    return max((each for each in times if each is not None), default=None)
