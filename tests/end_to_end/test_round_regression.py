"""A federated run of a model whose labels are numbers, trained with Adam: from the packed bundle to its candidate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import bundles
from tests.fakes.models import he_mlp
from tests.fakes.round_lab import RoundLab
from tests.fakes.trainable_bundles import numbers

from holdfast.author.pack import ModelFacts, TrainingPlan, pack
from holdfast.author.reference import Samples
from holdfast.bundle.verify import Trust, read_bundle, verify_bundle
from holdfast_federation.ledger.export import collect_evidence

DEADLINE_S = 120.0
PLAN = TrainingPlan(batch=10, loss="huber:delta=2", optimizer="adam", proximal_mu=0.01, gradient_clip=10.0)


def regression_bundle(keys: bundles.Keys) -> bytes:
    facts = ModelFacts("numbers", "1", "o@example.org", "tests", max_update_norm=50.0)
    return pack(he_mlp([4, 8, 2]), facts, Samples({"input": numbers()["x"]}), keys.author, training=PLAN)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RoundLab]:
    lab = RoundLab(tmp_path, regression_bundle)
    yield lab
    lab.close()


def test_a_run_of_a_regression_makes_a_better_candidate(lab: RoundLab) -> None:
    for seed, name in enumerate(("a", "b")):
        np.savez(lab.add_device(name).folder / "samples.npz", **numbers(60, seed))
    options = {"learning_rate": 0.02, "proximal_mu": 0.01, "gradient_clip": 10.0, "codec": "float16"}
    spec = lab.spec(model="numbers", batch=10, rounds=3, **options)

    assert lab.start_worker(spec).wait(DEADLINE_S) == 0

    run = lab.store.get(spec.run_id)
    assert (run.state, run.reason) == ("done", "")
    parts = lab.store.parts(spec.run_id)
    assert {part.state for part in parts} == {"contributed"}
    judged = {step: [p.metrics for p in parts if p.step == step] for step in ("evaluate_base", "evaluate_candidate")}
    assert all(set(metrics) == {"loss", "count"} for found in judged.values() for metrics in found)
    losses = {step: sum(metrics["loss"] for metrics in found) for step, found in judged.items()}
    assert losses["evaluate_candidate"] < 0.7 * losses["evaluate_base"]
    derived = json.loads(collect_evidence(lab.ledger, (), exported_utc_ns=lab.clock.utc_ns()).figures)["losses"]
    before, after = sorted(derived.values(), key=lambda each: each["order"])
    assert (
        before["count"]
        == after["count"]
        == 2 * sum(part.sample_count for part in parts if part.step == "evaluate_base")
    )
    assert after["loss"] < 0.7 * before["loss"]
    candidate = read_bundle(lab.registry.container(run.candidate_digest))
    trust = Trust((lab.keys.author.public_key,), (lab.run_key.public_key,))
    verified = verify_bundle(candidate, trust, ancestor_weights=lambda _: lab.bundle.files["weights.bin"])
    assert verified.manifest.training == lab.bundle.manifest.training
    assert 0 < verified.change_norm < 50
