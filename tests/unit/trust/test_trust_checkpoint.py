"""Checkpoints: signed notes that read back, that other note tools would take, and that refuse any change."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, HoldfastError, TrustError
from holdfast.trust.checkpoint import Checkpoint, note_key_hash, sign_checkpoint, verifier_key, verify_checkpoint
from holdfast.trust.keys import PrivateKey, PublicKey

KEY = PrivateKey.generate("ed25519")
NAME = "plant7.example/log"
CHECKPOINT = Checkpoint(NAME, 42, bytes(range(32)))
NOTE = sign_checkpoint(CHECKPOINT, NAME, KEY)


@given(size=st.integers(0, 2**63 - 1), root=st.binary(min_size=32, max_size=32))
def test_checkpoint_reads_back_equal(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(NAME, size, root)

    assert verify_checkpoint(sign_checkpoint(checkpoint, NAME, KEY), NAME, KEY.public_key) == checkpoint


def test_checkpoint_has_the_specified_lines() -> None:
    origin, size, root, blank, signature, end = NOTE.split("\n")

    assert (origin, size, blank, end) == (NAME, "42", "", "")
    assert base64.b64decode(root) == CHECKPOINT.root
    assert signature.startswith(f"— {NAME} ")


def test_key_hash_and_verifier_key_are_those_of_the_go_package() -> None:
    # golang.org/x/mod/sumdb/note, the example of the package documentation
    published = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    raw = base64.b64decode(published.split("+", 2)[2])[1:]
    key = PublicKey.from_spki_der(bytes.fromhex("302a300506032b6570032100") + raw)
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )

    assert verifier_key("PeterNeumann", key) == published
    assert note_key_hash("PeterNeumann", key) == signature[:4]
    key.verify(signature[4:], text.encode())


@given(data=st.data())
def test_any_changed_byte_is_an_error(data: st.DataObject) -> None:
    changed = bytearray(NOTE.encode())
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(HoldfastError):
        verify_checkpoint(changed.decode("utf-8", "surrogateescape"), NAME, KEY.public_key)


@given(position=st.integers(0, len(NOTE)), junk=st.text(max_size=3), drop=st.integers(0, 3))
def test_any_insertion_or_deletion_is_an_error(position: int, junk: str, drop: int) -> None:
    changed = NOTE[:position] + junk + NOTE[position + drop :]
    if changed == NOTE:
        return

    with pytest.raises(HoldfastError):
        verify_checkpoint(changed, NAME, KEY.public_key)


@given(text=st.text(max_size=200))
def test_random_text_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        verify_checkpoint(text, NAME, KEY.public_key)


def test_signature_of_a_witness_is_left_alone() -> None:
    witness = PrivateKey.generate("ed25519")
    line = sign_checkpoint(CHECKPOINT, "witness.example", witness).rpartition("\n\n")[2]

    assert verify_checkpoint(NOTE + line, NAME, KEY.public_key) == CHECKPOINT
    assert verify_checkpoint(NOTE + line, "witness.example", witness.public_key) == CHECKPOINT


def test_key_of_a_stranger_is_refused() -> None:
    with pytest.raises(TrustError, match="0 signatures"):
        verify_checkpoint(NOTE, NAME, PrivateKey.generate("ed25519").public_key)


def test_another_key_name_is_refused() -> None:
    with pytest.raises(TrustError, match="0 signatures"):
        verify_checkpoint(NOTE, "other.example/log", KEY.public_key)


def test_p256_key_is_refused() -> None:
    p256 = PrivateKey.generate("ecdsa-p256")

    with pytest.raises(TrustError, match="ed25519"):
        sign_checkpoint(CHECKPOINT, NAME, p256)
    with pytest.raises(TrustError, match="ed25519"):
        verify_checkpoint(NOTE, NAME, p256.public_key)


def _note(body: str) -> str:
    """A correctly signed note with whatever body is asked for."""
    signature = base64.b64encode(note_key_hash(NAME, KEY.public_key) + KEY.sign(body.encode())).decode()
    return f"{body}\n— {NAME} {signature}\n"


ROOT = base64.b64encode(CHECKPOINT.root).decode()
BAD_NOTES = {
    "no_origin": _note(f"\n42\n{ROOT}\n"),
    "origin_with_space": _note(f"a b\n42\n{ROOT}\n"),
    "leading_zero": _note(f"{NAME}\n042\n{ROOT}\n"),
    "plus_sign": _note(f"{NAME}\n+42\n{ROOT}\n"),
    "negative_size": _note(f"{NAME}\n-1\n{ROOT}\n"),
    "other_digits": _note(f"{NAME}\n٤٢\n{ROOT}\n"),
    "size_beyond_64_bits": _note(f"{NAME}\n9999999999999999999\n{ROOT}\n"),
    "short_root": _note(f"{NAME}\n42\nAAAA\n"),
    "root_not_base64": _note(f"{NAME}\n42\n!!!!\n"),
    "extension_line": _note(f"{NAME}\n42\n{ROOT}\nextension\n"),
    "two_lines": _note(f"{NAME}\n42\n"),
    "control_character": _note(f"{NAME}\r\n42\n{ROOT}\n"),
    "no_signature": f"{NAME}\n42\n{ROOT}\n",
    "empty_signature_block": f"{NAME}\n42\n{ROOT}\n\n",
    "hyphen_for_dash": NOTE.replace("—", "-"),
    "short_signature": f"{NAME}\n42\n{ROOT}\n\n— {NAME} AAAA\n",
    "too_many_signatures": NOTE + NOTE.rpartition("\n\n")[2] * 100,
    "huge": "a" * 20_000,
    "lone_surrogate": NOTE + "\ud800\n",
}


@pytest.mark.parametrize("note", BAD_NOTES.values(), ids=BAD_NOTES.keys())
def test_bad_note_is_refused(note: str) -> None:
    with pytest.raises(FormatError):
        verify_checkpoint(note, NAME, KEY.public_key)


def test_note_signed_twice_by_one_key_is_refused() -> None:
    with pytest.raises(TrustError, match="2 signatures"):
        verify_checkpoint(NOTE + NOTE.rpartition("\n\n")[2], NAME, KEY.public_key)


def test_forged_good_note_is_accepted() -> None:
    # shows that the cases above fail for their defect and not for the forging
    assert verify_checkpoint(_note(f"{NAME}\n42\n{ROOT}\n"), NAME, KEY.public_key) == CHECKPOINT


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2028b", "\ud800", "x" * 201])
def test_bad_names_are_refused_when_signing(name: str) -> None:
    with pytest.raises(FormatError):
        sign_checkpoint(CHECKPOINT, name, KEY)
    with pytest.raises(FormatError):
        sign_checkpoint(Checkpoint(name, 1, CHECKPOINT.root), NAME, KEY)


@pytest.mark.parametrize(("size", "root"), [(-1, b"\0" * 32), (2**63, b"\0" * 32), (1, b"short")])
def test_bad_values_are_refused_when_signing(size: int, root: bytes) -> None:
    with pytest.raises(FormatError):
        sign_checkpoint(Checkpoint(NAME, size, root), NAME, KEY)
