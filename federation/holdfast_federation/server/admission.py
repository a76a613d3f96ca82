"""Who is calling, and may they still: asked on every call, because an open connection outlives its certificate.

TLS has checked the certificate's chain when the connection was made. Here its expiry is compared with the clock and
its device with the records, each time; only the parsing of a certificate is remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import TrustError
from holdfast.trust import certificates
from holdfast_federation.devices.records import DeviceRecord, Devices

MAX_CACHED_CERTIFICATES = 4_096  # one per connection; a certificate has about 1 KB


@dataclass(frozen=True, slots=True)
class _Caller:
    device_id: str
    not_after_utc_ns: int


class Admission:
    """Admits known devices with a valid certificate of this trust domain."""

    def __init__(self, devices: Devices, trust_domain: str, clock: Clock) -> None:
        self._devices = devices
        self._prefix = f"spiffe://{trust_domain}/device/"
        self._clock = clock
        self._callers: OrderedDict[bytes, _Caller] = OrderedDict()
        self._lock = threading.Lock()

    def admit(self, properties: Mapping[str, Sequence[bytes]]) -> DeviceRecord:
        """The device that is calling.

        Args:
            properties: of the connection's TLS session, as gRPC's `auth_context` gives them.

        Raises:
            TrustError: no device certificate, an expired one, or a device that is unknown or revoked.
        """
        identities = [item.decode("utf-8", "replace") for item in properties.get("peer_spiffe_id", ())]
        pems = list(properties.get("x509_pem_cert", ()))
        if len(identities) != 1 or len(pems) != 1 or not identities[0].startswith(self._prefix):
            raise TrustError(f"a certificate with one id under {self._prefix} is required; enrol this device")
        caller = self._caller(pems[0])
        if identities[0] != self._prefix + caller.device_id:
            raise TrustError("the certificate and its connection name different devices")
        if self._clock.utc_ns() > caller.not_after_utc_ns:
            raise TrustError(f"the certificate of device {caller.device_id!r} has expired; renew it and connect again")
        device = self._devices.get(caller.device_id)
        if device.is_revoked:
            raise TrustError(f"device {device.device_id!r} was revoked; ask the operator of the coordinator")
        return device

    def _caller(self, pem: bytes) -> _Caller:
        with self._lock:
            known = self._callers.get(pem)
            if known is not None:
                self._callers.move_to_end(pem)
                return known
        caller = _Caller(certificates.device_id_of(pem), certificates.not_after_utc_ns(pem))
        with self._lock:
            self._callers[pem] = caller
            while len(self._callers) > MAX_CACHED_CERTIFICATES:
                self._callers.popitem(last=False)
        return caller
