from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator_rooms import DEVICE_ADDRESS, TRUST_DOMAIN, Rooms, make_rooms
from tests.fakes.raw_device import RawDevice

from holdfast.errors import EnrolmentError, FormatError, HoldfastError, OverloadedError, SettingsError, TrustError
from holdfast.trust.certificates import create_csr, verify_chain
from holdfast.trust.checkpoint import verify_checkpoint
from holdfast.trust.keys import ED25519, PrivateKey, PublicKey
from holdfast.trust.keystore import generate_flower_node_key
from holdfast.wire.convert import from_bytes
from holdfast.wire.enrolment import JoinToken
from holdfast.wire.messages import EnrolmentRecord, EnrolRequest, LedgerEntry
from holdfast_federation.enrolment import challenges
from holdfast_federation.enrolment.challenges import Challenges
from holdfast_federation.events.outbox import read


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rooms(tmp_path: Path, clock: FakeClock) -> Iterator[Rooms]:
    rooms = make_rooms(tmp_path, clock)
    yield rooms
    rooms.close()


def try_enrol(rooms: Rooms, device: RawDevice, token: JoinToken, **changes: object) -> None:
    rooms.enrolment.enrol(device.enrol_request(token, rooms.enrolment.challenge(token.token_id), **changes))


def assert_nothing_happened(rooms: Rooms) -> None:
    assert rooms.core.devices.all() == ()
    assert rooms.core.ledger.size() == 0


def test_enrolled_device_gets_a_certificate_and_the_keys_to_pin(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled("north")

    response = device.response
    assert response is not None
    leaf = verify_chain(response.certificate_pem.encode(), [response.authority_pem.encode()], "device", clock.utc_ns())
    assert (leaf.device_id, leaf.trust_domain) == (device.device_id, TRUST_DOMAIN)
    assert (response.site, response.device_address) == ("north", DEVICE_ADDRESS)
    ledger_key = PublicKey.from_spki_der(response.ledger_key_spki)
    assert verify_checkpoint(response.checkpoint, f"{TRUST_DOMAIN}/ledger", ledger_key).size == 1


def test_enrolment_is_in_the_ledger_and_an_event(rooms: Rooms) -> None:
    device = rooms.enrolled()

    [(_, data)] = rooms.core.ledger.entries(0, 1)
    entry = from_bytes(LedgerEntry, data)
    record = from_bytes(EnrolmentRecord, entry.body)

    assert (entry.kind, entry.subject) == ("enrolment", device.device_id)
    assert record.report_key_spki == device.report_key.public_key.spki_der
    assert [event.kind for event in read(rooms.core.database)] == ["enrolment"]


def test_used_token_is_refused(rooms: Rooms) -> None:
    token = rooms.token()
    try_enrol(rooms, RawDevice(), token)

    with pytest.raises(EnrolmentError, match="used already"):
        try_enrol(rooms, RawDevice(), token)
    assert len(rooms.core.devices.all()) == 1


def test_devices_racing_with_one_token_end_as_one_device(rooms: Rooms) -> None:
    token = rooms.token()
    requests = [RawDevice().enrol_request(token, rooms.enrolment.challenge(token.token_id)) for _ in range(6)]
    barrier = threading.Barrier(len(requests))
    outcomes: list[str] = []

    def enrol(request: EnrolRequest) -> None:
        barrier.wait(30)
        try:
            outcomes.append(rooms.enrolment.enrol(request).device_id)
        except EnrolmentError as error:
            outcomes.append("refused" if "used already" in str(error) else str(error))

    threads = [threading.Thread(target=enrol, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    [device] = rooms.core.devices.all()
    assert sorted(outcomes) == sorted([device.device_id] + ["refused"] * 5)
    assert rooms.core.ledger.size() == 1


def test_expired_token_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    token = rooms.token(ttl_s=60)
    clock.advance(61)

    with pytest.raises(EnrolmentError, match="expired"):
        try_enrol(rooms, RawDevice(), token)
    assert_nothing_happened(rooms)


@pytest.mark.parametrize("changes", [{"token_secret": "guess"}, {"token_secret": ""}])
def test_forged_token_is_refused(rooms: Rooms, changes: dict[str, object]) -> None:
    with pytest.raises(EnrolmentError, match="join token is not valid"):
        try_enrol(rooms, RawDevice(), rooms.token(), **changes)
    assert_nothing_happened(rooms)


def test_unknown_token_is_refused_in_the_same_words(rooms: Rooms) -> None:
    token = JoinToken("a:1", "0123456789abcdef", "secret", "00" * 32)

    with pytest.raises(EnrolmentError, match="join token is not valid"):
        try_enrol(rooms, RawDevice(), token)


def test_proof_by_another_key_is_refused(rooms: Rooms) -> None:
    with pytest.raises(EnrolmentError, match="proof of possession"):
        try_enrol(rooms, RawDevice(), rooms.token(), proof=PrivateKey.generate(ED25519).sign(b"x"))
    assert_nothing_happened(rooms)


def test_proof_over_another_request_is_refused(rooms: Rooms) -> None:
    device, token = RawDevice(), rooms.token()
    nonce = rooms.enrolment.challenge(token.token_id)
    other = device.enrol_request(token, nonce, flower_public_key=generate_flower_node_key()[1].decode())

    with pytest.raises(EnrolmentError, match="proof of possession"):
        rooms.enrolment.enrol(device.enrol_request(token, nonce, proof=other.proof))


def test_nonce_of_another_token_is_refused(rooms: Rooms) -> None:
    device, token = RawDevice(), rooms.token()
    nonce = rooms.enrolment.challenge("somebody-else")

    with pytest.raises(EnrolmentError, match="nonce was not given"):
        rooms.enrolment.enrol(device.enrol_request(token, nonce))


def test_old_nonce_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    device, token = RawDevice(), rooms.token(ttl_s=3_600)
    nonce = rooms.enrolment.challenge(token.token_id)
    clock.advance(challenges.NONCE_TTL_S)

    with pytest.raises(EnrolmentError, match="nonce is older"):
        rooms.enrolment.enrol(device.enrol_request(token, nonce))


def test_csr_that_is_none_is_refused(rooms: Rooms) -> None:
    with pytest.raises(FormatError, match="certificate request"):
        try_enrol(rooms, RawDevice(), rooms.token(), csr_pem="not a request")
    assert_nothing_happened(rooms)


def test_csr_with_a_flipped_byte_is_refused(rooms: Rooms) -> None:
    device = RawDevice()
    lines = create_csr(device.tls_key, device.device_id).decode().splitlines()
    lines[-2] = lines[-2][:4] + ("A" if lines[-2][4] != "A" else "B") + lines[-2][5:]

    with pytest.raises((FormatError, TrustError)):
        try_enrol(rooms, device, rooms.token(), csr_pem="\n".join(lines) + "\n")
    assert_nothing_happened(rooms)


def test_report_key_of_another_kind_is_refused(rooms: Rooms) -> None:
    with pytest.raises(HoldfastError):
        try_enrol(rooms, RawDevice(), rooms.token(), report_key_spki=b"\x30\x00")
    assert_nothing_happened(rooms)


@pytest.mark.parametrize("text", ["ssh-ed25519 AAAA", "nonsense", "x" * 600])
def test_flower_key_of_another_kind_is_refused(rooms: Rooms, text: str) -> None:
    with pytest.raises(FormatError, match="flower key"):
        try_enrol(rooms, RawDevice(), rooms.token(), flower_public_key=text)


def test_flower_key_is_kept(rooms: Rooms) -> None:
    device, text = RawDevice(), generate_flower_node_key()[1].decode()

    try_enrol(rooms, device, rooms.token(), flower_public_key=text)

    assert rooms.core.devices.get(device.device_id).flower_public_key == text


def test_refused_request_does_not_use_up_the_token(rooms: Rooms) -> None:
    device, token = RawDevice(), rooms.token()
    with pytest.raises(FormatError):
        try_enrol(rooms, device, token, csr_pem="broken")

    try_enrol(rooms, device, token)

    assert rooms.core.devices.get(device.device_id).site == "north"


def test_name_of_the_token_wins_over_the_wish(rooms: Rooms) -> None:
    named, wishing = RawDevice(), RawDevice()

    try_enrol(rooms, named, rooms.token(name="ward-3"), device_name="wish")
    try_enrol(rooms, wishing, rooms.token(), device_name="wish")

    assert rooms.core.devices.get(named.device_id).name == "ward-3"
    assert rooms.core.devices.get(wishing.device_id).name == "wish"


def test_wish_that_is_no_label_is_refused(rooms: Rooms) -> None:
    with pytest.raises(SettingsError, match="device name"):
        try_enrol(rooms, RawDevice(), rooms.token(), device_name="<script>")


def test_same_device_enrols_again_with_a_fresh_token_of_its_site(rooms: Rooms) -> None:
    device = rooms.enrolled("north")

    try_enrol(rooms, device, rooms.token("north"))

    assert len(rooms.core.devices.all()) == 1


def test_same_key_from_another_site_is_refused(rooms: Rooms) -> None:
    device = rooms.enrolled("north")

    with pytest.raises(EnrolmentError, match="known already"):
        try_enrol(rooms, device, rooms.token("south"))


def test_id_of_another_device_is_refused(rooms: Rooms) -> None:
    first, thief = rooms.enrolled(), RawDevice()

    with pytest.raises(EnrolmentError, match="known already"):
        try_enrol(rooms, thief, rooms.token(), csr_pem=create_csr(thief.tls_key, first.device_id).decode())


def test_revoked_device_cannot_enrol_again(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled()
    with rooms.core.database.write() as cx:
        rooms.core.devices.revoke(cx, device.device_id, "", clock.utc_ns())

    with pytest.raises(EnrolmentError, match="known already"):
        try_enrol(rooms, device, rooms.token())


def test_device_renews_long_after_its_certificate_expired(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled()
    clock.advance(200 * 86_400)

    answer = rooms.enrolment.renew(device.renew_request(rooms.enrolment.challenge(device.device_id)))

    leaf = verify_chain(answer.certificate_pem.encode(), [answer.authority_pem.encode()], "device", clock.utc_ns())
    assert leaf.device_id == device.device_id


def test_renewal_by_a_revoked_device_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled()
    with rooms.core.database.write() as cx:
        rooms.core.devices.revoke(cx, device.device_id, "", clock.utc_ns())

    with pytest.raises(EnrolmentError, match="revoked"):
        rooms.enrolment.renew(device.renew_request(rooms.enrolment.challenge(device.device_id)))


def test_renewal_by_an_unknown_device_is_refused(rooms: Rooms) -> None:
    device = RawDevice()

    with pytest.raises(EnrolmentError, match="not known"):
        rooms.enrolment.renew(device.renew_request(rooms.enrolment.challenge(device.device_id)))


def test_renewal_with_the_proof_of_another_key_is_refused(rooms: Rooms) -> None:
    device = rooms.enrolled()
    nonce = rooms.enrolment.challenge(device.device_id)

    with pytest.raises(EnrolmentError, match="proof of possession"):
        rooms.enrolment.renew(device.renew_request(nonce, proof=PrivateKey.generate(ED25519).sign(b"x")))


def test_replayed_renewal_is_refused(rooms: Rooms) -> None:
    device = rooms.enrolled()
    request = device.renew_request(rooms.enrolment.challenge(device.device_id))
    rooms.enrolment.renew(request)

    with pytest.raises(EnrolmentError, match="nonce was used"):
        rooms.enrolment.renew(request)


def test_secret_is_not_stored_in_clear(rooms: Rooms) -> None:
    token = rooms.token()
    rooms.close()

    stored = b"".join(path.read_bytes() for path in rooms.core.state.path.glob("holdfast.db*"))

    assert token.token_id.encode() in stored
    assert token.secret.encode() not in stored


@pytest.mark.parametrize("site", ["", "North", "a b", "../etc", "x" * 64])
def test_token_for_a_site_that_is_no_label_is_refused(rooms: Rooms, site: str) -> None:
    with pytest.raises(SettingsError, match="site"):
        rooms.tokens.create(site)


@pytest.mark.parametrize("ttl_s", [0, -1, 31 * 86_400])
def test_token_with_a_time_out_of_range_is_refused(rooms: Rooms, ttl_s: int) -> None:
    with pytest.raises(SettingsError, match="time to live"):
        rooms.tokens.create("north", ttl_s=ttl_s)


def test_used_nonces_are_bounded_and_forgotten_when_they_expire(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenges, "MAX_USED", 2)
    some = Challenges(clock)
    for _ in range(2):
        some.use(some.create("s"))

    with pytest.raises(OverloadedError):
        some.use(some.create("s"))
    clock.advance(challenges.NONCE_TTL_S)
    some.use(some.create("s"))


@pytest.mark.parametrize("subject", ["", "x" * 200])
def test_challenge_for_a_subject_out_of_bounds_is_refused(clock: FakeClock, subject: str) -> None:
    with pytest.raises(EnrolmentError, match="characters"):
        Challenges(clock).create(subject)
