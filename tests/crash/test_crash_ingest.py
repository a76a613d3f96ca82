"""kill -9 of the coordinator while a device reports: nothing acknowledged is lost, no effect happens twice."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path

import grpc
from tests.fakes.coordinator_process import CoordinatorProcess, holdfast
from tests.fakes.raw_device import Chain, RawDevice, window

from holdfast.clock import SystemClock
from holdfast.trust.checkpoint import Checkpoint, verify_checkpoint
from holdfast.trust.envelope import Envelope
from holdfast.trust.keys import PublicKey
from holdfast.trust.merkle import MerkleTree, leaf_hash, verify_consistency
from holdfast.wire.enrolment import JoinToken
from holdfast.wire.messages import Acknowledgement
from holdfast_federation.admin.client import AdminClient
from holdfast_federation.database import Database
from holdfast_federation.ingest.fleet import FleetView
from holdfast_federation.server.build import SCHEMAS

TRUST_DOMAIN = "plant7.example"
KILLS = 4
BATCH = 3  # records a call: a kill may fall between their acknowledgement and the next batch


class Reporter:
    """Sends its journal again and again from what was acknowledged, as the device's outbox does."""

    def __init__(self, device: RawDevice) -> None:
        self.device = device
        self.chain: Chain = device.chain()
        self.journal: list[Envelope] = []
        self.hashes: list[bytes] = []
        self.acknowledged: list[Acknowledgement] = []

    def run_until_broken(self, address: str, calls: int | None = None) -> None:
        """Report until the connection breaks, or for some calls."""
        with self.device.fleet(address) as fleet:
            while calls is None or calls > 0:
                for _ in range(BATCH):
                    self.journal.append(self.chain.next(window([0.001, 0.002])))
                    self.hashes.append(self.chain.head_hash)
                head = self.acknowledged[-1].head_seq if self.acknowledged else 0
                try:
                    answer = fleet.report(*self.journal[head : head + 200])
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]  # it is a Call
                        raise
                    return
                assert answer.refused_code == "", answer.refused_reason
                assert answer.head_hash == self.hashes[answer.head_seq - 1]
                self.acknowledged.append(answer)
                calls = None if calls is None else calls - 1


def checkpoint(text: str, key: PublicKey) -> Checkpoint:
    return verify_checkpoint(text, f"{TRUST_DOMAIN}/ledger", key)


def test_killed_coordinator_loses_nothing_acknowledged_and_repeats_no_effect(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng, clock = random.Random(seed), SystemClock()
    state = tmp_path / "state"
    assert holdfast("coordinator", "init", str(state), "--trust-domain", TRUST_DOMAIN).returncode == 0
    process = CoordinatorProcess(state)
    try:
        addresses = process.wait_ready()
        token = JoinToken.from_text(str(AdminClient(state).post("/v1/tokens", {"site": "north"})["token"]))
        device = RawDevice()
        response = device.enrol(token, (state / "authority" / "ca.pem").read_text(), TRUST_DOMAIN)
        key = PublicKey.from_spki_der(response.ledger_key_spki)
        reporter = Reporter(device)

        for _ in range(KILLS):
            thread = threading.Thread(target=reporter.run_until_broken, args=(addresses["device"],))
            before = len(reporter.acknowledged)
            thread.start()
            wanted = before + rng.randrange(3, 30)
            deadline_s = clock.monotonic_s() + 60
            while len(reporter.acknowledged) < wanted and clock.monotonic_s() < deadline_s:
                clock.wait(threading.Event(), 0.001)
            process.kill()
            thread.join(60)
            assert not thread.is_alive()
            assert len(reporter.acknowledged) > before
            process = CoordinatorProcess(state)
            addresses = process.wait_ready()

        with device.fleet(addresses["device"]) as fleet:
            head = fleet.report().head_seq
        assert head >= reporter.acknowledged[-1].head_seq
        reporter.run_until_broken(addresses["device"], calls=(len(reporter.journal) - head) // 200 + 1)
        assert process.stop() == 0
    finally:
        if process.process.poll() is None:
            process.kill()

    last = reporter.acknowledged[-1].head_seq
    assert last == len(reporter.journal)
    cx = sqlite3.connect(state / "holdfast.db")
    try:
        sequence = [row[0] for row in cx.execute("SELECT seq FROM records ORDER BY seq")]
        forks = cx.execute("SELECT count(*) FROM forks").fetchone()[0]
        leaves = [leaf_hash(row[0]) for row in cx.execute("SELECT entry FROM ledger_entries ORDER BY position")]
    finally:
        cx.close()
    assert sequence == list(range(1, last + 1))
    assert forks == 0
    assert len(leaves) == last + 1  # the enrolment and every record once

    tree = MerkleTree(leaves)
    for answer in reporter.acknowledged:
        seen = checkpoint(answer.checkpoint, key)
        proof = tree.consistency_proof(seen.size, tree.size)
        verify_consistency(seen.size, tree.size, proof, seen.root, tree.root())

    database = Database(state / "holdfast.db", SCHEMAS)
    [figures] = FleetView(database).models()
    assert (figures.windows, figures.requests) == (last, 2 * last)
    assert FleetView(database).traffic() == {device.device_id: {"report": 100 * last}}
    database.close()
