"""Operators that choose or sample places by values, and the Fourier transform, in torch; only for making vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Tensor = torch.Tensor
Attributes = Mapping[str, Any]
Args = list[Any]


def top_k(args: Args, a: Attributes) -> list[Tensor]:
    largest, in_order = bool(a.get("largest", 1)), bool(a.get("sorted", 1))
    return list(torch.topk(args[0], int(args[1]), a.get("axis", -1), largest, in_order))


def reverse_sequence(args: Args, a: Attributes) -> Tensor:
    assert (a.get("batch_axis", 1), a.get("time_axis", 0)) == (0, 1)
    rows = [torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(args[0], args[1].tolist(), strict=True)]
    return torch.stack(rows)


def grid_sample(args: Args, a: Attributes) -> Tensor:
    mode, padding = a.get("mode", b"linear").decode(), a.get("padding_mode", b"zeros").decode()
    mode = "bilinear" if mode == "linear" else mode
    return torch.nn.functional.grid_sample(args[0], args[1], mode, padding, bool(a.get("align_corners", 0)))


def dft(args: Args, a: Attributes) -> Tensor:
    x = args[0]
    axis = (int(args[2]) if len(args) > 2 else -2) % x.dim()
    if a.get("onesided", 0):
        return torch.view_as_real(torch.fft.rfft(x[..., 0], dim=axis))
    whole = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else torch.complex(x[..., 0], x[..., 0] * 0)
    return torch.view_as_real((torch.fft.ifft if a.get("inverse", 0) else torch.fft.fft)(whole, dim=axis))


SELECTION_OPERATORS = {"TopK": top_k, "ReverseSequence": reverse_sequence, "GridSample": grid_sample, "DFT": dft}
