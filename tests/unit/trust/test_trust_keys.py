"""Keys sign and verify, have one name each, and refuse whatever is not one of the two algorithms."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, HoldfastError, TrustError
from holdfast.trust.keys import Algorithm, PrivateKey, PublicKey

ALGORITHMS: tuple[Algorithm, ...] = ("ed25519", "ecdsa-p256")
KEYS = {algorithm: PrivateKey.generate(algorithm) for algorithm in ALGORITHMS}
SIGNATURES = {algorithm: key.sign(b"report") for algorithm, key in KEYS.items()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(message=st.binary(max_size=200))
def test_sign_then_verify_holds(algorithm: Algorithm, message: bytes) -> None:
    key = KEYS[algorithm]

    signature = key.sign(message)

    key.public_key.verify(signature, message)
    with pytest.raises(TrustError):
        key.public_key.verify(signature, message + b"x")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
def test_verify_any_flipped_bit_of_the_signature_is_refused(algorithm: Algorithm, data: st.DataObject) -> None:
    key = KEYS[algorithm]
    signature = bytearray(SIGNATURES[algorithm])
    position = data.draw(st.integers(0, len(signature) - 1))
    signature[position] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(TrustError):
        key.public_key.verify(bytes(signature), b"report")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(signature=st.binary(max_size=100))
def test_verify_random_bytes_are_refused(algorithm: Algorithm, signature: bytes) -> None:
    with pytest.raises(TrustError):
        KEYS[algorithm].public_key.verify(signature, b"report")


def test_verify_signature_of_another_key_is_refused() -> None:
    signature = PrivateKey.generate("ed25519").sign(b"report")

    with pytest.raises(TrustError, match="does not hold"):
        KEYS["ed25519"].public_key.verify(signature, b"report")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_public_key_reads_back_equal_with_the_same_name(algorithm: Algorithm) -> None:
    key = KEYS[algorithm].public_key

    from_pem, from_der = PublicKey.from_pem(key.to_pem()), PublicKey.from_spki_der(key.spki_der)

    assert from_pem == from_der == key
    assert from_pem.algorithm == algorithm
    assert key.key_id == hashlib.sha256(key.spki_der).hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_private_key_reads_back_the_same(algorithm: Algorithm) -> None:
    key = KEYS[algorithm]

    again = PrivateKey.from_pem(key.to_pem())

    assert again.public_key == key.public_key


def test_private_key_repr_holds_no_secret() -> None:
    key = KEYS["ed25519"]
    secret = key.object.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    assert secret.hex() not in repr(key)
    assert repr(key).startswith("PrivateKey(ed25519, key_id=")


@given(data=st.binary(max_size=200))
def test_from_spki_der_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(HoldfastError):
        PublicKey.from_spki_der(data)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(data=st.data())
def test_from_spki_der_a_changed_byte_never_keeps_the_name(algorithm: Algorithm, data: st.DataObject) -> None:
    key = KEYS[algorithm].public_key
    der = bytearray(key.spki_der)
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        changed = PublicKey.from_spki_der(bytes(der))
    except HoldfastError:
        return

    assert changed.key_id != key.key_id
    assert changed.spki_der == bytes(der)


@given(text=st.text(max_size=200))
def test_from_pem_random_text_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        PublicKey.from_pem(text)
    with pytest.raises(FormatError):
        PrivateKey.from_pem(text.encode("utf-8", "surrogatepass"))


def test_from_spki_der_compressed_point_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    oids = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    der = b"\x30\x39" + oids + b"\x03\x22\x00" + point

    with pytest.raises(FormatError, match="canonical"):
        PublicKey.from_spki_der(der)


def test_from_spki_der_trailing_bytes_are_refused() -> None:
    with pytest.raises(FormatError):
        PublicKey.from_spki_der(KEYS["ed25519"].public_key.spki_der + b"\0")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="p384"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="rsa"),
        pytest.param(ed448.Ed448PrivateKey.generate, id="ed448"),
    ],
)
def test_from_pem_key_of_another_algorithm_is_refused(other) -> None:  # type: ignore[no-untyped-def]
    key = other()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    with pytest.raises(TrustError, match="expected"):
        PrivateKey.from_pem(private)
    with pytest.raises(TrustError, match="expected"):
        PublicKey.from_pem(public.decode())


def test_private_key_encrypted_pem_is_refused() -> None:
    encrypted = KEYS["ed25519"].object.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pw")
    )

    with pytest.raises(FormatError, match="unencrypted"):
        PrivateKey.from_pem(encrypted)


def test_from_pem_oversized_text_is_refused_before_parsing() -> None:
    with pytest.raises(FormatError, match="at most"):
        PublicKey.from_pem("x" * 5_000)
    with pytest.raises(FormatError, match="at most"):
        PrivateKey.from_pem(b"x" * 5_000)
