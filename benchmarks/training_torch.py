"""The measured nets as PyTorch modules. Imported only where torch is installed; nothing of Holdfast needs it."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.training_steps import CLASSES, MLP_SIZES
from torch import nn


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(MLP_SIZES):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, CLASSES)),
    )


NETS = {"mlp": mlp, "cnn": cnn}
