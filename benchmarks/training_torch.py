"""The measured nets as PyTorch modules. Imported only where torch is installed; nothing of Holdfast needs it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from benchmarks.training_sizes import (
    BLOCKS,
    CLASSES,
    HEADS,
    LAST,
    LAYERS,
    MLP_SIZES,
    STEM,
    STEPS,
    TRANSPOSED,
    WIDE,
    WIDTH,
    WORDS,
)
from torch import Tensor, nn


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


class _Transformer(nn.Module):
    """Of PyTorch's own encoder layers, which take its fused attention. Nothing is dropped, on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.zeros(STEPS, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, WIDE, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(x) + self.places).mean(dim=1))


def _unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, group: int = 1, bounded: bool) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=group, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU6(inplace=True)] if bounded else []))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = 4 * inputs
        self.wide = _unit(inputs, middle, 1, bounded=True)
        self.deep = _unit(middle, middle, 3, stride=stride, group=middle, bounded=True)
        self.narrow = _unit(middle, outputs, 1, bounded=False)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.deep(self.wide(x)))
        return x + y if self.skips else y


class _MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, STEM, 3, stride=2, bounded=True)
        sizes = [STEM, *(outputs for outputs, _ in BLOCKS)]
        pairs = zip(pairwise(sizes), BLOCKS, strict=True)
        self.blocks = nn.Sequential(*(_Block(*pair, stride) for pair, (_, stride) in pairs))
        self.last, self.head = _unit(sizes[-1], LAST, 1, bounded=True), nn.Linear(LAST, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean(dim=(2, 3)))


class _HeadOnly(_MobileNet):
    """The body as served: running statistics, and no gradient is asked of it."""

    def train(self, mode: bool = True) -> _HeadOnly:
        super().train(mode)
        for part in (self.stem, self.blocks, self.last):
            part.eval().requires_grad_(False)
        return self


def made(net: str, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The net in training mode, with these weights.

    Raises: KeyError, RuntimeError: the weights are those of another net.
    """
    nets = {"mlp": mlp, "cnn": cnn, "transformer": _Transformer, "mobile_net": _MobileNet, "mobile_net_head": _HeadOnly}
    module = nets[net]()
    state = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    for name, value in weights.items():
        array = np.ascontiguousarray(value.T) if name.endswith(TRANSPOSED) else value
        name = name.removesuffix(TRANSPOSED).replace(".in_proj.", ".in_proj_")  # PyTorch keeps these in no module
        state[name] = torch.from_numpy(np.array(array))
    module.load_state_dict(state)
    return module.train()
