"""A candidate keeps the author's model and graphs, takes new weights, and is what a device will accept."""

from __future__ import annotations

import numpy as np
import pytest
from tests.fakes import models

from holdfast.author.candidate import RunFacts, derive_candidate
from holdfast.author.pack import ModelFacts, TrainingPlan, pack
from holdfast.author.reference import Samples
from holdfast.bundle.files import GRAPHS, MODEL_FILE, WEIGHTS_FILE
from holdfast.bundle.manifest import Lineage
from holdfast.bundle.verify import Trust, VerifiedBundle, read_bundle, verify_bundle
from holdfast.errors import BundleError, TrustError
from holdfast.trust.keys import ECDSA_P256, ED25519, PrivateKey

AUTHOR, RUN = PrivateKey.generate(ECDSA_P256), PrivateKey.generate(ED25519)
TRUST = Trust((AUTHOR.public_key,), (RUN.public_key,))
SAMPLES = Samples({"input": np.random.default_rng(3).standard_normal((20, 5)).astype(np.float32)})
FACTS = ModelFacts("triage", "1", "o", "p", labels=("a", "b", "c"), max_update_norm=3.0)
FIRST = pack(models.he_mlp((5, 7, 3)), FACTS, SAMPLES, AUTHOR, training=TrainingPlan(batch=4))
WEIGHTS = read_bundle(FIRST).files[WEIGHTS_FILE]
FACTS_OF_RUN = RunFacts("run-7", 8, 4, 900, {"accuracy": 0.93})


def moved(by: float, weights: bytes = WEIGHTS) -> bytes:
    """All weights moved so that the norm of the change is `by`."""
    flat = np.frombuffer(weights, "<f4")
    return (flat + np.float32(by / np.sqrt(flat.size))).astype("<f4").tobytes()


def verified(data: bytes) -> VerifiedBundle:
    def author_weights(_: Lineage) -> bytes:
        return WEIGHTS

    return verify_bundle(read_bundle(data), TRUST, ancestor_weights=author_weights)


def test_candidate_is_what_a_device_accepts() -> None:
    candidate = verified(derive_candidate(FIRST, moved(2.0), version="2", run=FACTS_OF_RUN, signer=RUN))

    assert candidate.signed_by == "run"
    assert candidate.change_norm == pytest.approx(2.0, rel=1e-3)
    assert candidate.manifest.version == "2"
    assert candidate.manifest.lineage is not None
    assert candidate.manifest.lineage.run_id == "run-7"
    assert candidate.profile.baseline == {"accuracy": 0.93}
    assert "run-7" in candidate.files["card.md"].decode()


def test_candidate_keeps_model_and_graphs_and_runs_golden_inputs_again() -> None:
    first = verified(FIRST)

    candidate = verified(derive_candidate(FIRST, moved(2.0), version="2", run=FACTS_OF_RUN, signer=RUN))

    for name in (MODEL_FILE, *GRAPHS):
        assert candidate.files.get(name) == first.files.get(name)
    np.testing.assert_array_equal(candidate.golden.inputs["input"], first.golden.inputs["input"])
    assert not np.allclose(candidate.golden.outputs["logits"], first.golden.outputs["logits"])


def test_candidate_of_a_candidate_goes_back_to_the_author() -> None:
    second = derive_candidate(FIRST, moved(1.0), version="2", run=FACTS_OF_RUN, signer=RUN)

    third = derive_candidate(second, moved(2.5), version="3", run=FACTS_OF_RUN, signer=RUN, ancestor=FIRST)

    lineage = verified(third).manifest.lineage
    assert lineage is not None
    assert lineage.parent_digest == read_bundle(second).digest
    assert lineage.ancestor_digest == read_bundle(FIRST).digest


def test_candidates_cannot_walk_out_of_the_envelope_step_by_step() -> None:
    second = derive_candidate(FIRST, moved(2.0), version="2", run=FACTS_OF_RUN, signer=RUN)

    with pytest.raises(TrustError, match="at most 3 is allowed"):
        derive_candidate(second, moved(4.0), version="3", run=FACTS_OF_RUN, signer=RUN, ancestor=FIRST)


@pytest.mark.parametrize("defect", ["short", "nan", "too_far"])
def test_candidate_with_weights_out_of_bounds_is_refused(defect: str) -> None:
    weights = {"short": WEIGHTS[:-4], "nan": b"\x00\x00\xc0\x7f" + WEIGHTS[4:], "too_far": moved(3.1)}[defect]

    with pytest.raises(TrustError):
        derive_candidate(FIRST, weights, version="2", run=FACTS_OF_RUN, signer=RUN)


def test_candidate_of_a_candidate_without_its_ancestor_is_refused() -> None:
    second = derive_candidate(FIRST, moved(1.0), version="2", run=FACTS_OF_RUN, signer=RUN)

    with pytest.raises(BundleError, match="is not the author-signed ancestor"):
        derive_candidate(second, moved(1.0), version="3", run=FACTS_OF_RUN, signer=RUN)
