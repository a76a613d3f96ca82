"""The join token and the proofs of possession."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import EnrolmentError
from holdfast.wire.enrolment import JoinToken, enrolment_proof_message, renewal_proof_message

TOKEN = JoinToken("127.0.0.1:9000", "t-1", "s3cret", "ab" * 32)


def test_token_survives_a_round_trip() -> None:
    assert JoinToken.from_text(f" {TOKEN.to_text()}\n") == TOKEN


def test_token_does_not_show_its_secret() -> None:
    assert "s3cret" not in repr(TOKEN)


@given(st.text(max_size=300))
def test_any_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(EnrolmentError, match="not a join token"):
        JoinToken.from_text(text)


@given(st.integers(0, len(TOKEN.to_text()) - 1))
def test_truncated_token_is_refused(length: int) -> None:
    with pytest.raises(EnrolmentError):
        JoinToken.from_text(TOKEN.to_text()[:length])


def test_moving_a_byte_between_fields_changes_the_proof() -> None:
    one = renewal_proof_message(device_id="ab", csr_pem="c", nonce=b"n")
    other = renewal_proof_message(device_id="a", csr_pem="bc", nonce=b"n")

    assert one != other


def test_enrolment_proof_covers_every_field() -> None:
    fields = {"token_id": "t", "csr_pem": "c", "report_key_spki": b"r", "flower_public_key": "f", "nonce": b"n"}
    base = enrolment_proof_message(**fields)  # type: ignore[arg-type]  # one dict for five typed keywords

    for name, value in fields.items():
        changed = {**fields, name: value + value}
        assert enrolment_proof_message(**changed) != base  # type: ignore[arg-type]  # as above
