"""Flower's Fleet API as a plain client: the only file of the device that touches flwr's private modules.

It posts flwr's own protobuf messages over an injected line (`Post`) and uses none of flwr's retry, heartbeat, signal
or exit machinery: on a revoked key those end the process they run in. Nothing that the server names is imported or
executed, and the code bundle of a run (FAB) is never fetched: there is no request for it here.

Answers: 401 = the node key is unknown or revoked (or the clock is off: corrected once by the server's `date`),
403 = the run is over, 412 = this node still counts as online, so it is taken offline and tried again, 429, 5xx and a
broken line = later.

Why private modules: flwr offers no public client of the Fleet API; the protobuf surface is small and a contract test
runs it against the pinned version.
"""

from __future__ import annotations

import base64
import logging
import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app.error import Error
from flwr.app.message import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    remove_content_from_message,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from holdfast.clock import Clock
from holdfast.errors import NodeRefusedError, RoundError, RunEndedError
from holdfast.learn.transport import Post, PostAnswer, RoundReply, RoundTask
from holdfast.trust.durable import write_atomic

logger = logging.getLogger(__name__)

SUPPORTED_VERSION = "1.41."  # private modules: another version must pass the contract test first
HEARTBEAT_S = 10  # the shortest that a SuperLink accepts; a dead worker is seen after twice that
RETRY_TOTAL_S = 120.0  # one call: a restart of SuperLink and coordinator takes a few seconds
OBJECT_TOTAL_S = 20.0  # a part comes right behind its message, unless the sender was killed in between: then never
RETRY_FIRST_S = 0.2
RETRY_CAP_S = 5.0
MAX_OBJECTS = 4_096  # of one message; ours has about ten
MAX_MESSAGE_BYTES = 1_073_741_824  # 1 GiB of objects in one message
CLOCK_SLACK_S = 3.0  # the server accepts 5 s ahead; correct before that
ERROR_CODE = 2  # flwr's "the client app raised"; the reason carries our code
HEADERS = {"content-type": "application/protobuf", "accept": "application/protobuf"}

R = TypeVar("R", bound=Proto)


class FlowerFleet:
    """A `RoundTransport` over Flower's Fleet API, as one registered node."""

    def __init__(self, post: Post, node_key: bytes, remembered: Path, clock: Clock) -> None:
        """Args:
        node_key: ECDSA P-384 private key, OpenSSH text.
        remembered: file that keeps the node id, so that a worker that was killed can come back at once.

        Raises: RoundError: another version of flwr, or not such a key.
        """
        if not version("flwr").startswith(SUPPORTED_VERSION):
            raise RoundError(f"flwr {version('flwr')} is installed, expected {SUPPORTED_VERSION}x")
        self._post = post
        self._clock = clock
        self._remembered = remembered
        self._key = _node_key(node_key)
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        self._public = self._key.public_key().public_bytes(encoding, form)
        self._node = node_pb2.Node()
        self._messages: dict[str, Message] = {}
        self._offset_s = 0.0

    def activate(self) -> None:
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        answer = self._send("activate-node", request)
        if answer.status == 412 and self._read_remembered():
            node_id = self._read_remembered()
            self._send("deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=node_id))
            answer = self._send("activate-node", request)
        node_id = _parsed(answer, fleet_pb2.ActivateNodeResponse, "activate-node").node_id
        self._node = node_pb2.Node(node_id=node_id)
        write_atomic(self._remembered, str(node_id).encode())

    def heartbeat(self) -> None:
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        self._call("send-node-heartbeat", request, heartbeat_pb2.SendNodeHeartbeatResponse)

    def next_task(self) -> RoundTask | None:
        pulled = self._call(
            "pull-messages", fleet_pb2.PullMessagesRequest(node=self._node), fleet_pb2.PullMessagesResponse
        )
        if not pulled.messages_list:
            return None
        message_id = pulled.messages_list[0].metadata.message_id
        run_id = message_from_proto(pulled.messages_list[0]).metadata.run_id
        contents = self._pull_objects(run_id, pulled.message_object_trees[0])
        self._call(
            "confirm-message-received",
            message_pb2.ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id),
            message_pb2.ConfirmMessageReceivedResponse,
        )
        message = inflate_object_from_contents(message_id, contents)
        if not isinstance(message, Message) or not message.has_content():
            raise RoundError("a Flower message without content was received")
        message.metadata.__dict__["_message_id"] = message_id
        self._messages = {message_id: message}  # one at a time; a reply needs what it replies to
        return _task(message_id, message)

    def reply(self, task: RoundTask, reply: RoundReply) -> None:
        content = RecordDict()
        if reply.arrays:
            content["arrays"] = ArrayRecord({name: Array(array) for name, array in reply.arrays.items()})
        content["metrics"] = MetricRecord(dict(reply.metrics))
        content["config"] = ConfigRecord(dict(reply.config))
        self._push(Message(content, reply_to=self._messages[task.message_id]))

    def reply_error(self, task: RoundTask, code: str) -> None:
        self._push(Message(Error(code=ERROR_CODE, reason=code), reply_to=self._messages[task.message_id]))

    def is_over(self, run_id: int) -> bool:
        try:
            self._call("get-run", run_pb2.GetRunRequest(node=self._node, run_id=run_id), run_pb2.GetRunResponse)
        except RunEndedError:
            return True
        return False

    def deactivate(self) -> None:
        if self._node.node_id:
            request = fleet_pb2.DeactivateNodeRequest(node_id=self._node.node_id)
            try:
                self._post("deactivate-node", self._headers(), request.SerializeToString())
            except OSError:
                logger.info("could not say goodbye to the SuperLink; it will notice by itself")

    def _pull_objects(self, run_id: int, tree: message_pb2.ObjectTree) -> dict[str, bytes]:
        object_ids = list(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))
        if len(object_ids) > MAX_OBJECTS:
            raise RoundError(f"a Flower message has {len(object_ids)} objects; at most {MAX_OBJECTS} are accepted")
        contents: dict[str, bytes] = {}
        total = 0
        for object_id in object_ids:
            contents[object_id] = self._pull_object(run_id, object_id)
            total += len(contents[object_id])
            if total > MAX_MESSAGE_BYTES:
                raise RoundError(f"a Flower message is larger than {MAX_MESSAGE_BYTES} bytes")
        return contents

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        request = message_pb2.PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
        for wait_s in self._waits(OBJECT_TOTAL_S):
            answer = self._call("pull-object", request, message_pb2.PullObjectResponse)
            if not answer.object_found:
                break
            if answer.object_available:
                return bytes(answer.object_content)
            self._clock.wait(threading.Event(), wait_s)
        raise RoundError("a part of a Flower message never arrived")

    def _push(self, message: Message) -> None:
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = get_all_nested_objects(message)
            tree = get_object_tree(message)
            bare = remove_content_from_message(message) if message.has_content() else message
            pushed = self._call(
                "push-messages",
                fleet_pb2.PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],
                ),
                fleet_pb2.PushMessagesResponse,
            )
            for object_id in pushed.objects_to_push:
                request = message_pb2.PushObjectRequest(
                    node=self._node,
                    run_id=message.metadata.run_id,
                    object_id=object_id,
                    object_content=objects[object_id].deflate(),
                    session_id=pushed.session_id,
                )
                if not self._call("push-object", request, message_pb2.PushObjectResponse).stored:
                    raise RoundError("the SuperLink did not store a part of the reply")

    def _call(self, path: str, request: Proto, response: type[R]) -> R:
        return _parsed(self._send(path, request), response, path)

    def _send(self, path: str, request: Proto) -> PostAnswer:
        """POST with retry; the last answer if it is not one to retry. Raises: RoundError: still down at the end."""
        body = request.SerializeToString(deterministic=True)
        corrected = False
        for wait_s in self._waits():
            try:
                answer = self._post(path, self._headers(), body)
            except OSError:
                self._clock.wait(threading.Event(), wait_s)
                continue
            if answer.status == 401 and not corrected and self._correct_clock(answer.headers):
                corrected = True
                continue
            if answer.status == 429 or answer.status >= 500:
                self._clock.wait(threading.Event(), wait_s)
                continue
            return answer
        raise RoundError(f"the coordinator could not be reached for {RETRY_TOTAL_S:.0f} s; call {path}")

    def _waits(self, total_s: float = RETRY_TOTAL_S) -> list[float]:
        """Pauses between tries: doubling, capped, with jitter, `total_s` together."""
        waits: list[float] = []
        step = RETRY_FIRST_S
        while sum(waits) < total_s:
            waits.append(step * random.uniform(0.8, 1.2))
            step = min(step * 2, RETRY_CAP_S)
        return waits

    def _headers(self) -> dict[str, str]:
        at = datetime.fromtimestamp(self._clock.utc_ns() / 1e9 + self._offset_s, tz=UTC).isoformat()
        signature = self._key.sign(at.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return HEADERS | {
            "flwr-public-key": base64.b64encode(self._public).decode("ascii"),
            "flwr-timestamp": at,
            "flwr-signature": base64.b64encode(signature).decode("ascii"),
        }

    def _correct_clock(self, headers: Mapping[str, str]) -> bool:
        try:
            server_s = parsedate_to_datetime(headers["date"]).timestamp()
        except (KeyError, ValueError):
            return False
        offset_s = server_s - self._clock.utc_ns() / 1e9
        if abs(offset_s - self._offset_s) < CLOCK_SLACK_S:
            return False
        logger.warning("this machine's clock is off; corrected by the server's", extra={"offset_s": round(offset_s)})
        self._offset_s = offset_s
        return True

    def _read_remembered(self) -> int:
        try:
            return int(self._remembered.read_text(encoding="ascii")[:24])
        except (OSError, ValueError):
            return 0


def _node_key(text: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(text, password=None)
    except ValueError as error:
        raise RoundError("the Flower node key is not an OpenSSH private key; enrol the device again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RoundError("the Flower node key is not an elliptic curve key; enrol the device again")
    return key


def _parsed(answer: PostAnswer, response: type[R], path: str) -> R:
    if answer.status == 401:
        raise NodeRefusedError("the SuperLink refused this node key (unknown or revoked), or the clock is far off")
    if answer.status == 403:
        raise RunEndedError("the federated run is over")
    if answer.status != 200:
        raise RoundError(f"the SuperLink answered {answer.status} to {path}, expected 200")
    result = response()
    try:
        result.ParseFromString(answer.body)
    except DecodeError as error:
        raise RoundError(f"the SuperLink's answer to {path} is not the expected message") from error
    return result


def _task(message_id: str, message: Message) -> RoundTask:
    arrays = {
        name: array.numpy() for record in message.content.array_records.values() for name, array in record.items()
    }
    config = {
        name: value
        for record in message.content.config_records.values()
        for name, value in record.items()
        if isinstance(value, (int, float, str, bytes))
    }
    return RoundTask(message_id, message.metadata.run_id, message.metadata.message_type, arrays, config)
