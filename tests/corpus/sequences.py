"""Networks for text, series, sets and tables, written with torch.nn after their papers; small, every layer kept."""

from __future__ import annotations

import math

import torch
from tests.corpus.architecture import BATCH, SQUARES, Architecture, series, tokens
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

TORCH = "torch.nn"
CLASSES = 5


class Causal(nn.Module):
    """A block of a temporal convolutional network (Bai et al. 2018): padded behind, then cut."""

    def __init__(self, inside: int, outside: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv = weight_norm(nn.Conv1d(inside, outside, 3, padding=self.cut, dilation=dilation))
        self.side = nn.Conv1d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.relu(self.conv(x)[:, :, : -self.cut]) + self.side(x))


class Gated(nn.Module):
    """WaveNet's unit (van den Oord et al. 2016)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, 2 * width, 2, dilation=dilation)
        self.out, self.dilation = nn.Conv1d(width, width, 1), dilation

    def forward(self, x: Tensor) -> Tensor:
        wide, gate = self.conv(functional.pad(x, (self.dilation, 0))).chunk(2, 1)
        return x + self.out(torch.tanh(wide) * torch.sigmoid(gate))


class Last(nn.Module):
    """The last element of a channels-first series, classified."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, :, -1])


class Recurrent(nn.Module):
    """Embedding, recurrent layers, classifier of the last or the mean state."""

    def __init__(self, cell: type[nn.RNNBase], *, layers: int = 1, both: bool = False, tag: bool = False) -> None:
        super().__init__()
        self.embedding, self.tag = nn.Embedding(50, 8), tag
        self.recurrent = cell(8, 12, num_layers=layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(24 if both else 12, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.head(states if self.tag else states[:, -1])


class Encoder(nn.Module):
    """Vaswani et al. 2017, with torch's own layers and a sinusoidal table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        place = torch.arange(12).unsqueeze(1) * torch.exp(torch.arange(0, 16, 2) * (-math.log(10000.0) / 16))
        self.register_buffer("table", torch.stack([torch.sin(place), torch.cos(place)], -1).flatten(1))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * 4.0 + self.table[: tokens.size(1)]
        return self.head(self.encoder(x).mean(1))


class CausalAttention(nn.Module):
    """One decoder layer written out, with scaled_dot_product_attention and a mask made in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.qkv, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, 4, width // 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.norm(x + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return self.head(x[:, -1])


class TextConvolution(nn.Module):
    """Kim 2014: convolutions of several widths over words, the greatest of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(8, 6, kernel) for kernel in (2, 3, 4))
        self.head = nn.Linear(18, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2)
        return self.head(torch.cat([functional.relu(conv(x)).max(dim=2).values for conv in self.convs], 1))


class FactorizationMachine(nn.Module):
    """DeepFM (Guo et al. 2017): one embedding per field, pairwise products by the square of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(40, 1), nn.Embedding(40, 6)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 1))
        self.register_buffer("offsets", torch.tensor([0, 10, 20, 30]))

    def forward(self, fields: Tensor) -> Tensor:
        fields = fields + self.offsets
        x = self.second(fields)
        pairs = 0.5 * (x.sum(1).pow(2) - x.pow(2).sum(1)).sum(1, keepdim=True)
        return self.first(fields).sum(1) + pairs + self.deep(x.flatten(1))


class WideAndDeep(nn.Module):
    """Cheng et al. 2016, with crossed layers (Wang et al. 2017) in the place of the wide part."""

    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.deep, self.head = nn.Sequential(nn.Linear(8, 16), nn.SELU()), nn.Linear(24, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for layer in self.cross:
            x = features * layer(x) + x
        return self.head(torch.cat([x, self.deep(features)], -1))


class TwoTowers(nn.Module):
    """Retrieval: cosine of two embeddings of unit length, with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 8), nn.Embedding(30, 8)
        self.user, self.item = nn.Linear(8, 8), nn.Linear(8, 8)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, user: Tensor, items: Tensor) -> Tensor:
        left = functional.normalize(self.user(self.users(user)), dim=-1)
        right = functional.normalize(self.item(self.items(items)), dim=-1)
        return torch.einsum("bd,bkd->bk", left, right) * self.temperature.exp()


class PointNet(nn.Module):
    """Qi et al. 2017, with its learned transform of the points."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.matrix = nn.Linear(16, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        turn = self.matrix(self.transform(points).amax(2)).view(-1, 3, 3) + torch.eye(3, dtype=points.dtype)
        return self.head(self.points(torch.bmm(turn, points)).amax(2))


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017 over dense adjacency matrices, normalised in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges + torch.eye(edges.size(1), dtype=edges.dtype)
        scale = edges.sum(-1).clamp(min=1e-6).rsqrt()
        edges = edges * scale.unsqueeze(1) * scale.unsqueeze(2)
        x = functional.relu(edges @ self.first(nodes))
        return self.head((edges @ self.second(x)).mean(1))


class GraphAttention(nn.Module):
    """Velickovic et al. 2018: attention over neighbours, others masked with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.left, self.right = nn.Linear(4, 8, bias=False), nn.Linear(8, 1), nn.Linear(8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.linear(nodes)
        scores = functional.leaky_relu(self.left(x) + self.right(x).transpose(1, 2), 0.2)
        scores = scores.masked_fill(edges < 0.5, float("-inf"))
        mixed = torch.softmax(scores, -1).nan_to_num(0.0) @ x
        return self.head(functional.elu(mixed).mean(1))


class Forecaster(nn.Module):
    """N-BEATS (Oreshkin et al. 2020): each block takes off what it explains."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 30)) for _ in range(3))

    def forward(self, series: Tensor) -> Tensor:
        rest, forecast = series.squeeze(1), torch.zeros(series.size(0), 6, dtype=series.dtype)
        for block in self.blocks:
            back, ahead = block(rest).split([24, 6], -1)
            rest, forecast = rest - back, forecast + ahead
        return forecast


class Tabular(nn.Module):
    """FT-Transformer (Gorishniy et al. 2021): every feature a token, a class token, rotary-free attention."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        x = features.unsqueeze(-1) * self.scale + self.shift
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], 1)
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(x[:, 0])


class Experts(nn.Module):
    """A mixture of experts with soft and top-2 gates (Shazeer et al. 2017), all experts computed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.Parameter(torch.randn(4, 8, 6) / 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        scores, chosen = self.gate(features).topk(2, dim=-1)
        made = torch.einsum("bi,eio->beo", features, self.experts)
        picked = torch.gather(made, 1, chosen.unsqueeze(-1).expand(-1, -1, 6))
        return self.head((torch.softmax(scores, -1).unsqueeze(-1) * functional.silu(picked)).sum(1))


class Spectral(nn.Module):
    """FNet's mixing (Lee-Thorp et al. 2021) with the Fourier transform as matrices, so that any exporter takes it."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(24.0), torch.arange(24.0)) * (2 * math.pi / 24)
        self.register_buffer("cosine", torch.cos(angle))
        self.norm, self.body, self.head = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        x = self.norm((series @ self.cosine).transpose(1, 2))
        return self.head(functional.mish(self.body(x)).std(1))


class Spectrogram(nn.Module):
    """Keywords from samples of sound: a short-time Fourier transform in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.body = nn.Sequential(nn.Conv1d(9, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, sound: Tensor) -> Tensor:
        parts = torch.view_as_real(
            torch.stft(sound, 16, 8, window=self.window.to(sound.dtype), center=False, return_complex=True)
        )
        return self.head(self.body(torch.log1p(parts.pow(2).sum(-1))))


def features(width: int = 8) -> dict[str, Tensor]:
    return {"features": torch.randn(BATCH, width)}


def graph() -> dict[str, Tensor]:
    return {"nodes": torch.randn(BATCH, 6, 4), "edges": (torch.rand(BATCH, 6, 6) > 0.5).float()}


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def keywords() -> nn.Module:
    """A depthwise-separable network for keywords (Zhang et al. 2017)."""
    deep = [nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.ReLU()]
    first = [nn.Conv1d(4, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*first, *deep, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES))


SEQUENCES = (
    Architecture("Perceptron", TORCH, lambda: (perceptron(), features())),
    Architecture("Wide and deep, crossed", TORCH, lambda: (WideAndDeep(), features())),
    Architecture("Mixture of experts", TORCH, lambda: (Experts(), features())),
    Architecture("FT-Transformer", TORCH, lambda: (Tabular(), features(6))),
    Architecture(
        "DeepFM",
        TORCH,
        lambda: (FactorizationMachine(), {"fields": torch.randint(0, 10, (BATCH, 4))}),
        "binary_cross_entropy",
    ),
    Architecture(
        "Two towers",
        TORCH,
        lambda: (TwoTowers(), {"user": torch.randint(0, 30, (BATCH,)), "items": torch.randint(0, 30, (BATCH, 7))}),
    ),
    Architecture("RNN", TORCH, lambda: (Recurrent(nn.RNN), tokens()), tied=True),  # one exporter unrolls it
    Architecture("LSTM tagger", TORCH, lambda: (Recurrent(nn.LSTM, tag=True), tokens()), SQUARES),
    Architecture("LSTM, two layers, both ways", TORCH, lambda: (Recurrent(nn.LSTM, layers=2, both=True), tokens())),
    Architecture("GRU", TORCH, lambda: (Recurrent(nn.GRU, layers=2), tokens())),
    Architecture("Text CNN", TORCH, lambda: (TextConvolution(), tokens())),
    Architecture("Transformer encoder", TORCH, lambda: (Encoder(), tokens())),
    Architecture("Causal attention", TORCH, lambda: (CausalAttention(), tokens())),
    Architecture(
        "TCN", TORCH, lambda: (nn.Sequential(Causal(4, 8, 1), Causal(8, 8, 2), Causal(8, 8, 4), Last(8)), series())
    ),
    Architecture(
        "WaveNet",
        TORCH,
        lambda: (nn.Sequential(nn.Conv1d(4, 8, 1), Gated(8, 1), Gated(8, 2), nn.ReLU(), Last(8)), series()),
    ),
    Architecture("Keyword spotter with STFT", TORCH, lambda: (Spectrogram(), {"sound": torch.randn(BATCH, 128)})),
    Architecture("Keyword spotter", TORCH, lambda: (keywords(), series())),
    Architecture("N-BEATS", TORCH, lambda: (Forecaster(), series(1)), SQUARES),
    Architecture("FNet mixing", TORCH, lambda: (Spectral(), series())),
    Architecture("PointNet", TORCH, lambda: (PointNet(), {"points": torch.randn(BATCH, 3, 10)})),
    Architecture("Graph convolution", TORCH, lambda: (GraphConvolution(), graph())),
    Architecture("Graph attention", TORCH, lambda: (GraphAttention(), graph())),
)
