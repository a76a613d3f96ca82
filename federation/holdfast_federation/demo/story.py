"""The demonstration as a story in five chapters; every chapter adds what it found to the `Record`."""

from __future__ import annotations

import random
import secrets
from importlib.resources import files
from pathlib import Path

import numpy as np

from holdfast.evidence.entries import parse_entries
from holdfast.evidence.layout import read_evidence
from holdfast.evidence.scorecard import Scorecard, evaluate, parse_definition
from holdfast.evidence.tally import compute_figures
from holdfast_federation.admin.client import AdminClient
from holdfast_federation.demo.author import train_first_version
from holdfast_federation.demo.data import LABELS, Digits, split_digits
from holdfast_federation.demo.forgery import file_at, flip_a_byte, forge
from holdfast_federation.demo.narrator import Narrator
from holdfast_federation.demo.processes import DemoError, run_holdfast, run_holdfast_json, try_holdfast_json
from holdfast_federation.demo.record import Record, Terms
from holdfast_federation.demo.traffic import Client, accuracy_as_served
from holdfast_federation.demo.world import FOREIGN_PURPOSE, MODEL, PURPOSE, World
from holdfast_federation.governance.scorecard import read_definition, render

MAX_UPDATE_NORM = "40"  # L2 distance that rounds may move the weights; version 1 itself has a norm of about 16
SERVE_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 300.0
REPORT_TIMEOUT_S = 30.0
FINAL = ("done", "failed")


class Story:
    """Tells the five chapters on one world."""

    def __init__(self, world: World, terms: Terms, narrator: Narrator) -> None:
        self._world = world
        self._terms = terms
        self._say = narrator
        self._admin = AdminClient(world.coordinator)
        self._clients: dict[str, Client] = {}
        self._digits: Digits | None = None
        self._scorecard: Scorecard | None = None
        self.record = Record()

    def tell(self) -> Record:
        """All chapters in order. Raises DemoError where the story cannot go on."""
        self._first_model()
        self._reports_and_refusal()
        self._federated_run()
        self._evidence()
        self._attacks()
        return self.record

    def stop_traffic(self) -> None:
        """End the clients; their tallies are final then."""
        for client in self._clients.values():
            client.stop()
        for client in self._clients.values():
            client.join()
        self.record.tallies = {name: client.tally() for name, client in self._clients.items()}

    @property
    def digits(self) -> Digits:
        if self._digits is None:
            self._digits = split_digits(tuple(device.name for device in self._world.devices), self._terms.seed)
        return self._digits

    # 1

    def _first_model(self) -> None:
        world, say, terms = self._world, self._say, self._terms
        say.chapter(1, f"An author's model reaches {len(world.devices)} devices of two hospitals")
        with say.step("keys for the author, the approver and each site; each signs only what is its own"):
            world.make_principals()
        for device in world.devices:
            self.digits.devices[device.name].save(device.data)
        sizes = ", ".join(f"{name} {len(share.labels)}" for name, share in self.digits.devices.items())
        say.fact(
            f"1,797 handwritten digits: author {len(self.digits.author.labels)}, {sizes}, "
            f"nobody {len(self.digits.holdout.labels)} (seed {terms.seed})"
        )
        with say.step("the coordinator starts: its own certificate authority, two listeners, one page"):
            world.start_coordinator()
        with say.step("the author trains version 1 on 100 samples, packs and signs it"):
            bundle, own = self._pack()
        say.fact(f"{own:.0%} right on the author's own samples")
        with say.step("a person approves it; the devices enrol, each with a single-use token"):
            self.record.first_digest = world.publish(bundle)
            world.approve(self.record.first_digest)
            for device in world.devices:
                world.enrol(device)
        with say.step("the devices start, are assigned version 1, fetch, verify, try and serve it"):
            world.start_agents()
            world.assign("1")
            world.wait_until_served(self.record.first_digest, SERVE_TIMEOUT_S)
        for name, address in world.listening.items():
            self._clients[name] = Client(address, MODEL, self.digits.holdout, world.clock)
            self._clients[name].start()
        self.record.holdout_before = self._holdout()
        say.fact(
            f"live traffic to every device from here to the end; as served, version 1 reads "
            f"{self.record.holdout_before:.1%} of the samples that nobody has"
        )

    def _pack(self) -> tuple[Path, float]:
        terms, root = self._terms, self._world.root
        model, own = train_first_version(
            self.digits.author, batch=terms.batch, learning_rate=terms.learning_rate, seed=terms.seed
        )
        (root / "digits.onnx").write_bytes(model)
        np.savez(root / "author-samples.npz", image=self.digits.author.images, y=self.digits.author.labels)
        bundle = root / "digits-1.bundle"
        run_holdfast(
            *("bundle", "pack", str(root / "digits.onnx"), "--key", str(self._world.author), "--name", MODEL),
            *("--version", "1", "--owner", "digits-team", "--purpose", PURPOSE, "--labels", ",".join(LABELS)),
            *("--samples", str(root / "author-samples.npz"), "--max-update-norm", MAX_UPDATE_NORM),
            *("--batch", str(terms.batch), "-o", str(bundle)),
        )
        return bundle, own

    # 2

    def _reports_and_refusal(self) -> None:
        world, say = self._world, self._say
        say.chapter(2, "Signed reports arrive, and a site says no")
        with say.step("waiting for signed reports of every device"):
            world.wait_for(self._all_reported, REPORT_TIMEOUT_S, lambda: "not every device had reported")
        self._show_fleet()
        with say.step(f"the coordinator asks for a run with the purpose {FOREIGN_PURPOSE!r}"):
            run = self._run(FOREIGN_PURPOSE, rounds=1, minimum_devices=len(world.devices))
        members, names = run["members"], self.device_names()
        assert isinstance(members, list)
        for member in members:
            if member["answer"] == "refused":
                self.record.refusal[names[member["device_id"]]] = f"{member['reason_code']}: {member['policy_rule']}"
        for name, reason in self.record.refusal.items():
            say.fact(f"{name} refuses, signed by its own key: {reason}")
        say.fact(f"the run ended: {run['state']} ({run['reason']})")

    def _all_reported(self) -> bool:
        rows = self._admin.get("/v1/devices")["devices"]
        return isinstance(rows, list) and all(row["last_report_utc_ns"] for row in rows)

    def _show_fleet(self) -> None:
        served = self._admin.get("/v1/fleet")["models"]
        if not isinstance(served, list):
            raise DemoError("the coordinator's fleet view has no models")
        for row in served:
            self._say.fact(
                f"{row['model']} over the fleet: {row['requests']} requests, latency p50 {row['p50_s'] * 1e3:.2f} ms, "
                f"p99 {row['p99_s'] * 1e3:.2f} ms (histograms of all devices merged, then read)"
            )

    def device_names(self) -> dict[str, str]:
        """Device id -> its name."""
        rows = self._admin.get("/v1/devices")["devices"]
        assert isinstance(rows, list)
        return {str(row["device_id"]): str(row["name"]) for row in rows}

    # 3

    def _federated_run(self) -> None:
        world, say, terms = self._world, self._say, self._terms
        say.chapter(3, f"A federated run of {terms.rounds} rounds; the data stays where it is")
        run = self._run(PURPOSE, rounds=terms.rounds, minimum_devices=len(world.devices))
        if run["state"] != "done" or not run["candidate_digest"]:
            raise DemoError(f"the federated run ended {run['state']}: {run['reason']}; see the logs in {world.root}")
        self.record.candidate_digest = str(run["candidate_digest"])
        models = self._admin.get("/v1/models")["models"]
        assert isinstance(models, list)
        version = next(str(row["version"]) for row in models if row["digest"] == self.record.candidate_digest)
        self.record.candidate_version = version
        say.fact(f"candidate {version}: same graphs, new weights, signed by the run, lineage back to version 1")
        with say.step("a person approves it; it is assigned and swapped in under the running traffic"):
            world.approve(self.record.candidate_digest)
            world.assign(version)
            world.wait_until_served(self.record.candidate_digest, SERVE_TIMEOUT_S)
        self.record.holdout_after = self._holdout()
        say.fact(f"as served, {version} reads {self.record.holdout_after:.1%} of the samples that nobody has")

    def _run(self, purpose: str, *, rounds: int, minimum_devices: int) -> dict[str, object]:
        """Start a run and follow it to its end."""
        terms = self._terms
        started = run_holdfast_json(
            *("rounds", "start", str(self._world.coordinator), MODEL, "--purpose", purpose),
            *("--rounds", str(rounds), "--epochs", str(terms.epochs), "--batch", str(terms.batch)),
            *("--lr", str(terms.learning_rate), "--minimum-devices", str(minimum_devices)),
            *("--quorum", str(max(2, minimum_devices - 1)), "--deadline", "60", "--invite", "60"),
            *("--seed", str(terms.seed)),
        )
        path, said = f"/v1/rounds/{started['run_id']}", ""
        run: dict[str, object] = {}

        def ended() -> bool:
            nonlocal run, said
            run = self._admin.get(path)
            line = f"{run['state']}, round {run['round']} of {run['rounds']}, {run['accepted']} devices take part"
            if line != said:
                said = line
                self._say.fact(line)
            return run["state"] in FINAL

        self._world.wait_for(ended, RUN_TIMEOUT_S, lambda: f"the run was still {said}")
        return run

    def _holdout(self) -> float:
        address = next(iter(self._world.listening.values()))
        return accuracy_as_served(address, MODEL, self.digits.holdout)

    # 4

    def _evidence(self) -> None:
        world, say, record = self._world, self._say, self.record
        say.chapter(4, "The evidence, and whether it was worth it")
        digest = record.candidate_digest
        with say.step("waiting until every device has reported about its new model"):
            world.wait_for(self._new_model_reported, REPORT_TIMEOUT_S, lambda: f"no report about {digest[:12]}")
        scorecard, record.evidence = world.root / "scorecard.yaml", world.root / "evidence.hf"
        scorecard.write_text(
            files(__package__).joinpath("scorecard.yaml").read_text(encoding="utf-8"), encoding="utf-8"
        )
        with say.step("exporting the ledger as one file, with the scorecard answered from it"):
            run_holdfast(
                *("evidence", "export", str(world.coordinator), "-o", str(record.evidence)),
                *("--scorecard", str(scorecard)),
            )
        evidence = read_evidence(record.evidence.read_bytes())
        record.figures = compute_figures(tuple(parse_entries(evidence.entries)))
        definition = parse_definition(read_definition(scorecard.read_bytes()))
        self._scorecard = evaluate(definition, record.figures)
        with say.step("verifying it offline against the root keys of all principals"):
            verdict = self._verify(record.evidence, with_roots=True)
        record.verdict = str(verdict["verdict"])
        record.verdict_without_roots = str(self._verify(record.evidence, with_roots=False)["verdict"])
        scored = verdict["scorecard"]
        record.scorecard = scored if isinstance(scored, dict) else {}
        say.fact(
            f"{len(evidence.entries)} entries: {record.verdict}; without root keys: {record.verdict_without_roots}"
        )

    def scorecard_lines(self) -> list[str]:
        """The answered scorecard as a table."""
        definition = read_definition((self._world.root / "scorecard.yaml").read_bytes())
        return [] if self._scorecard is None else render(parse_definition(definition), self._scorecard).splitlines()

    def _new_model_reported(self) -> bool:
        served = self._admin.get("/v1/fleet")["models"]
        devices = len(self._world.devices)
        rows = served if isinstance(served, list) else []
        return any(row["bundle_digest"] == self.record.candidate_digest and row["devices"] >= devices for row in rows)

    def _verify(self, path: Path, *, with_roots: bool) -> dict[str, object]:
        roots = [part for root in self._world.roots for part in ("--root", root)] if with_roots else []
        return try_holdfast_json("evidence", "verify", str(path), *roots)

    # 5

    def _attacks(self) -> None:
        say, record = self._say, self.record
        say.chapter(5, "Somebody tampers with the evidence")
        assert record.evidence is not None
        data = record.evidence.read_bytes()
        record.flip_seed = secrets.randbits(32)
        record.flipped_offset = random.Random(record.flip_seed).randrange(len(data))
        flipped, forged = self._world.root / "flipped.hf", self._world.root / "forged.hf"
        flipped.write_bytes(flip_a_byte(data, record.flipped_offset))
        with say.step(
            f"in a copy, one bit of byte {record.flipped_offset} is turned over (random seed {record.flip_seed})"
        ):
            verdict = self._verify(flipped, with_roots=True)
        findings = verdict["findings"]
        if isinstance(findings, list) and findings:
            record.flip_finding = str(findings[0]["text"])
            record.flip_named = file_at(data, record.flipped_offset) in record.flip_finding
        say.fact(f"{verdict['verdict']}: {record.flip_finding}")
        forged.write_bytes(forge(data))
        with say.step("a forger makes every evaluation perfect and signs everything again with keys of his own"):
            record.forgery_verdict = str(self._verify(forged, with_roots=True)["verdict"])
            record.forgery_verdict_without_roots = str(self._verify(forged, with_roots=False)["verdict"])
        say.fact(f"with the real root keys: {record.forgery_verdict}; without: {record.forgery_verdict_without_roots}")
