"""Private keys on disk: one file each, 0600, in a folder of 0700; never overwritten.

Beside `<name>` lies its public half, `<name>.pub` in PEM, to hand around. A key file that others on the machine may
read is refused, because it has to be taken as known to them. Later a TPM can take the place of the file: callers
only ever hold a `Signer`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast.errors import StateError, TrustError
from holdfast.trust.durable import create_atomic, make_folder, write_atomic
from holdfast.trust.keys import MAX_KEY_BYTES, Algorithm, PrivateKey, PublicKey

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyStore:
    """The keys in one folder, by name. Makes the folder with the first key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, algorithm: Algorithm) -> PrivateKey:
        """Make a new key and store it durably.

        Raises:
            StateError: a key of that name exists already, or the folder cannot be written.
        """
        path = self._path(name)
        make_folder(self._folder, 0o700)
        key = PrivateKey.generate(algorithm)
        create_atomic(path, key.to_pem(), 0o600)
        self._write_public(name, key.public_key)
        return key

    def load(self, name: str) -> PrivateKey:
        """Read a key.

        Raises:
            StateError: there is none of that name.
            TrustError: others on this machine could read it.
            FormatError: the file does not hold a private key.
        """
        path = self._path(name)
        key = PrivateKey.from_pem(_read_private(path))
        if not self._public_path(name).exists():
            # the power went between the two files of `create`
            self._write_public(name, key.public_key)
        return key

    def load_or_create(self, name: str, algorithm: Algorithm) -> PrivateKey:
        """The key of that name, made now if there is none.

        Raises:
            TrustError: the key there is of another algorithm, or unsafe as in `load`.
        """
        if not self._path(name).exists():
            return self.create(name, algorithm)
        key = self.load(name)
        if key.public_key.algorithm != algorithm:
            raise TrustError(f"key {name!r} is {key.public_key.algorithm}, expected {algorithm}; move the file away")
        return key

    def public(self, name: str) -> PublicKey:
        """The public half, without touching the private file.

        Raises:
            StateError: there is none of that name.
            FormatError: the file does not hold a public key.
        """
        path = self._public_path(name)
        text = _read_bounded(path, os.O_RDONLY).decode("utf-8", errors="replace")
        return PublicKey.from_pem(text)

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise StateError(f"key name {name!r} is not allowed; use a-z, 0-9, '-' and '_', 64 characters at most")
        return self._folder / name

    def _public_path(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(path.name + ".pub")

    def _write_public(self, name: str, key: PublicKey) -> None:
        write_atomic(self._public_path(name), key.to_pem().encode("ascii"), 0o644)


def generate_flower_node_key() -> tuple[bytes, bytes]:
    """A new ECDSA P-384 key pair as Flower's SuperNode authentication reads it: (private, public) in OpenSSH text.

    It opens nothing of ours: a Flower node key only names a worker to the SuperLink.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def _read_private(path: Path) -> bytes:
    # O_NOFOLLOW: a link could point at a file whose mode we would not be checking
    return _read_bounded(path, os.O_RDONLY | os.O_NOFOLLOW, forbidden_mode=_OTHERS)


def _read_bounded(path: Path, flags: int, forbidden_mode: int = 0) -> bytes:
    try:
        # O_NONBLOCK: a named pipe in the place of a key file must not hang the agent
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        raise StateError(f"cannot read the key file {path}: {error.strerror or error}") from error
    try:
        status = os.fstat(descriptor)  # of the open file: no gap between check and read
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"key file {path} is not a regular file")
        mode = stat.S_IMODE(status.st_mode)
        if mode & forbidden_mode:
            raise TrustError(f"key file {path} has mode {mode:04o}, expected 0600; others may know it, replace it")
        return os.read(descriptor, MAX_KEY_BYTES + 1)
    finally:
        os.close(descriptor)
