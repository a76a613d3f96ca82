"""The measured nets as PyTorch modules. Imported only where torch is installed; nothing of Holdfast needs it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from benchmarks.training_steps import (
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
from torch.nn import functional


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


class _Attention(nn.Module):
    """With PyTorch's own fused product."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        parts = self.inputs(x).chunk(3, dim=-1)
        q, k, v = (part.view(batch, STEPS, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.outputs(mixed.transpose(1, 2).reshape(batch, STEPS, WIDTH))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm1, self.norm2 = _Attention(), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, WIDE), nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.linear2(functional.gelu(self.linear1(x))))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.zeros(STEPS, WIDTH))
        self.encoder = nn.Sequential(*(_Layer() for _ in range(LAYERS)))
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
        state[name.removesuffix(TRANSPOSED)] = torch.from_numpy(np.array(array))
    module.load_state_dict(state)
    return module.train()
