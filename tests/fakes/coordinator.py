"""A coordinator in memory that speaks the real protocol over real TLS on loopback.

It verifies chains as the real one has to: signature, order, gap, fork, and tombstones (see `messages.Tombstone`).
`seen` holds every enrolment request as it arrived, for tests about what was NOT sent.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from types import TracebackType

import grpc

from holdfast.clock import Clock, SystemClock
from holdfast.errors import HoldfastError
from holdfast.trust import certificates
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint
from holdfast.trust.envelope import sign_envelope, verify_envelope
from holdfast.trust.keys import PrivateKey, PublicKey
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.enrolment import JoinToken, enrolment_proof_message, renewal_proof_message
from holdfast.wire.messages import (
    NO_HASH,
    PROMISE_TYPE,
    REPORT_TYPE,
    Acknowledgement,
    CheckInRequest,
    CheckInResponse,
    EnrolRequest,
    EnrolResponse,
    InclusionPromise,
    RenewRequest,
    RenewResponse,
    Report,
    ReportRequest,
)
from holdfast.wire.v1 import enrolment_pb2

Handler = Callable[[bytes, grpc.ServicerContext], bytes]

TRUST_DOMAIN = "plant7.example"
SITE = "north"


@dataclass
class FakeChain:
    """What the coordinator knows of one device's chain."""

    key: PublicKey
    head_seq: int = 0
    head_hash: bytes = NO_HASH
    hashes: dict[int, bytes] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)
    forks: list[Report] = field(default_factory=list)


class FakeIngest:
    """Chain verification in memory; the same decisions as the real ingest."""

    def __init__(self, ledger_key: PrivateKey) -> None:
        self.ledger_key = ledger_key
        self.chains: dict[str, FakeChain] = {}
        self.calls = 0

    def accept(self, device_id: str, request: ReportRequest) -> Acknowledgement:
        self.calls += 1
        chain = self.chains[device_id]
        for envelope in request.records:
            try:
                payload = verify_envelope(envelope, REPORT_TYPE, [chain.key]).payload
                report = from_bytes(Report, payload)
            except HoldfastError as error:
                return self._answer(device_id, chain, "signature", str(error))
            refused = self._take(chain, report, hashlib.sha256(payload).digest())
            if refused:
                return self._answer(device_id, chain, refused, f"record {report.seq}")
        return self._answer(device_id, chain)

    def _take(self, chain: FakeChain, report: Report, digest: bytes) -> str:
        tombstone = report.tombstone
        first_seq = report.seq if tombstone is None else tombstone.first_seq
        if report.seq <= chain.head_seq:
            if chain.hashes.get(report.seq) == digest:
                return ""
            chain.forks.append(report)
            return "fork"
        if first_seq > chain.head_seq + 1:
            return "gap"
        if first_seq != chain.head_seq + 1 or report.prev_hash != chain.head_hash:
            chain.forks.append(report)
            return "fork"
        self._store(chain, report, digest)
        chain.head_seq, chain.head_hash = report.seq, digest if tombstone is None else tombstone.last_hash
        return ""

    def _store(self, chain: FakeChain, report: Report, digest: bytes) -> None:
        chain.hashes[report.seq] = digest
        chain.reports[report.seq] = report

    def _answer(self, device_id: str, chain: FakeChain, code: str = "", reason: str = "") -> Acknowledgement:
        promise = InclusionPromise(device_id, chain.head_seq, chain.head_hash, len(chain.reports))
        root = hashlib.sha256(b"root %d" % len(chain.reports)).digest()
        checkpoint = Checkpoint(f"{TRUST_DOMAIN}/ledger", len(chain.reports), root)
        return Acknowledgement(
            chain.head_seq,
            chain.head_hash,
            promise=sign_envelope(PROMISE_TYPE, to_bytes(promise), self.ledger_key),
            checkpoint=sign_checkpoint(checkpoint, f"{TRUST_DOMAIN}/ledger", self.ledger_key),
            refused_code=code,
            refused_reason=reason,
        )


class FakeCoordinator:
    """Both listeners on loopback; use as a context manager."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.ca = PrivateKey.generate("ecdsa-p256")
        self.ledger, self.run, self.assignment = (PrivateKey.generate("ed25519") for _ in range(3))
        self.authority_pem = certificates.create_authority(self.ca, TRUST_DOMAIN, self.clock.utc_ns())
        self.shown_authority = self.authority_pem
        self.ingest = FakeIngest(self.ledger)
        self.tokens: dict[str, tuple[str, int]] = {}
        self.nonces: dict[bytes, str] = {}
        self.seen: list[tuple[str, bytes]] = []
        self.check_ins: list[CheckInRequest] = []
        self.check_in_response = lambda: CheckInResponse(self.clock.utc_ns())
        self.revoked: set[str] = set()
        self.peers: list[str] = []
        self.lifetime_s = certificates.DEVICE_LIFETIME_S
        self._servers: list[grpc.Server] = []
        self.enrolment_address = self.device_address = ""

    def token(self, *, ttl_s: float = 3600.0, pin: str | None = None) -> JoinToken:
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        self.tokens[token_id] = (secret, self.clock.utc_ns() + round(ttl_s * 1e9))
        return JoinToken(self.enrolment_address, token_id, secret, pin or self.ca.public_key.key_id)

    def __enter__(self) -> FakeCoordinator:
        enrolment = {
            "GetAuthority": self._get_authority,
            "Challenge": self._challenge,
            "Enrol": self._enrol,
            "Renew": self._renew,
        }
        fleet = {"Report": self._report, "CheckIn": self._check_in}
        self.enrolment_address = self._serve("EnrolmentService", enrolment, client_certificate=False)
        self.device_address = self._serve("FleetService", fleet, client_certificate=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.stop(0).wait(5)

    def _serve(
        self,
        service: str,
        methods: dict[str, Callable[[bytes, grpc.ServicerContext], bytes]],
        *,
        client_certificate: bool,
    ) -> str:
        key = PrivateKey.generate("ecdsa-p256")
        authority = certificates.Authority(self.ca, self.authority_pem)
        leaf = certificates.issue_server(authority, key.public_key, [], self.clock.utc_ns())
        server = grpc.server(futures.ThreadPoolExecutor(4))
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._guarded(name, do)) for name, do in methods.items()}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"holdfast.wire.v1.{service}", handlers),)
        )
        roots = self.authority_pem if client_certificate else None
        credentials = grpc.ssl_server_credentials([(key.to_pem(), leaf)], roots, client_certificate)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{port}"

    def _guarded(self, name: str, do: Handler) -> Handler:
        def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
            self.seen.append((name, data))
            try:
                return do(data, context)
            except HoldfastError as error:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                raise AssertionError("abort raises") from error

        return handle

    def _get_authority(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        pem = self.shown_authority.decode()
        return enrolment_pb2.GetAuthorityResponse(authority_pem=pem).SerializeToString()

    def _challenge(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        nonce = secrets.token_bytes(32)
        self.nonces[nonce] = enrolment_pb2.ChallengeRequest.FromString(data).subject
        return enrolment_pb2.ChallengeResponse(nonce=nonce).SerializeToString()

    def _enrol(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = from_bytes(EnrolRequest, data)
        secret, expires = self.tokens.get(request.token_id, ("", 0))
        if not secret or secret != request.token_secret:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "join token is not valid")
        if self.clock.utc_ns() >= expires:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "join token has expired")
        if self.nonces.pop(request.nonce, None) != request.token_id:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "nonce is not known")
        key = PublicKey.from_spki_der(request.report_key_spki)
        message = enrolment_proof_message(
            token_id=request.token_id,
            csr_pem=request.csr_pem,
            report_key_spki=request.report_key_spki,
            flower_public_key=request.flower_public_key,
            nonce=request.nonce,
        )
        key.verify(request.proof, message)
        device_id = certificates.read_csr(request.csr_pem.encode()).device_id
        certificate = self.issue(request.csr_pem, device_id)
        self.tokens[request.token_id] = (request.token_secret, 0)  # used up
        self.ingest.chains.setdefault(device_id, FakeChain(key))
        response = EnrolResponse(
            device_id=device_id,
            certificate_pem=certificate.decode(),
            authority_pem=self.authority_pem.decode(),
            trust_domain=TRUST_DOMAIN,
            device_address=self.device_address,
            ledger_key_spki=self.ledger.public_key.spki_der,
            run_key_spki=self.run.public_key.spki_der,
            assignment_key_spki=self.assignment.public_key.spki_der,
            server_utc_ns=self.clock.utc_ns(),
            checkpoint="",
            site=SITE,
        )
        return to_bytes(response)

    def issue(self, csr_pem: str, device_id: str) -> bytes:
        authority = certificates.Authority(self.ca, self.authority_pem)
        return certificates.issue_device(authority, csr_pem.encode(), device_id, self.clock.utc_ns(), self.lifetime_s)

    def _renew(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = from_bytes(RenewRequest, data)
        chain = self.ingest.chains.get(request.device_id)
        if chain is None or request.device_id in self.revoked:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "device was revoked")
            raise AssertionError("abort raises")
        if self.nonces.pop(request.nonce, None) != request.device_id:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "nonce is not known")
        message = renewal_proof_message(device_id=request.device_id, csr_pem=request.csr_pem, nonce=request.nonce)
        chain.key.verify(request.proof, message)
        certificate = self.issue(request.csr_pem, request.device_id).decode()
        return to_bytes(RenewResponse(certificate, self.authority_pem.decode(), self.clock.utc_ns()))

    def _report(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        return to_bytes(self.ingest.accept(self._device(context), from_bytes(ReportRequest, data)))

    def _check_in(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self._device(context)
        self.check_ins.append(from_bytes(CheckInRequest, data))
        return to_bytes(self.check_in_response())

    def _device(self, context: grpc.ServicerContext) -> str:
        peer = context.auth_context()["peer_spiffe_id"][0].decode()
        self.peers.append(context.peer())
        device_id = str(peer.rpartition("/device/")[2])
        if device_id in self.revoked:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "device was revoked")
        return device_id
