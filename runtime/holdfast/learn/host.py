"""The agent's side of learning: starts the worker at the first accepted offer, serves its unix socket, ends it.

Three requests and no more: `/fleet/<call>` (one of nine, carried through the link, so that the byte ledger is complete
by construction), `/authorise` (an offer, or the wish of an unsigned run) and `/sign`. The socket lies in a folder of
mode 0700 and answers only the worker's own process id. Answers to a refusal are codes, never text.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from holdfast.clock import Clock, SystemClock
from holdfast.errors import FormatError, HoldfastError, LinkError, RoundError
from holdfast.learn.authority import Authorised, RoundAuthority, statement_from_fields
from holdfast.learn.pause_flag import PauseFlag
from holdfast.learn.socket_server import Answer, SocketServer
from holdfast.lifecycle import Stop
from holdfast.trust.envelope import Envelope
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.fleet import FLEET_PATHS
from holdfast.wire.limits import MAX_STATEMENT_BYTES
from holdfast.wire.messages import FleetCallRequest, FleetCallResponse, PrivacyTerms, RoundAnswer, RoundOffer

logger = logging.getLogger(__name__)

TEND_S = 0.5
PAUSE_NAME = "pause"
STOP_TIMEOUT_S = 5.0
MAX_LOG_BYTES = 1_048_576  # 1 MiB
MAX_RESTARTS = 3  # of a worker that crashes while an offer is open; then the round goes on without this device
REFUSED_EXIT = 3  # the worker's exit code when its node key was refused: a restart would not help
IDLE_MARGIN_S = 30.0
UNSIGNED_PURPOSE = "unsigned"  # of runs without an offer, in byte budgets; no policy has to allow it
UNSIGNED_DEADLINE_S = 3_600.0


class FleetLink(Protocol):
    """The part of the link that this room needs."""

    def fleet_call(self, request: FleetCallRequest) -> FleetCallResponse:
        """Carry one Fleet call. Raises: LinkError: the coordinator cannot be reached, or refused it."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """memory_bytes: address space of the worker; ONNX Runtime and flwr reserve far more than they use."""

    node_key: Path
    state: Path
    memory_bytes: int = 8_589_934_592
    idle_s: float = 60.0
    poll_s: float = 0.25
    superlink: str = ""
    stay: bool = False
    unsigned_model: str = ""
    unsigned_bundle_digest: str = ""


class RoundHost:
    """One worker at a time, and the socket that is its only line."""

    def __init__(
        self,
        link: FleetLink,
        authority: RoundAuthority,
        settings: WorkerSettings,
        clock: Clock | None = None,
        needs_machine: Callable[[], bool] | None = None,
    ) -> None:
        """Args: needs_machine: whether training shall pause for now; None = it never does. Asked twice a second."""
        self._link = link
        self._authority = authority
        self._settings = settings
        self._clock = clock or SystemClock()
        self._needs_machine = needs_machine
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._server: SocketServer | None = None
        self._folder: Path | None = None
        self._restarts = 0
        self.isolation: Mapping[str, object] = {}

    @property
    def worker_pid(self) -> int:
        """Process id of the running worker; 0 if there is none."""
        with self._lock:
            return 0 if self._process is None else self._process.pid

    def consider(self, envelope: Envelope) -> RoundAnswer:
        """Judge an offer from a check-in; start the worker if it is taken. Idempotent per offer."""
        judged = self._authority.consider(envelope)
        if self._authority.needs_work(judged, self._clock.utc_ns()):
            with self._lock:
                if self._process is None:
                    self._restarts = 0
                    self._start()
        return judged.answer

    def handle(self, offers: Sequence[Envelope]) -> None:
        """Judge what a check-in brought; what is no offer at all is logged and left."""
        for envelope in offers:
            try:
                self.consider(envelope)
            except FormatError as error:
                logger.warning("an offer could not be read", extra={"reason": str(error)})

    def start_unsigned(self) -> None:
        """Start a worker that stays, for a customer's own SuperLink; each of its runs still needs the policy's yes."""
        with self._lock:
            if self._process is None:
                self._start()

    def run(self, stop: Stop) -> None:
        """Tend the worker until `stop` is set, then end it: a lifecycle task."""
        try:
            while not stop.wait(TEND_S):
                self.tend()
        finally:
            self.stop()

    def tend(self) -> None:
        """Notice a worker that ended; start it again if it crashed while an offer is open. Let one that runs pause."""
        with self._lock:
            if self._process is None:
                return
            if self._process.poll() is None:
                self._ask_to_pause()
                return
            code = self._process.returncode
            self._clean_up()
            wanted = self._authority.is_open(self._clock.utc_ns()) or self._settings.stay
            if code not in (0, REFUSED_EXIT) and wanted and self._restarts < MAX_RESTARTS:
                self._restarts += 1
                logger.warning("the federated worker crashed and is started again", extra={"exit_code": code})
                self._start()
            else:
                logger.info("the federated worker ended", extra={"exit_code": code})

    def stop(self) -> None:
        """End the worker and its socket."""
        with self._lock:
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._clean_up()

    def _start(self) -> None:
        # a short path of its own: a unix socket's path has at most 107 bytes
        self._folder = Path(tempfile.mkdtemp(prefix="holdfast-"))
        socket_path = self._folder / "agent.sock"
        self._server = SocketServer(socket_path, self._answer)
        self._server.start()
        configuration = {
            "socket": str(socket_path),
            "pause_flag": str(self._folder / PAUSE_NAME),
            "node_key": str(self._settings.node_key),
            "remembered": str(self._settings.state / f"flower-node{self._settings.superlink}"),
            "memory_bytes": self._settings.memory_bytes,
            "idle_s": self._settings.idle_s,
            "poll_s": self._settings.poll_s,
            "stay": self._settings.stay,
        }
        environment = {
            name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV", "PYTHONPATH") if name in os.environ
        } | {"FLWR_HOME": str(self._folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        with open_log(self._settings.state / "worker.log") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.learn.worker"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._server.allow(self._process.pid)
        self._process.stdin.write(json.dumps(configuration).encode())
        self._process.stdin.close()

    def _ask_to_pause(self) -> None:
        if self._needs_machine is None or self._folder is None:
            return
        flag, wanted = PauseFlag(self._folder / PAUSE_NAME), self._needs_machine()
        if flag.is_up() != wanted:
            logger.info("training pauses for serving" if wanted else "training goes on")
            flag.show(wanted=wanted)

    def _clean_up(self) -> None:
        if self._server is not None:
            self._server.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process, self._server, self._folder = None, None, None

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            if path.startswith("/fleet/"):
                return self._carry(path.removeprefix("/fleet/"), headers, body)
            if path == "/authorise":
                return _json(self._authorise(body))
            if path == "/sign":
                return self._sign(body)
            if path == "/isolation":
                self.isolation = _fields(body)
                return _json({})
        except RoundError as error:
            logger.warning("the worker was refused", extra={"reason": str(error)})
            return _json({"code": error.code}, 403)
        except HoldfastError as error:
            return _json({"code": error.code}, 400)
        return _json({"code": "unknown-path"}, 404)

    def _carry(self, call: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if call not in FLEET_PATHS:
            return _json({"code": "unknown-path"}, 404)
        kept = {name: value for name, value in headers.items() if name.startswith(("flwr-", "content-type", "accept"))}
        try:
            answer = self._link.fleet_call(FleetCallRequest(self._settings.superlink, call, kept, body))
        except LinkError:
            return Answer(503, {}, b"")
        return Answer(answer.status, answer.headers, answer.body)

    def _authorise(self, body: bytes) -> dict[str, object]:
        if body.startswith(b"{"):
            judged = self._authority.consider_unsigned(self._unsigned_offer(_fields(body)))
        else:
            judged = self._authority.consider(from_bytes(Envelope, body, max_bytes=MAX_STATEMENT_BYTES))
        if judged.ground is None:
            raise RoundError(judged.answer.reason_code)
        if self._clock.utc_ns() >= judged.offer.deadline_utc_ns:
            raise RoundError("the offer's deadline has passed")
        if self._authority.has_signed(judged):  # a coordinator that was killed orders again: no work is done twice
            raise RoundError("the offer was answered already")
        return self._terms(judged)

    def _terms(self, judged: Authorised) -> dict[str, object]:
        offer, ground = judged.offer, judged.ground
        assert ground is not None
        left_s = (offer.deadline_utc_ns - self._clock.utc_ns()) / 1e9
        return {
            "offer_sha256": judged.offer_sha256.hex(),
            "run_id": offer.run_id,
            "round": offer.round,
            "handler": offer.handler,
            "weights_sha256": offer.weights_sha256.hex(),
            "weights_size_bytes": offer.weights_size_bytes,
            "epochs": offer.epochs,
            "batch": offer.batch,
            "learning_rate": offer.learning_rate,
            "seed": offer.seed,
            "max_samples": offer.max_samples,
            "codec": offer.codec,
            "clip_norm": offer.privacy.clip_norm,
            "proximal_mu": offer.proximal_mu,
            "gradient_clip": offer.gradient_clip,
            "bundle": str(ground.bundle),
            "data": str(ground.data),
            "hold_out": ground.hold_out,
            "left_s": left_s,
            "idle_s": left_s + IDLE_MARGIN_S,
        }

    def _sign(self, body: bytes) -> Answer:
        statement = statement_from_fields(_fields(body), self._authority.device_id)
        return Answer(200, {"content-type": "application/octet-stream"}, to_bytes(self._authority.sign(statement)))

    def _unsigned_offer(self, fields: Mapping[str, object]) -> RoundOffer:
        """What an unsigned message asks for, in the form that the policy judges. Raises: FormatError."""
        try:
            now = self._clock.utc_ns()
            return RoundOffer(
                run_id=f"unsigned-{int(str(fields['run_id']))}",
                round=1, rounds=1,
                purpose=UNSIGNED_PURPOSE, handler=str(fields["handler"])[:32],
                model=self._settings.unsigned_model, base_bundle_digest=self._settings.unsigned_bundle_digest,
                weights_sha256=bytes.fromhex(str(fields["weights_sha256"])),
                weights_size_bytes=int(str(fields["weights_size_bytes"])),
                epochs=int(str(fields["epochs"])), batch=int(str(fields["batch"])),
                learning_rate=float(str(fields["learning_rate"])), seed=0, max_samples=2**31, codec="float32",
                privacy=PrivacyTerms(), issued_utc_ns=now, deadline_utc_ns=now + round(UNSIGNED_DEADLINE_S * 1e9),
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise FormatError("an unsigned run's request lacks a field or has one of another type") from error


def open_log(path: Path) -> BinaryIO:
    """The worker's log for appending, so that a restart does not wipe out why; begun anew when it is large."""
    large = path.exists() and path.stat().st_size > MAX_LOG_BYTES
    return path.open("wb" if large else "ab")


def _fields(body: bytes) -> dict[str, object]:
    if len(body) > MAX_STATEMENT_BYTES:
        raise FormatError("request too large")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FormatError("request is not JSON") from error
    if not isinstance(fields, dict):
        raise FormatError("request is not a JSON object")
    return fields


def _json(fields: Mapping[str, object], status: int = 200) -> Answer:
    return Answer(status, {"content-type": "application/json"}, json.dumps(fields).encode())
