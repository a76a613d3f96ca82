"""Installing: a swap fails no request, a bad model never stays, and every outcome is told with its reason."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import bundles
from tests.fakes.bundles import BlobServer
from tests.fakes.clock import FakeClock

from holdfast.bundle.manifest import Runtime, Tensor
from holdfast.bundle.verify import read_bundle
from holdfast.errors import HoldfastError, LinkError, ModelError, TrustError, UnknownModelError
from holdfast.inference.graph_cache import GraphCache
from holdfast.inference.pool import ModelPool
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.models.install import Installer, InstallSettings, Surroundings
from holdfast.models.load import check_runtime
from holdfast.models.slots import MAX_STARTS, MAX_TRIES, VERIFIED
from holdfast.models.store import ModelStore
from holdfast.wire.messages import FetchRequest, FetchResponse, ModelEvent

KEYS = bundles.make_keys()
FIRST = bundles.author_bundle(KEYS)
CANDIDATE = bundles.candidate_bundle(KEYS, FIRST, 0.5)
ONES = np.ones((1, 4), dtype=np.float32)


class Device:
    """A device's rooms around one state folder; `restart` is a new process on the same folder."""

    def __init__(self, folder: Path, server: Callable[[FetchRequest], FetchResponse]) -> None:
        self.folder, self.server, self.clock = folder, server, FakeClock()
        self.events: list[ModelEvent] = []
        self.restart()

    def restart(self) -> None:
        self.pool = ModelPool()
        self.store = ModelStore(self.folder)
        surroundings = Surroundings(self.server, self.events.append, self.clock)
        trust = bundles.trust_of(KEYS)
        self.installer = Installer(self.store, self.pool, trust, surroundings, InstallSettings(confirm_after_s=10))
        self.installer.restore()

    def told(self) -> list[str]:
        return [event.event for event in self.events]

    def version(self) -> str:
        return self.pool.get("scale").version

    def answer(self) -> list[float]:
        answer = self.pool.predict_batch([TensorRequest("scale", "", "1", {"x": ONES})])[0]
        assert isinstance(answer, TensorResponse)
        return [float(value) for value in answer.outputs["y"].ravel()]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "models", BlobServer(FIRST, CANDIDATE))


def test_assigned_bundle_is_served_and_told(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])

    assert device.told() == ["staged", "activated"]
    assert device.answer() == [1, 2, 3, 4]
    assert device.installer.active() == {"scale": read_bundle(FIRST).digest}
    assert device.installer.number() == 1


def test_candidate_replaces_the_first_and_is_confirmed(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])
    device.installer.confirm_due()
    assert "confirmed" not in device.told()

    device.clock.advance(10)
    device.installer.confirm_due()
    device.installer.confirm_due()

    assert device.answer() == [1.5, 2.5, 3.5, 4.5]
    assert device.told() == ["staged", "activated", "staged", "activated", "confirmed"]


def test_answers_of_both_versions_are_told_under_their_own_bundle(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])
    device.installer.handle([bundles.delivery(KEYS, CANDIDATE, 2)])

    first, candidate = (read_bundle(each) for each in (FIRST, CANDIDATE))

    assert device.installer.digest_of("scale", first.manifest.version) == first.digest
    assert device.installer.digest_of("scale", candidate.manifest.version) == candidate.digest
    assert device.installer.digest_of("scale", "never served") == ""


def test_candidate_on_a_bare_device_brings_its_ancestor_along(device: Device) -> None:
    device.installer.install(bundles.delivery(KEYS, CANDIDATE, 1))
    device.restart()

    assert device.version() == "2"
    assert device.store.has(read_bundle(FIRST).blob_sha256)


def test_same_delivery_again_is_passed_over(device: Device) -> None:
    delivery = bundles.delivery(KEYS, FIRST, 1)
    device.installer.handle([delivery])
    device.installer.handle([delivery, delivery])

    assert device.told() == ["staged", "activated"]
    with pytest.raises(TrustError, match="not newer than 1"):
        device.installer.install(delivery)


def test_restart_serves_the_current_model_again(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])

    device.restart()

    assert device.version() == "2"
    assert device.installer.number() == 2


def test_model_without_approval_is_not_even_fetched(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1, approvals=())])

    assert device.told() == ["refused"]
    assert "no approval by a trusted key" in device.events[0].reason
    assert isinstance(device.server, BlobServer)
    assert device.server.requests == []


def test_assignment_for_another_device_is_told_once_and_its_number_not_believed(device: Device) -> None:
    foreign = bundles.delivery(KEYS, FIRST, 2**40, device_id="device-2")
    device.installer.handle([foreign])
    device.installer.handle([foreign])

    assert device.told() == ["refused"]
    assert device.installer.number() == 0


def test_candidate_beyond_its_envelope_leaves_the_first_in_service(device: Device) -> None:
    wild = bundles.candidate_bundle(KEYS, FIRST, 7.0)
    device.server = BlobServer(FIRST, wild)
    device.restart()

    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, wild, 2)])

    assert device.told() == ["staged", "activated", "refused"]
    assert "at most 2 is allowed" in device.events[-1].reason
    assert device.version() == "1"
    assert not device.store.has(read_bundle(wild).blob_sha256)


def test_model_that_fails_its_golden_outputs_leaves_the_first_in_service(tmp_path: Path) -> None:
    lying = bundles.author_bundle(KEYS, version="2", golden_weight=bundles.WEIGHT + 1)
    device = Device(tmp_path / "models", BlobServer(FIRST, lying))

    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, lying, 2)])

    assert device.told() == ["staged", "activated", "staged", "trial_failed"]
    assert "wrong-golden-outputs" in device.events[-1].reason
    assert device.answer() == [1, 2, 3, 4]
    assert device.installer.number() == 2


def test_bundle_damaged_on_the_way_is_refused(device: Device) -> None:
    whole = device.server

    def flips_a_bit(request: FetchRequest) -> FetchResponse:
        response = whole(request)
        return FetchResponse(response.total_bytes, bytes([response.data[0] ^ 1]) + response.data[1:])

    device.server = flips_a_bit
    device.restart()
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])

    assert device.told() == ["refused"]
    assert "another hash" in device.events[0].reason
    assert device.installer.active() == {}


def test_broken_line_is_no_verdict_and_the_same_assignment_goes_on(device: Device) -> None:
    whole = device.server

    def breaks(request: FetchRequest) -> FetchResponse:
        if request.offset:
            raise LinkError("gone")
        return whole(request)

    device.server = breaks
    device.restart()
    delivery = bundles.delivery(KEYS, FIRST, 1)
    with pytest.raises(LinkError):
        device.installer.handle([delivery, bundles.delivery(KEYS, CANDIDATE, 2)])
    assert (device.told(), device.installer.number()) == ([], 0)
    device.server = whole
    device.restart()
    device.installer.handle([delivery])

    assert device.told() == ["staged", "activated"]


def test_crash_loop_brings_the_previous_model_back(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])

    for _ in range(MAX_STARTS):
        device.restart()
        assert device.version() == "2"
    device.restart()

    assert device.version() == "1"
    assert device.events[-1].event == "rolled_back"
    assert device.events[-1].bundle_digest == read_bundle(CANDIDATE).digest


def test_crash_loop_long_after_confirmation_brings_the_previous_model_back(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])
    device.clock.advance(10)
    device.installer.confirm_due()

    for _ in range(MAX_STARTS + 1):
        device.restart()

    assert device.version() == "1"


def test_confirmed_model_without_a_previous_one_survives_any_number_of_starts(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])
    device.clock.advance(10)
    device.installer.confirm_due()

    for _ in range(3 * MAX_STARTS):
        device.restart()

    assert device.version() == "1"


def test_first_model_that_never_proves_itself_is_given_up(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])

    for _ in range(MAX_STARTS + 1):
        device.restart()

    with pytest.raises(UnknownModelError):
        device.pool.get("scale")


def test_damage_on_disk_brings_the_previous_model_back(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])
    path = device.folder / "sha256" / read_bundle(CANDIDATE).blob_sha256
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    device.restart()

    assert device.version() == "1"
    assert "changed on disk" in device.events[-1].reason


def test_damaged_slots_of_one_model_leave_the_others_in_service(device: Device) -> None:
    other = bundles.author_bundle(KEYS, name="other")
    device.server = BlobServer(FIRST, other)
    device.restart()
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, other, 2)])
    (device.folder / "slots" / "other.json").write_bytes(b"{")

    device.restart()

    assert set(device.installer.active()) == {"scale"}
    assert (device.events[-1].model, device.events[-1].event) == ("other", "refused")
    device.installer.handle([bundles.delivery(KEYS, other, 3)])
    assert set(device.installer.active()) == {"scale", "other"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": (Tensor("z", "float32", (None, 4)),)}, "its manifest promises z float32"),
        ({"outputs": (Tensor("y", "float32", (None, 7)),)}, "its manifest promises y float32"),
        ({"runtime": Runtime("0.1", "1.2", 17, 8)}, "needs onnxruntime >= 0.1, < 1.2"),
    ],
)
def test_model_that_is_not_what_its_manifest_promises_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    files = bundles.bundle_files()
    manifest = dataclasses.replace(bundles.manifest_of(files, version="2"), **changes)
    wrong = bundles.signed_bundle(manifest, files, KEYS.author)
    device = Device(tmp_path / "models", BlobServer(FIRST, wrong))

    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, wrong, 2)])

    assert device.told()[2:] == ["staged", "refused"]
    assert reason in device.events[-1].reason
    assert device.version() == "1"


def test_model_that_stops_answering_before_it_is_confirmed_is_rolled_back(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1), bundles.delivery(KEYS, CANDIDATE, 2)])
    device.pool.remove("scale")  # whatever makes it stop

    device.clock.advance(10)
    device.installer.confirm_due()

    assert device.version() == "1"
    assert device.told()[-1] == "rolled_back"


def test_trial_that_takes_the_machine_down_is_not_begun_for_ever(device: Device) -> None:
    delivery = bundles.delivery(KEYS, FIRST, 1)
    device.installer._store.move = _dies_at_verified(device.store)  # type: ignore[method-assign]  # the power goes there
    for _ in range(MAX_TRIES):
        with pytest.raises(_PowerCut):
            device.installer.install(delivery)
    device.restart()

    device.installer.handle([delivery])

    assert device.told()[-1] == "refused"
    assert "brings this machine down" in device.events[-1].reason


def test_swap_under_load_fails_no_request(device: Device) -> None:
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])
    answers: list[TensorResponse | HoldfastError] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            requests = [TensorRequest("scale", "", str(number), {"x": ONES}) for number in range(8)]
            answers.extend(device.pool.predict_batch(requests))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for thread in clients:
        thread.start()
    try:
        for number in range(2, 5):
            bundle = CANDIDATE if number % 2 == 0 else FIRST
            device.installer.handle([bundles.delivery(KEYS, bundle, number)])
    finally:
        over.set()
        for thread in clients:
            thread.join()

    expected = {"1": [1.0, 2.0, 3.0, 4.0], "2": [1.5, 2.5, 3.5, 4.5]}
    assert not [answer for answer in answers if isinstance(answer, HoldfastError)]
    good = [answer for answer in answers if isinstance(answer, TensorResponse)]
    assert {answer.version for answer in good} == {"1", "2"}
    assert all(answer.outputs["y"].ravel().tolist() == expected[answer.version] for answer in good)


@pytest.mark.parametrize(
    ("version", "fits"), [("1.30.9", False), ("1.31.0", True), ("1.33.2", True), ("1.34.0", False)]
)
def test_runtime_bounds(version: str, fits: bool) -> None:
    runtime = Runtime("1.31", "1.34", 17, 8)

    if fits:
        check_runtime(runtime, version)
    else:
        with pytest.raises(ModelError, match="needs onnxruntime"):
            check_runtime(runtime, version)


class _PowerCut(BaseException):
    pass


def _dies_at_verified(store: ModelStore) -> Callable[..., object]:
    whole = store.move

    def move(name: str, event: str, slot: object = None) -> object:
        result = whole(name, event, slot)  # type: ignore[arg-type]  # passed on as it came
        if event == VERIFIED:
            raise _PowerCut
        return result

    return move


def test_memory_of_the_model_before_is_given_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])
    before = weakref.ref(device.pool.get("scale").session)
    monkeypatch.setattr("holdfast.models.install.give_back", lambda: left.append(before() is not None))

    device.installer.handle([bundles.delivery(KEYS, CANDIDATE, 2)])

    assert left == [False], "called once, when nothing holds the old model any more"


def test_graphs_are_kept_for_the_next_start_if_asked(tmp_path: Path) -> None:
    device = Device(tmp_path / "models", BlobServer(FIRST))
    cache = GraphCache(tmp_path / "graphs")
    device.installer._settings = InstallSettings(cache=cache)

    device.installer.handle([bundles.delivery(KEYS, FIRST, 1)])

    assert device.answer() == [1, 2, 3, 4]
    assert len(list((tmp_path / "graphs").iterdir())) == 1
