"""How the Fleet client takes what a SuperLink may answer, without a SuperLink."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from holdfast.errors import NodeRefusedError, RoundError, RunEndedError
from holdfast.learn.transport import PostAnswer
from holdfast.trust.keystore import generate_flower_node_key

# flwr's own imports warn; the imports are inside, so that the mark covers them
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class FakeSuperLink:
    """Answers each call by name from a list; the last answer stays."""

    def __init__(self, **answers: list[PostAnswer | Exception]) -> None:
        self.answers = {name.replace("_", "-"): list(each) for name, each in answers.items()}
        self.calls: list[str] = []
        self.stamps: list[str] = []

    def __call__(self, path: str, headers: Mapping[str, str], body: bytes) -> PostAnswer:
        self.calls.append(path)
        self.stamps.append(headers["flwr-timestamp"])
        waiting = self.answers[path]
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def answer(status: int = 200, body: bytes = b"", **headers: str) -> PostAnswer:
    return PostAnswer(status, headers, body)


def activated() -> PostAnswer:
    from flwr.proto.fleet_pb2 import ActivateNodeResponse

    return answer(body=ActivateNodeResponse(node_id=77).SerializeToString())


@pytest.fixture
def fleet(tmp_path: Path):
    from holdfast.learn.flower_fleet import FlowerFleet

    private, _ = generate_flower_node_key()
    return lambda superlink, clock=None: FlowerFleet(superlink, private, tmp_path / "node", clock or FakeClock())


def test_a_node_comes_online_and_remembers_its_id(fleet, tmp_path: Path):
    fleet(FakeSuperLink(activate_node=[activated()])).activate()

    assert (tmp_path / "node").read_text() == "77"


def test_a_node_that_still_counts_as_online_takes_itself_offline_first(fleet, tmp_path: Path):
    (tmp_path / "node").write_text("77")
    superlink = FakeSuperLink(activate_node=[answer(412), activated()], deactivate_node=[answer()])

    fleet(superlink).activate()

    assert superlink.calls == ["activate-node", "deactivate-node", "activate-node"]


def test_a_revoked_key_is_reported_and_not_retried(fleet):
    superlink = FakeSuperLink(activate_node=[answer(401)])

    with pytest.raises(NodeRefusedError):
        fleet(superlink).activate()
    assert superlink.calls == ["activate-node"]


def test_a_clock_that_is_off_is_corrected_by_the_servers_date(fleet):
    clock = FakeClock()
    server = datetime.fromtimestamp(clock.utc_ns() / 1e9 - 600, tz=UTC)
    superlink = FakeSuperLink(activate_node=[answer(401, date=format_datetime(server, usegmt=True)), activated()])

    fleet(superlink, clock).activate()

    late, right = (datetime.fromisoformat(stamp) for stamp in superlink.stamps)
    assert (late - right).total_seconds() == pytest.approx(600, abs=1)


def test_a_run_that_is_over_says_so(fleet):
    client = fleet(FakeSuperLink(activate_node=[activated()], pull_messages=[answer(403)]))
    client.activate()

    with pytest.raises(RunEndedError):
        client.next_task()


@pytest.mark.parametrize("trouble", [OSError("cut"), answer(503), answer(429), answer(502)])
def test_trouble_that_passes_is_waited_for(fleet, trouble):
    superlink = FakeSuperLink(activate_node=[trouble, trouble, activated()])

    fleet(superlink).activate()

    assert len(superlink.calls) == 3


def test_trouble_that_stays_ends_after_a_bound(fleet):
    clock = FakeClock()
    before_s = clock.monotonic_s()

    with pytest.raises(RoundError, match="could not be reached"):
        fleet(FakeSuperLink(activate_node=[OSError("cut")]), clock).activate()
    assert 60 < clock.monotonic_s() - before_s < 300


def test_an_answer_that_is_not_the_expected_message_is_refused(fleet):
    with pytest.raises(RoundError, match="not the expected message"):
        fleet(FakeSuperLink(activate_node=[answer(body=b"\xff\xff\xff")])).activate()


def test_an_empty_mailbox_is_none(fleet):
    client = fleet(FakeSuperLink(activate_node=[activated()], pull_messages=[answer()]))
    client.activate()

    assert client.next_task() is None


def test_a_goodbye_over_a_cut_line_does_no_harm(fleet):
    client = fleet(FakeSuperLink(activate_node=[activated()], deactivate_node=[OSError("cut")]))
    client.activate()

    client.deactivate()


def test_a_key_that_is_no_node_key_is_refused(tmp_path: Path):
    from holdfast.learn.flower_fleet import FlowerFleet

    with pytest.raises(RoundError, match="OpenSSH"):
        FlowerFleet(FakeSuperLink(), b"nonsense", tmp_path / "node", FakeClock())


def test_a_message_whose_parts_never_come_is_left_for_the_next_within_seconds(fleet):
    from flwr.proto import fleet_pb2, message_pb2, recorddict_pb2

    metadata = message_pb2.Metadata(run_id=5, message_id="m" * 64, message_type="train", ttl=60.0, created_at=1.0)
    half = fleet_pb2.PullMessagesResponse(
        messages_list=[message_pb2.Message(metadata=metadata, content=recorddict_pb2.RecordDict())],
        message_object_trees=[message_pb2.ObjectTree(object_id="m" * 64)],
    )
    missing = message_pb2.PullObjectResponse(object_found=True, object_available=False)
    superlink = FakeSuperLink(
        activate_node=[activated()],
        pull_messages=[answer(body=half.SerializeToString()), answer()],
        pull_object=[answer(body=missing.SerializeToString())],
    )
    clock = FakeClock()
    node = fleet(superlink, clock)
    node.activate()
    began_s = clock.monotonic_s()

    with pytest.raises(RoundError, match="never arrived"):
        node.next_task()

    assert clock.monotonic_s() - began_s < 30  # the sender may have been killed; its successor orders again
    assert node.next_task() is None
