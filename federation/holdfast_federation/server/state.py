"""The state folder of a coordinator: what lies where, its version, and that one process at a time owns it.

authority/      the coordinator's own keys and the certificate of its authority
principals/     public keys of others: author/*.pem, approver/*.pem, site/NAME.pem
holdfast.db     everything that is recorded; flower/ and blobs/ belong to the rounds and the registry
settings.toml   see `settings.py`;   schema_version;   lock;   admin.sock while it runs
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import StateError
from holdfast.trust.durable import make_folder, remove_leftovers, write_atomic
from holdfast.trust.keys import MAX_KEY_BYTES, PublicKey
from holdfast_federation.enrolment.authority import CERTIFICATE_FILE, CertificateAuthority
from holdfast_federation.enrolment.tokens import check_label

STATE_VERSION = 1  # of the folder's layout; the database has a version of its own
SETTINGS_TEXT = """# Settings of this coordinator. The defaults are reachable from this machine only.
# enrolment_listen = "0.0.0.0:7443"
# device_listen = "0.0.0.0:7444"
# advertise_host = "coordinator.example.org"
"""


@dataclass(frozen=True, slots=True)
class Principals:
    """Public keys of the people and sites that this coordinator works for; it holds none of their private keys."""

    authors: tuple[PublicKey, ...] = ()
    approvers: tuple[PublicKey, ...] = ()
    sites: Mapping[str, PublicKey] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths inside one state folder."""

    path: Path

    @property
    def authority(self) -> Path:
        return self.path / "authority"

    @property
    def database(self) -> Path:
        return self.path / "holdfast.db"

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    @property
    def flower(self) -> Path:
        return self.path / "flower"

    @property
    def settings(self) -> Path:
        return self.path / "settings.toml"

    @property
    def admin_socket(self) -> Path:
        return self.path / "admin.sock"

    @property
    def version(self) -> Path:
        return self.path / "schema_version"

    def principals(self) -> Principals:
        """The public keys of authors, approvers and sites.

        Raises:
            StateError: a file cannot be read.
            FormatError, TrustError: a file does not hold a public key of ours.
        """
        folder = self.path / "principals"
        authors = tuple(_read_key(path) for path in sorted((folder / "author").glob("*.pem")))
        approvers = tuple(_read_key(path) for path in sorted((folder / "approver").glob("*.pem")))
        sites = {path.stem: _read_key(path) for path in sorted((folder / "site").glob("*.pem"))}
        return Principals(authors, approvers, sites)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the folder while the block runs.

        Raises:
            StateError: another process owns it, or it is not writable.
        """
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"state folder {self.path} is not writable: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StateError(f"another coordinator runs on {self.path}; stop it first") from error
            yield
        finally:
            os.close(descriptor)


def create_state(path: Path, trust_domain: str, principals: Principals, clock: Clock) -> StateFolder:
    """Make a new state folder with keys, certificate and settings. Takes up what an interrupted call left.

    Raises:
        StateError: there is a finished one already, or the place is not writable.
        FormatError: the trust domain is not a DNS name in lower case.
    """
    state = StateFolder(path)
    if state.version.exists():
        raise StateError(f"{path} is a coordinator's state folder already; start it with: holdfast coordinator run")
    for name in principals.sites:
        check_label("site", name)
    for folder in (path, state.authority, state.blobs, state.flower):
        make_folder(folder)
    if not (state.authority / CERTIFICATE_FILE).exists():
        CertificateAuthority.create(state.authority, trust_domain, clock)
    _write_keys(path / "principals" / "author", {key.key_id[:16]: key for key in principals.authors})
    _write_keys(path / "principals" / "approver", {key.key_id[:16]: key for key in principals.approvers})
    _write_keys(path / "principals" / "site", principals.sites)
    if not state.settings.exists():
        write_atomic(state.settings, SETTINGS_TEXT.encode())
    # the version last: it marks the folder as complete
    write_atomic(state.version, f"{STATE_VERSION}\n".encode())
    return state


def open_state(path: Path) -> StateFolder:
    """Check a state folder before use; the owner calls it inside `locked`.

    Raises:
        StateError: not a coordinator's folder, unfinished, newer than this program, or not writable.
    """
    state = StateFolder(path)
    try:
        text = state.version.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is not a coordinator's state folder; make one: holdfast coordinator init") from error
    if not text.isdigit() or int(text) > STATE_VERSION:
        raise StateError(
            f"state folder {path} has version {text[:20]!r}, this program knows up to {STATE_VERSION}; "
            f"install the newer holdfast that wrote it"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateError(f"state folder {path} is not writable by this user")
    return state


def clean_state(state: StateFolder) -> None:
    """Remove what a killed process left behind. Only for the owner of the lock."""
    remove_leftovers(state.path)
    state.admin_socket.unlink(missing_ok=True)


def _write_keys(folder: Path, keys: Mapping[str, PublicKey]) -> None:
    make_folder(folder)
    for name, key in keys.items():
        write_atomic(folder / f"{name}.pem", key.to_pem().encode("ascii"), 0o644)


def _read_key(path: Path) -> PublicKey:
    return read_public_keys([path])[0]


def read_public_keys(paths: Sequence[Path]) -> tuple[PublicKey, ...]:
    """The public keys in PEM files.

    Raises:
        StateError: a file cannot be read.
        FormatError, TrustError: it does not hold a public key of ours.
    """
    keys = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_KEY_BYTES + 1)
        except OSError as error:
            raise StateError(f"cannot read the public key {path}: {error.strerror}") from error
        keys.append(PublicKey.from_pem(data.decode("utf-8", "replace")))
    return tuple(keys)
