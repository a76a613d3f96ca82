"""Flower on the coordinator's side: the only file here that touches flwr's private modules.

The coordinator owns its runs: it starts each with a stub bundle that holds no code, acquires the task itself (nobody
else knows the secret), and plays the ServerApp through the public Grid calls. `start` must run under a lock: flwr
hands out the oldest pending task, so the returned run id is checked and an orphan of a crashed starter is closed.

Why private modules: flwr has no public way to own a Grid without executing the app's code.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TypeVar

import httpx
import numpy as np
from flwr.app.message import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto import control_pb2, fab_pb2, runtime_pb2
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from holdfast.clock import Clock
from holdfast.errors import RoundError
from holdfast_federation.rounds.grid import Order, Reply, Ticket
from holdfast_federation.rounds.node_keys import node_key_pem
from holdfast_federation.rounds.superlink import SuperLinkAddress

logger = logging.getLogger(__name__)

SUPPORTED_VERSION = "1.41."
TASK_TYPE = "flwr-serverapp"
HEARTBEAT_S = 8.0  # a claimed task is given up after 30 s without one
RETRY_TOTAL_S = 60.0  # the SuperLink is back within seconds after a crash
RETRY_PAUSE_S = 0.5
MAX_ORPHANS = 16
GONE = "gone"  # the node went offline with the message
UNREADABLE = "unreadable"
STUB = """[project]
name = "holdfast-round"
version = "1.0.0"
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "holdfast"
[tool.flwr.app.components]
serverapp = "holdfast_round:none"
clientapp = "holdfast_round:none"
[tool.flwr.app.config]
"""

T = TypeVar("T")


def register_node(address: SuperLinkAddress, public_key_openssh: str, name: str) -> int:
    """Let a device's node key in. Returns its node id; the same one if it is registered already.

    Raises: RoundError: not such a key, or the SuperLink refused.
    """
    pem = node_key_pem(public_key_openssh).encode("ascii")
    client = _client(ControlHttpClient, address)
    try:
        listed = client.ListNodes(control_pb2.ListNodesRequest()).nodes_info
        for node in listed:
            if node.public_key == pem and node.status != "unregistered":
                return int(node.node_id)
        return int(client.RegisterNode(control_pb2.RegisterNodeRequest(public_key=pem, name=name[:64])).node_id)
    except httpx.HTTPError as error:
        raise RoundError(f"the SuperLink did not register the node of {name}: {type(error).__name__}") from error
    finally:
        client.close()


def unregister_node(address: SuperLinkAddress, node_id: int) -> None:
    """Shut a node out; its next call is answered with 401."""
    client = _client(ControlHttpClient, address)
    try:
        client.UnregisterNode(control_pb2.UnregisterNodeRequest(node_id=node_id))
    except httpx.HTTPError as error:
        raise RoundError(f"the SuperLink did not unregister node {node_id}: {type(error).__name__}") from error
    finally:
        client.close()


class FlowerGrid:
    """A `RoundGrid` over one Flower run. One per process: flwr keeps the task's identity in a global."""

    def __init__(self, address: SuperLinkAddress, ticket: Ticket, clock: Clock) -> None:
        if not version("flwr").startswith(SUPPORTED_VERSION):
            raise RoundError(f"flwr {version('flwr')} is installed, expected {SUPPORTED_VERSION}x")
        self._clock = clock
        self._ticket = ticket
        self._grid = HttpGrid(address.authority, False, address.certificate, token=ticket.token)
        self._grid._retry_invoker.max_tries = 1  # ours has a bound in time; flwr's would wait for ever
        self._grid._retry_invoker.should_giveup = _give_up  # flwr's own interrupts the process at a 401
        self._grid.set_run(Run.create_empty(ticket.run_id))
        TaskIdentity.task_id = ticket.task_id
        TaskIdentity.run_id = ticket.run_id
        TaskIdentity.node_id = self._grid.node.node_id
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="flower-task-heartbeat", daemon=True)
        self._heart.start()

    @classmethod
    def start(cls, address: SuperLinkAddress, clock: Clock) -> FlowerGrid:
        """Start a run and take its task. Raises: RoundError: the SuperLink refused, or handed out another task."""
        stub = _stub_bundle()
        fab = fab_pb2.Fab(hash_str=hashlib.sha256(stub).hexdigest(), content=stub)
        control = _client(ControlHttpClient, address)
        try:
            run_id = int(control.StartRun(control_pb2.StartRunRequest(fab=fab)).run_id)
        except httpx.HTTPError as error:
            raise RoundError(f"the SuperLink did not start a run: {type(error).__name__}") from error
        finally:
            control.close()
        return cls(address, _acquire(address, run_id), clock)

    @property
    def ticket(self) -> Ticket:
        return self._ticket

    @property
    def is_lost(self) -> bool:
        """The SuperLink gave this run up (no heartbeat for too long); a new one must be started."""
        return self._lost.is_set()

    def online(self) -> Mapping[str, int]:
        nodes = self._retry(lambda: list(self._grid.get_nodes()))
        return {node.public_key.decode("ascii"): int(node.node_id) for node in nodes if node.status == "online"}

    def push(self, orders: Sequence[Order]) -> list[str]:
        ids: list[str] = []
        for order in orders:
            weights = np.frombuffer(order.weights, dtype="<f4")
            content = RecordDict(
                {
                    "arrays": ArrayRecord({"weights": Array(weights)}),
                    "config": ConfigRecord({"offer": order.offer}),
                }
            )

            def send(content: RecordDict = content, order: Order = order) -> list[str]:
                message = Message(content, order.node_id, order.handler, ttl=order.ttl_s)
                return [message_id or "" for message_id in self._grid.push_messages([message])]

            ids.extend(self._retry(send) or [""])
        return ids

    def pull(self, message_ids: Sequence[str]) -> list[Reply]:
        if not message_ids:
            return []
        return [_reply(message) for message in self._retry(lambda: list(self._grid.pull_messages(list(message_ids))))]

    def finish(self, *, completed: bool) -> None:
        self._ended.set()
        status = "completed" if completed else "failed"
        details = "" if completed else "the run failed; the coordinator's records say why"
        request = runtime_pb2.PushTaskOutputRequest(sub_status=status, details=details)
        try:
            self._grid._runtime_client.PushTaskOutput(request)
        except httpx.HTTPError as error:
            logger.warning("could not close the Flower run", extra={"error": type(error).__name__})
        self._grid.close()

    def _beat(self) -> None:
        self._beat_once()  # at once: a worker that was away may have little of its time left
        while not self._clock.wait(self._ended, HEARTBEAT_S):
            self._beat_once()

    def _beat_once(self) -> None:
        try:
            answer = self._grid._runtime_client.SendTaskHeartbeat(runtime_pb2.SendTaskHeartbeatRequest())
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (401, 403):
                self._lost.set()
        except httpx.HTTPError:
            return  # the SuperLink is being restarted
        else:
            if not answer.success:
                self._lost.set()

    def _retry(self, call: Callable[[], T]) -> T:
        deadline_s = self._clock.monotonic_s() + RETRY_TOTAL_S
        while True:
            try:
                return call()
            except httpx.HTTPStatusError as error:
                if error.response.status_code in (401, 403):
                    self._lost.set()
                    raise RoundError("the SuperLink gave this run up") from error
                if error.response.status_code < 500 or self._clock.monotonic_s() > deadline_s:
                    raise RoundError(f"the SuperLink answered {error.response.status_code}") from error
            except httpx.TransportError as error:
                if self._clock.monotonic_s() > deadline_s:
                    raise RoundError(f"the SuperLink did not answer for {RETRY_TOTAL_S:.0f} s") from error
            self._clock.wait(self._ended, RETRY_PAUSE_S)


def _give_up(error: Exception) -> bool:
    """For flwr's retries: never try again, raise what came."""
    del error
    return True


def _acquire(address: SuperLinkAddress, run_id: int) -> Ticket:
    """Take the task of `run_id`; tasks of starters that crashed in between are closed on the way."""
    interceptor = SuperExecAuthHttpInterceptor(
        master_secret=address.secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    client = _client(RuntimeHttpClient, address, interceptor)
    try:
        for _ in range(MAX_ORPHANS):
            answer = client.AcquireTask(runtime_pb2.AcquireTaskRequest(supported_task_types=[TASK_TYPE]))
            if not answer.token:
                break
            token_client = _client(RuntimeHttpClient, address, RuntimeTokenHttpInterceptor(token=answer.token))
            given = token_client.PullTaskInput(runtime_pb2.PullTaskInputRequest())
            if given.run.run_id == run_id:
                token_client.close()
                return Ticket(run_id, int(given.task_id), answer.token)
            logger.warning("closed a Flower run whose starter crashed", extra={"flower_run_id": given.run.run_id})
            token_client.PushTaskOutput(runtime_pb2.PushTaskOutputRequest(sub_status="failed", details="abandoned"))
            token_client.close()
    except httpx.HTTPError as error:
        raise RoundError(f"the SuperLink did not hand out the run's task: {type(error).__name__}") from error
    finally:
        client.close()
    raise RoundError(f"the SuperLink did not hand out the task of run {run_id}")


C = TypeVar("C", ControlHttpClient, RuntimeHttpClient)


def _client(cls: type[C], address: SuperLinkAddress, *interceptors: object) -> C:
    return cls.from_server_address(address.authority, False, address.certificate, interceptors=list(interceptors))


def _reply(message: Message) -> Reply:
    message_id = message.metadata.reply_to_message_id
    if message.has_error():
        reason = (message.error.reason or "")[:64]
        code = reason if reason.startswith("HF-") else GONE
        return Reply(message_id, b"", b"", code)
    try:
        statement = message.content["config"]["statement"]
        record = message.content.get("arrays")
        update = b"" if record is None else record["update"].numpy().tobytes()
    except (KeyError, TypeError, ValueError):
        return Reply(message_id, b"", b"", UNREADABLE)
    if not isinstance(statement, bytes):
        return Reply(message_id, b"", b"", UNREADABLE)
    return Reply(message_id, update, statement)


def _stub_bundle() -> bytes:
    """A Flower app bundle without any code: what flwr wants to see before it starts a run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), STUB)
    return buffer.getvalue()
