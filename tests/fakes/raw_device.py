"""A device made of bare gRPC calls and keys: what the coordinator must accept or refuse, without the agent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import grpc

from holdfast.sketch.histogram import ExponentialHistogram
from holdfast.trust.certificates import create_csr, server_name
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import ECDSA_P256, ED25519, PrivateKey
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.enrolment import JoinToken, enrolment_proof_message, renewal_proof_message
from holdfast.wire.histograms import to_message
from holdfast.wire.messages import (
    NO_HASH,
    REPORT_TYPE,
    Acknowledgement,
    CheckInRequest,
    CheckInResponse,
    ClockReading,
    EnrolRequest,
    EnrolResponse,
    ModelWindow,
    OperationalWindow,
    RenewRequest,
    RenewResponse,
    Report,
    ReportBody,
    ReportRequest,
)
from holdfast.wire.v1 import enrolment_pb2

T = TypeVar("T")
TIMEOUT_S = 20.0
ENROLMENT = "/holdfast.wire.v1.EnrolmentService/"
FLEET = "/holdfast.wire.v1.FleetService/"
BODY_FIELD = {
    "OperationalWindow": "operational",
    "DataWindow": "data",
    "RoundAnswer": "round_answer",
    "PolicyChange": "policy_change",
    "ModelEvent": "model_event",
    "Tombstone": "tombstone",
}


def call(channel: grpc.Channel, method: str, data: bytes) -> bytes:
    """One unary call with raw bytes."""
    return channel.unary_unary(method)(data, timeout=TIMEOUT_S)


def window(latencies_s: list[float] | None = None, *, failed: int = 0) -> OperationalWindow:
    """An operational window of model "digits" with these request latencies."""
    histogram = ExponentialHistogram()
    for value in latencies_s or [0.001]:
        histogram.add(value)
    outcomes = {"ok": histogram.count}
    if failed:
        outcomes["HF-REQUEST-004"] = failed
    model = ModelWindow("digits", "1", "ab" * 32, outcomes, to_message(histogram.snapshot()))
    return OperationalWindow(1_000, 2_000, (model,), 0.5, 1_000_000, {"report": 100})


@dataclass
class Chain:
    """Signed records of one device, linked by hash."""

    device_id: str
    report_key: PrivateKey
    seq: int = 0
    head_hash: bytes = NO_HASH

    def next(self, body: ReportBody | None = None, **changes: object) -> Envelope:
        """The next record; `changes` overrides fields of the report, to make bad ones. Advances the chain."""
        body = window() if body is None else body
        fields: dict[str, object] = {
            "device_id": self.device_id,
            "key_epoch": 1,
            "boot_id": "boot",
            "seq": self.seq + 1,
            "prev_hash": self.head_hash,
            "clock": ClockReading(1_790_000_000_000_000_000, 5),
            BODY_FIELD[type(body).__name__]: body,
            **changes,
        }
        payload = to_bytes(Report(**fields))  # type: ignore[arg-type]  # tests override fields at will
        self.seq = int(fields["seq"])  # type: ignore[call-overload]
        self.head_hash = hashlib.sha256(payload).digest()
        return sign_envelope(REPORT_TYPE, payload, self.report_key)


@dataclass
class RawDevice:
    """Keys and certificates of one device."""

    tls_key: PrivateKey = field(default_factory=lambda: PrivateKey.generate(ECDSA_P256))
    report_key: PrivateKey = field(default_factory=lambda: PrivateKey.generate(ED25519))
    certificate_pem: str = ""
    response: EnrolResponse | None = None

    @property
    def device_id(self) -> str:
        return f"d-{self.report_key.public_key.key_id[:16]}"

    def chain(self) -> Chain:
        return Chain(self.device_id, self.report_key)

    def enrol_request(self, token: JoinToken, nonce: bytes, **changes: object) -> EnrolRequest:
        """A right request, or with `changes` a wrong one; the proof is over what is sent unless it is changed too."""
        fields: dict[str, object] = {
            "token_id": token.token_id,
            "token_secret": token.secret,
            "csr_pem": create_csr(self.tls_key, self.device_id).decode(),
            "report_key_spki": self.report_key.public_key.spki_der,
            "flower_public_key": "",
            "nonce": nonce,
            "device_name": "",
        }
        fields.update({key: value for key, value in changes.items() if key != "proof"})
        proof = self.report_key.sign(
            enrolment_proof_message(
                token_id=str(fields["token_id"]),
                csr_pem=str(fields["csr_pem"]),
                report_key_spki=fields["report_key_spki"],  # type: ignore[arg-type]
                flower_public_key=str(fields["flower_public_key"]),
                nonce=fields["nonce"],  # type: ignore[arg-type]
            )
        )
        return EnrolRequest(**{**fields, "proof": changes.get("proof", proof)})  # type: ignore[arg-type]

    def renew_request(self, nonce: bytes, **changes: object) -> RenewRequest:
        csr = create_csr(self.tls_key, self.device_id).decode()
        message = renewal_proof_message(device_id=self.device_id, csr_pem=csr, nonce=nonce)
        fields: dict[str, object] = {
            "device_id": self.device_id,
            "csr_pem": csr,
            "nonce": nonce,
            "proof": self.report_key.sign(message),
            **changes,
        }
        return RenewRequest(**fields)  # type: ignore[arg-type]

    def enrol(self, token: JoinToken, authority_pem: str, trust_domain: str) -> EnrolResponse:
        """Enrol over the network with a known authority."""
        with enrolment_channel(token.address, authority_pem, trust_domain) as channel:
            nonce = challenge(channel, token.token_id)
            data = call(channel, ENROLMENT + "Enrol", to_bytes(self.enrol_request(token, nonce)))
        self.response = from_bytes(EnrolResponse, data)
        self.certificate_pem = self.response.certificate_pem
        return self.response

    def renew(self, address: str, authority_pem: str, trust_domain: str) -> RenewResponse:
        with enrolment_channel(address, authority_pem, trust_domain) as channel:
            nonce = challenge(channel, self.device_id)
            data = call(channel, ENROLMENT + "Renew", to_bytes(self.renew_request(nonce)))
        answer = from_bytes(RenewResponse, data)
        self.certificate_pem = answer.certificate_pem
        return answer

    @contextmanager
    def fleet(self, address: str = "") -> Iterator[FleetClient]:
        """An open connection to the device listener with this device's certificate."""
        assert self.response is not None
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.response.authority_pem.encode(),
            private_key=self.tls_key.to_pem(),
            certificate_chain=self.certificate_pem.encode(),
        )
        with secure(address or self.response.device_address, credentials, self.response.trust_domain) as channel:
            yield FleetClient(channel)


@dataclass(frozen=True)
class FleetClient:
    channel: grpc.Channel

    def report(self, *records: Envelope) -> Acknowledgement:
        return from_bytes(Acknowledgement, call(self.channel, FLEET + "Report", to_bytes(ReportRequest(records))))

    def check_in(self, active: Mapping[str, str] | None = None) -> CheckInResponse:
        request = CheckInRequest(active or {}, "", 0, "test")
        return from_bytes(CheckInResponse, call(self.channel, FLEET + "CheckIn", to_bytes(request)))


def challenge(channel: grpc.Channel, subject: str) -> bytes:
    data = call(channel, ENROLMENT + "Challenge", enrolment_pb2.ChallengeRequest(subject=subject).SerializeToString())
    return enrolment_pb2.ChallengeResponse.FromString(data).nonce


@contextmanager
def enrolment_channel(address: str, authority_pem: str, trust_domain: str) -> Iterator[grpc.Channel]:
    with secure(address, grpc.ssl_channel_credentials(authority_pem.encode()), trust_domain) as channel:
        yield channel


@contextmanager
def secure(address: str, credentials: grpc.ChannelCredentials, trust_domain: str) -> Iterator[grpc.Channel]:
    options = [
        ("grpc.ssl_target_name_override", server_name(trust_domain)),
        ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, also to an address used before
        ("grpc.enable_retries", 0),
    ]
    with grpc.secure_channel(address, credentials, options) as channel:
        yield channel
