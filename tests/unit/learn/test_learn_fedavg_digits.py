"""Federated averaging over the handwritten digits reaches what the literature says it should, with our own parts.

McMahan et al. 2017 (arXiv 1602.05629), algorithm 1: 20 clients, half of them in a round, batches of 10, 5 local epochs,
learning rate 0.1, an MLP 64-64-64-10 with He initialisation, 1,400 samples to learn and 397 to judge.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tests.fakes.models import he_mlp

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainSettings
from holdfast.update.codecs import codec_named

CONTRACT = DataContract((InputContract("input", "float32", (64,), minimum=0.0, maximum=1.0),), class_count=10)
CLIENTS, PER_ROUND, SHARDS = 20, 10, 40
SIZES = (64, 64, 64, 10)
SEEDS = range(10)


@cache
def graphs() -> TrainingGraphs:
    return build_graphs(he_mlp(SIZES), batch=10)


def digits(seed: int) -> tuple[LocalDataset, LocalDataset]:
    x, y = load_digits(return_X_y=True)
    whole = LocalDataset.from_arrays({"input": (x / 16).astype(np.float32), "y": y}, CONTRACT)
    return whole.split(397 / 1797, seed=seed)


def equal_parts(train: LocalDataset, rng: np.random.Generator) -> list[LocalDataset]:
    return [train.take(rows) for rows in np.split(rng.permutation(train.count), CLIENTS)]


def two_shards_each(train: LocalDataset, rng: np.random.Generator) -> list[LocalDataset]:
    """Sorted by digit, cut into 40 shards, two to a client: most see two digits (ibid., section 3)."""
    shards = np.array_split(np.argsort(train.labels, kind="stable"), SHARDS)
    order = rng.permutation(SHARDS)
    return [train.take(np.concatenate([shards[a], shards[b]])) for a, b in order.reshape(CLIENTS, 2)]


def accuracies(
    clients: list[LocalDataset], held: LocalDataset, rounds: int, seed: int, codec: str = "float32"
) -> list[float]:
    """The accuracy on the held-out samples after each round."""
    trainer = Trainer(graphs().train, graphs().evaluate, graphs().layout)
    weights = np.frombuffer(split_weights(he_mlp(SIZES, seed)).weights, "<f4")
    rng = np.random.default_rng(1_000 + seed)
    carried, found = codec_named(codec), []
    for number in range(rounds):
        total, samples = np.zeros(weights.size), 0
        for client in rng.choice(CLIENTS, PER_ROUND, replace=False):
            settings = TrainSettings(epochs=5, batch=10, learning_rate=0.1, seed=1_000 * number + int(client))
            result = trainer.train(weights, clients[client], settings)
            delta = carried.decode(carried.encode(result.delta, rng), weights.size)
            total += delta.astype(np.float64) * result.sample_count
            samples += result.sample_count
        weights = graphs().layout.add_delta(weights, (total / samples).astype(np.float32))
        found.append(trainer.evaluate(weights, held).accuracy)
    return found


def first_round_at(level: float, found: list[float]) -> int:
    """Counted from 1; one more than there are if the level is never reached."""
    return next((number for number, value in enumerate(found, 1) if value >= level), len(found) + 1)


def test_a_few_rounds_on_equal_parts_learn_most_digits() -> None:
    train, held = digits(0)

    found = accuracies(equal_parts(train, np.random.default_rng(0)), held, 3, 0, "int8-block256-stochastic")

    assert found[-1] > 0.85


@pytest.mark.slow
def test_equal_parts_reach_95_percent_within_15_rounds() -> None:
    firsts = []
    for seed in SEEDS:
        train, held = digits(seed)
        clients = equal_parts(train, np.random.default_rng(seed))
        firsts.append(first_round_at(0.95, accuracies(clients, held, 20, seed)))

    print(f"first round at 95 %: {firsts}, median {np.median(firsts)}")
    assert np.median(firsts) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["float32", "int4-block64-stochastic"])
def test_two_shards_each_reach_94_percent_at_round_60(codec: str) -> None:
    last = []
    for seed in SEEDS:
        train, held = digits(seed)
        clients = two_shards_each(train, np.random.default_rng(seed))
        last.append(accuracies(clients, held, 60, seed, codec)[-1])

    print(f"accuracy at round 60 over {codec}: {[round(each, 3) for each in last]}, median {np.median(last):.4f}")
    assert np.median(last) >= 0.94
