"""The device itself: its id, its keys, its certificate, and the keys it pinned when it enrolled.

`device.json` is written last at enrolment: while it is missing the device is not enrolled, whatever else is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import FormatError, StateError
from holdfast.identity.state import StateFolder
from holdfast.link.channel import ClientIdentity
from holdfast.trust.certificates import validity_of
from holdfast.trust.durable import write_atomic
from holdfast.trust.keys import ECDSA_P256, ED25519, PrivateKey, PublicKey
from holdfast.trust.keystore import KeyStore

TLS_KEY = "tls"
REPORT_KEY = "report"
FLOWER_KEY = "flower"
MAX_FILE_BYTES = 65_536  # pins of a hundred approvers are 15 KB


@dataclass(frozen=True, slots=True)
class Pins:
    """The public keys this device trusts, each for one thing only."""

    site: PublicKey
    authors: tuple[PublicKey, ...]
    approvers: tuple[PublicKey, ...]
    ledger: PublicKey
    run: PublicKey
    assignment: PublicKey


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """What enrolment settled. `site` is the coordinator's label for the site."""

    device_id: str
    site: str
    trust_domain: str
    device_address: str
    enrolment_address: str
    key_epoch: int
    enrolled_utc_ns: int


class Device:
    """An enrolled device, read from its state folder.

    Raises:
        StateError: not enrolled, or a file is missing or damaged.
        TrustError: a key file could be read by others.
    """

    def __init__(self, state: StateFolder) -> None:
        self._folder = state.identity
        if not is_enrolled(state):
            raise StateError(f"the device in {state.path} is not enrolled; run: holdfast agent enrol {state.path}")
        self.record = _read_record(self._folder / "device.json")
        self.pins = read_pins(self._folder / "pins.json")
        self._keys = KeyStore(self._folder)
        self.report_key = self._keys.load(REPORT_KEY)
        self.tls_key = self._keys.load(TLS_KEY)
        self.authority = read_file(self._folder / "authority.pem")

    @property
    def certificate(self) -> bytes:
        """The present TLS certificate (PEM)."""
        return read_file(self._folder / "certificate.pem")

    @property
    def client_identity(self) -> ClientIdentity:
        return ClientIdentity(self.certificate, self.tls_key.to_pem())

    @property
    def certificate_validity(self) -> tuple[int, int]:
        """(not_before, not_after) of the present certificate, UTC nanoseconds."""
        return validity_of(self.certificate)

    @property
    def flower_key(self) -> Path:
        """The private Flower node key, OpenSSH text, for the worker."""
        return self._folder / FLOWER_KEY

    def replace_certificate(self, certificate: bytes) -> None:
        """Store a renewed certificate durably; the caller has verified it."""
        write_atomic(self._folder / "certificate.pem", certificate, 0o644)


def is_enrolled(state: StateFolder) -> bool:
    return (state.identity / "device.json").exists()


def make_keys(state: StateFolder) -> tuple[PrivateKey, PrivateKey]:
    """The (tls, report) keys of this device, made now if there are none."""
    keys = KeyStore(state.identity)
    return keys.load_or_create(TLS_KEY, ECDSA_P256), keys.load_or_create(REPORT_KEY, ED25519)


def write_record(state: StateFolder, record: DeviceRecord) -> None:
    fields = {"schema": 1} | {name: getattr(record, name) for name in DeviceRecord.__slots__}
    write_atomic(state.identity / "device.json", _dump(fields), 0o644)


def write_pins(state: StateFolder, pins: Pins) -> None:
    fields = {
        "schema": 1,
        "site": pins.site.to_pem(),
        "authors": [key.to_pem() for key in pins.authors],
        "approvers": [key.to_pem() for key in pins.approvers],
        "ledger": pins.ledger.to_pem(),
        "run": pins.run.to_pem(),
        "assignment": pins.assignment.to_pem(),
    }
    write_atomic(state.identity / "pins.json", _dump(fields), 0o644)


def read_pins(path: Path) -> Pins:
    """Read pinned keys.

    Raises:
        StateError: the file is missing or damaged.
    """
    fields = _load(path)
    try:
        return Pins(
            site=_key(fields["site"]),
            authors=_keys(fields["authors"]),
            approvers=_keys(fields["approvers"]),
            ledger=_key(fields["ledger"]),
            run=_key(fields["run"]),
            assignment=_key(fields["assignment"]),
        )
    except (KeyError, FormatError) as error:
        raise _damaged(path, error) from error


def read_file(path: Path) -> bytes:
    """A small file of the identity folder."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise StateError(f"{path} is larger than {MAX_FILE_BYTES} bytes; restore it from a backup")
    return data


def _read_record(path: Path) -> DeviceRecord:
    fields = _load(path)
    texts = ("device_id", "site", "trust_domain", "device_address", "enrolment_address")
    numbers = ("key_epoch", "enrolled_utc_ns")
    if not all(isinstance(fields.get(name), str) for name in texts):
        raise _damaged(path, "a text is missing")
    if not all(type(fields.get(name)) is int for name in numbers):
        raise _damaged(path, "a number is missing")
    return DeviceRecord(**{name: fields[name] for name in (*texts, *numbers)})  # type: ignore[arg-type]  # checked above


def _load(path: Path) -> Mapping[str, object]:
    try:
        fields: object = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(fields, dict) or fields.get("schema") != 1:
        raise _damaged(path, "it has another schema than 1")
    return fields


def _dump(fields: Mapping[str, object]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()


def _key(value: object) -> PublicKey:
    if not isinstance(value, str):
        raise FormatError("a key is not a text")
    return PublicKey.from_pem(value)


def _keys(value: object) -> tuple[PublicKey, ...]:
    if not isinstance(value, list):
        raise FormatError("keys are not a list")
    return tuple(_key(item) for item in value)


def _damaged(path: Path, cause: object) -> StateError:
    return StateError(f"{path} is damaged ({cause}); restore it from a backup, or enrol again in a new folder")
