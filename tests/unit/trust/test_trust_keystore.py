"""Key files: private by mode, never overwritten, whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast.errors import FormatError, StateError, TrustError
from holdfast.trust.keystore import KeyStore, generate_flower_node_key


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_create_sets_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        KeyStore(tmp_path / "identity").create("report", "ed25519")
    finally:
        os.umask(old)

    assert _mode(tmp_path / "identity") == 0o700
    assert _mode(tmp_path / "identity" / "report") == 0o600
    assert _mode(tmp_path / "identity" / "report.pub") == 0o644
    assert sorted(entry.name for entry in (tmp_path / "identity").iterdir()) == ["report", "report.pub"]


def test_load_returns_the_created_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)

    created = store.create("report", "ecdsa-p256")

    assert store.load("report").public_key == created.public_key
    assert store.public("report") == created.public_key


def test_create_never_overwrites(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    first = store.create("report", "ed25519")

    with pytest.raises(StateError, match="exists"):
        store.create("report", "ed25519")

    assert store.load("report").public_key == first.public_key


def test_load_or_create_makes_one_key_only(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)

    first = store.load_or_create("report", "ed25519")

    assert store.load_or_create("report", "ed25519").public_key == first.public_key
    with pytest.raises(TrustError, match="expected ecdsa-p256"):
        store.load_or_create("report", "ecdsa-p256")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777])
def test_load_refuses_a_file_others_may_read(tmp_path: Path, mode: int) -> None:
    store = KeyStore(tmp_path)
    store.create("report", "ed25519")
    (tmp_path / "report").chmod(mode)

    with pytest.raises(TrustError, match="mode 0"):
        store.load("report")


def test_load_refuses_a_link(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.create("report", "ed25519")
    (tmp_path / "linked").symlink_to(tmp_path / "report")

    with pytest.raises(StateError):
        store.load("linked")


def test_load_refuses_a_named_pipe_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report", 0o600)

    with pytest.raises(StateError, match="not a regular file"):
        KeyStore(tmp_path).load("report")


def test_load_missing_key_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="report"):
        KeyStore(tmp_path).load("report")


@pytest.mark.parametrize("content", [b"", b"junk", b"x" * 100_000], ids=["empty", "junk", "huge"])
def test_load_refuses_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "report").write_bytes(content)
    (tmp_path / "report").chmod(0o600)
    (tmp_path / "report.pub").write_bytes(content)

    with pytest.raises(FormatError):
        KeyStore(tmp_path).load("report")
    with pytest.raises(FormatError):
        KeyStore(tmp_path).public("report")


def test_load_restores_a_public_half_lost_in_a_crash(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    key = store.create("report", "ed25519")
    (tmp_path / "report.pub").unlink()

    store.load("report")

    assert store.public("report") == key.public_key


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A", "a.pub", "a\n", "x" * 65])
def test_key_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StateError, match="not allowed"):
        KeyStore(tmp_path).create(name, "ed25519")


def test_flower_node_key_is_p384_in_openssh_text() -> None:
    private, public = generate_flower_node_key()

    key = serialization.load_ssh_private_key(private, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert serialization.load_ssh_public_key(public) == key.public_key()
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
