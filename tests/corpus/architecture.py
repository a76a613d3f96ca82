"""What an entry of the corpus is: a network with random weights, small enough to be differentiated in a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 4
CROSS_ENTROPY, SQUARES = "softmax_cross_entropy", "mse"


@dataclass(frozen=True)
class Architecture:
    """A network in torch. `make` gives the module, with one output, and example inputs by name, batch axis first.

    `tied`: parameters are shared between layers on purpose.
    """

    name: str
    source: str
    make: Callable[[], tuple[nn.Module, Mapping[str, Tensor]]]
    loss: str = CROSS_ENTROPY
    tied: bool = False


def image(channels: int = 3, size: int = 32) -> dict[str, Tensor]:
    return {"image": torch.randn(BATCH, channels, size, size)}


def tokens(length: int = 12, vocabulary: int = 50) -> dict[str, Tensor]:
    return {"tokens": torch.randint(3, vocabulary, (BATCH, length))}


def series(channels: int = 4, length: int = 24) -> dict[str, Tensor]:
    return {"series": torch.randn(BATCH, channels, length)}


def draw_parameters(module: nn.Module) -> None:
    """Move every parameter off its initial value, so that no two are equal and each can be found in the file again."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
            elif name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
