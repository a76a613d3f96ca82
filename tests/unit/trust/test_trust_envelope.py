"""DSSE envelopes: what verifies, what is refused, and that securesystemslib reads and writes the same bytes."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OracleEnvelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from holdfast.errors import FormatError, HoldfastError, TrustError
from holdfast.trust.envelope import (
    MAX_SIGNATURES,
    Envelope,
    Signature,
    Verified,
    from_json,
    pae,
    sign_envelope,
    to_json,
    verify_envelope,
)
from holdfast.trust.keys import PrivateKey

TYPE = "application/vnd.holdfast.policy+json"
ED = PrivateKey.generate("ed25519")
P256 = PrivateKey.generate("ecdsa-p256")
STRANGER = PrivateKey.generate("ed25519")


def test_pae_is_the_published_example() -> None:
    # the example of the DSSE protocol document
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(payload_type=st.text(min_size=1, max_size=40).filter(str.isprintable), payload=st.binary(max_size=100))
def test_pae_equals_securesystemslib(payload_type: str, payload: bytes) -> None:
    assert pae(payload_type, payload) == OracleEnvelope(payload, payload_type, {}).pae()


@pytest.mark.parametrize("signer", [ED, P256], ids=["ed25519", "p256"])
def test_securesystemslib_verifies_our_json(signer: PrivateKey) -> None:
    written = to_json(sign_envelope(TYPE, b"{}", signer))

    oracle = OracleEnvelope.from_dict(json.loads(written))
    key = SSlibKey.from_crypto(signer.object.public_key(), keyid=signer.public_key.key_id)

    assert set(oracle.verify([key], 1)) == {signer.public_key.key_id}


@pytest.mark.parametrize("signer", [ED, P256], ids=["ed25519", "p256"])
def test_we_verify_what_securesystemslib_signed(signer: PrivateKey) -> None:
    oracle = OracleEnvelope(b"payload", TYPE, {})
    key = SSlibKey.from_crypto(signer.object.public_key(), keyid=signer.public_key.key_id)
    oracle.sign(CryptoSigner(signer.object, key))
    canonical = json.dumps(oracle.to_dict(), sort_keys=True, separators=(",", ":")).encode()

    verified = verify_envelope(from_json(canonical), TYPE, [signer.public_key])

    assert verified == Verified(b"payload", (signer.public_key.key_id,))


@given(payload=st.binary(max_size=300))
def test_json_reads_back_equal(payload: bytes) -> None:
    envelope = sign_envelope(TYPE, payload, ED, P256)

    assert from_json(to_json(envelope)) == envelope


@given(data=st.data())
def test_any_changed_byte_of_the_json_is_an_error(data: st.DataObject) -> None:
    written = bytearray(to_json(sign_envelope(TYPE, b'{"k":100}', ED)))
    written[data.draw(st.integers(0, len(written) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(HoldfastError):
        verify_envelope(from_json(bytes(written)), TYPE, [ED.public_key])


@given(cut=st.integers(0, 200), junk=st.binary(max_size=20))
def test_any_truncation_or_insertion_is_an_error(cut: int, junk: bytes) -> None:
    written = to_json(sign_envelope(TYPE, b"{}", ED))
    changed = written[:cut] + junk + written[cut + len(junk) + 1 :]

    with pytest.raises(HoldfastError):
        verify_envelope(from_json(changed), TYPE, [ED.public_key])


@given(data=st.binary(max_size=200))
def test_from_json_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        from_json(data)


def _document(**changes: object) -> bytes:
    document: dict[str, object] = json.loads(to_json(sign_envelope(TYPE, b"{}", ED)))
    document.update(changes)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


SIG = {"keyid": "a", "sig": "AAAA"}
BAD_JSON = {
    "not_an_object": b"[]",
    "deeply_nested": b"[" * 100_000,
    "huge_number": b"9" * 10_000,
    "unknown_field": _document(extra=1),
    "payload_is_a_number": _document(payload=1),
    "payload_not_base64": _document(payload="!!!!"),
    "payload_unpadded": _document(payload="e30"),
    "payload_url_safe_base64": _document(payload=base64.urlsafe_b64encode(b"\xff\xff\xff").decode()),
    "type_empty": _document(payloadType=""),
    "type_with_newline": _document(payloadType="a\nb"),
    "type_lone_surrogate": _document(payloadType="\ud800"),
    "type_too_long": _document(payloadType="a" * 300),
    "no_signatures": _document(signatures=[]),
    "signatures_not_a_list": _document(signatures={}),
    "too_many_signatures": _document(signatures=[SIG] * (MAX_SIGNATURES + 1)),
    "signature_unknown_field": _document(signatures=[{**SIG, "cert": ""}]),
    "signature_too_long": _document(signatures=[{"keyid": "a", "sig": "A" * 400}]),
    "duplicate_field": to_json(sign_envelope(TYPE, b"{}", ED)).replace(b"{", b'{"payload":"e30=",', 1),
    "white_space": _document() + b"\n",
    "not_ascii": _document().replace(b"vnd", "vñd".encode()),
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_from_json_refuses(data: bytes) -> None:
    with pytest.raises(FormatError):
        from_json(data)


def test_from_json_oversized_is_refused_before_parsing() -> None:
    with pytest.raises(FormatError, match="at most"):
        from_json(b" " * 4_194_305)


def test_verify_another_payload_type_is_refused() -> None:
    envelope = sign_envelope(TYPE, b"{}", ED)

    with pytest.raises(TrustError, match="approval"):
        verify_envelope(envelope, "application/vnd.holdfast.approval+json", [ED.public_key])


def test_verify_relabelled_payload_type_is_refused() -> None:
    envelope = sign_envelope(TYPE, b"{}", ED)

    with pytest.raises(TrustError, match="does not hold"):
        verify_envelope(Envelope("other", envelope.payload, envelope.signatures), "other", [ED.public_key])


def test_verify_without_a_trusted_signature_is_refused() -> None:
    envelope = sign_envelope(TYPE, b"{}", STRANGER)

    with pytest.raises(TrustError, match="signed by 0 of the 1 trusted keys"):
        verify_envelope(envelope, TYPE, [ED.public_key])


def test_verify_without_any_trusted_key_is_refused() -> None:
    with pytest.raises(TrustError):
        verify_envelope(sign_envelope(TYPE, b"{}", ED), TYPE, [])


def test_verify_skips_signatures_of_strangers() -> None:
    envelope = sign_envelope(TYPE, b"{}", STRANGER, ED)

    assert verify_envelope(envelope, TYPE, [ED.public_key]).key_ids == (ED.public_key.key_id,)


def test_verify_threshold_of_two_needs_two_keys() -> None:
    keys = [ED.public_key, P256.public_key]

    both = verify_envelope(sign_envelope(TYPE, b"{}", ED, P256), TYPE, keys, threshold=2)

    assert both.key_ids == tuple(sorted(key.key_id for key in keys))


def test_verify_one_key_signing_twice_counts_once() -> None:
    envelope = sign_envelope(TYPE, b"{}", ED, ED)

    with pytest.raises(TrustError, match="signed by 1 of the 2"):
        verify_envelope(envelope, TYPE, [ED.public_key, P256.public_key], threshold=2)


def test_verify_one_broken_trusted_signature_among_good_ones_is_refused() -> None:
    good = sign_envelope(TYPE, b"{}", ED)
    envelope = Envelope(TYPE, b"{}", (*good.signatures, Signature(P256.public_key.key_id, b"\0" * 70)))

    with pytest.raises(TrustError, match="does not hold"):
        verify_envelope(envelope, TYPE, [ED.public_key, P256.public_key])


def test_verify_too_many_signatures_are_refused() -> None:
    good = sign_envelope(TYPE, b"{}", ED)

    with pytest.raises(TrustError, match="at most"):
        verify_envelope(Envelope(TYPE, b"{}", good.signatures * 17), TYPE, [ED.public_key])


def test_verify_threshold_below_one_is_our_own_bug() -> None:
    with pytest.raises(RuntimeError):
        verify_envelope(sign_envelope(TYPE, b"{}", ED), TYPE, [ED.public_key], threshold=0)
