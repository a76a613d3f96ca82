"""Networks for images, written with torch.nn after their papers; narrower and shallower, every kind of layer kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.corpus.architecture import SQUARES, Architecture, image
from torch import Tensor, nn
from torch.nn import functional

TORCH = "torch.nn"
CLASSES = 10


def conv(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNormalization, Relu."""
    layer = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class LeNet(nn.Module):
    """LeCun et al. 1998; the tensor is flattened with `view` and its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.body = nn.Sequential(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        x = functional.avg_pool2d(torch.tanh(self.first(image)), 2)
        x = functional.avg_pool2d(torch.tanh(self.second(x)), 2)
        return self.body(x.view(x.size(0), -1))


def vgg() -> nn.Module:
    """Simonyan and Zisserman 2015."""
    layers: list[nn.Module] = []
    inside = 3
    for width in (8, 16, 32, 32):
        layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.ReLU(True), nn.MaxPool2d(2)]
        inside = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, CLASSES))


def alexnet() -> nn.Module:
    """Krizhevsky et al. 2012, with its local response normalisation and grouped convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


class Residual(nn.Module):
    """He et al. 2016, basic block; with `bottleneck` the one of ResNet-50."""

    def __init__(self, inside: int, outside: int, stride: int, *, bottleneck: bool = False) -> None:
        super().__init__()
        mid = outside // 2 if bottleneck else outside
        kernels = [(inside, mid, 1, 1), (mid, mid, 3, stride), (mid, outside, 1, 1)]
        kernels = kernels if bottleneck else [(inside, outside, 3, stride), (outside, outside, 3, 1)]
        self.body = nn.Sequential(*(conv(*each[:3], stride=each[3]) for each in kernels))
        self.body[-1][-1] = nn.Identity()
        same = inside == outside and stride == 1
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet(*, bottleneck: bool) -> nn.Module:
    blocks = [Residual(a, b, s, bottleneck=bottleneck) for a, b, s in ((8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 32, 2))]
    return nn.Sequential(conv(3, 8), nn.MaxPool2d(3, 2, 1), *blocks, head(32))


class Dense(nn.Module):
    """One layer of DenseNet (Huang et al. 2017): what it makes is joined to what it was given."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        wide = nn.Conv2d(inside, 4 * growth, 1, bias=False)
        narrow = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(inside), nn.ReLU(), wide, nn.BatchNorm2d(4 * growth), nn.ReLU(), narrow
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    first, second = [Dense(8 + 4 * i, 4) for i in range(3)], [Dense(10 + 4 * i, 4) for i in range(3)]
    change = [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)]
    return nn.Sequential(conv(3, 8, stride=2), *first, *change, *second, nn.BatchNorm2d(22), nn.ReLU(), head(22))


class Fire(nn.Module):
    """SqueezeNet's block (Iandola et al. 2016)."""

    def __init__(self, inside: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.one, self.three = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat([functional.relu(self.one(x)), functional.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    last = [nn.Conv2d(32, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), pool, Fire(8, 4, 8), Fire(16, 4, 16), pool, *last)


class Shuffle(nn.Module):
    """ShuffleNet v2's unit (Ma et al. 2018): halves, and a shuffle of channels made of views and a transpose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        deep = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.body = nn.Sequential(conv(half, half, 1), deep, nn.BatchNorm2d(half), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.body(right)], 1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, -1, height, width)


class Inception(nn.Module):
    """GoogLeNet's module (Szegedy et al. 2015)."""

    def __init__(self, inside: int, part: int) -> None:
        super().__init__()
        self.one, self.three = conv(inside, part, 1), nn.Sequential(conv(inside, part, 1), conv(part, part))
        self.five = nn.Sequential(conv(inside, part, 1), conv(part, part, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inside, part, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


class Inverted(nn.Module):
    """MobileNet's inverted residual (Sandler et al. 2018); v3 adds squeeze and excitation and hard swish."""

    def __init__(self, width: int, activation: Callable[[], nn.Module], *, excite: bool) -> None:
        super().__init__()
        wide = 4 * width
        self.spread = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), activation())
        deep = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.deep = nn.Sequential(deep, nn.BatchNorm2d(wide), activation())
        squeezed = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, width, 1), nn.ReLU(), nn.Conv2d(width, wide, 1)]
        self.excite = nn.Sequential(*squeezed, nn.Hardsigmoid()) if excite else None
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.spread(x))
        if self.excite is not None:
            y = y * self.excite(y)
        return x + self.project(y)


def mobilenet(activation: Callable[[], nn.Module], *, excite: bool) -> nn.Module:
    blocks = [Inverted(8, activation, excite=excite) for _ in range(2)]
    return nn.Sequential(conv(3, 8, stride=2), *blocks, conv(8, 16, 1), head(16))


class UNet(nn.Module):
    """Ronneberger et al. 2015: transposed convolutions on the way up, and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 8), conv(8, 16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Sequential(conv(16, 8), nn.Conv2d(8, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        first = self.down(image)
        return self.last(torch.cat([self.up(self.deep(functional.max_pool2d(first, 2))), first], 1))


class Pyramid(nn.Module):
    """A feature pyramid for segmentation (Lin et al. 2017): bilinear upsampling to the size of another map."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 8, stride=2), conv(8, 8, stride=2)
        self.side, self.last = nn.Conv2d(8, 8, 1), nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        first = self.down(image)
        up = functional.interpolate(self.deep(first), size=first.shape[2:], mode="bilinear", align_corners=False)
        return self.last(functional.interpolate(self.side(first) + up, scale_factor=2.0, mode="nearest"))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.first, self.second, self.last = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.over_places = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.over_channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = x + self.over_places(self.first(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.over_channels(self.second(x))
        return self.head(self.last(x).mean(1))


def autoencoder() -> nn.Module:
    """A convolutional autoencoder; what it makes is held against numbers."""
    down = [nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 3, 2, 1), nn.Flatten(), nn.Linear(64, 8)]
    up = [nn.Linear(8, 64), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.ELU()]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid())


class VariationalEncoder(nn.Module):
    """The encoder of a VAE (Kingma and Welling 2014): mean and log variance side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.Softplus())
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(image)
        return torch.cat([self.mean(x), torch.clamp(self.log_variance(x), -5, 5)], -1)


def super_resolution() -> nn.Module:
    """ESPCN (Shi et al. 2016), with instance normalisation and a pixel shuffle."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.InstanceNorm2d(8, affine=True)),
        *(nn.ReflectionPad2d(1), nn.Conv2d(8, 4, 3), nn.PReLU(4), nn.PixelShuffle(2)),
    )


class SpatialTransformer(nn.Module):
    """Jaderberg et al. 2015: the image is sampled at places that a small network chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(1, 4, 5), nn.MaxPool2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6))
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        turn = 0.1 * self.where(image).view(-1, 2, 3) + torch.eye(2, 3, dtype=image.dtype)
        line = torch.linspace(-1, 1, 16, dtype=image.dtype)
        grid = torch.stack([line.repeat(16), line.repeat_interleave(16), torch.ones(256, dtype=image.dtype)])
        places = (turn @ grid).transpose(1, 2).reshape(-1, 16, 16, 2)
        return self.head(self.body(functional.grid_sample(image, places, align_corners=False)))


class Quantized(nn.Module):
    """Quantisation-aware: weights and activations go through fake quantisation (Jacob et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3, 2), nn.Linear(196, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(functional.relu(self.first(image)), 0.05, 0, -128, 127)
        return self.head(x.flatten(1))


def crnn() -> nn.Module:
    """Text in images (Shi et al. 2017): columns of a convolution go through a bidirectional LSTM."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(1, 8), nn.MaxPool2d(2), conv(8, 8), nn.MaxPool2d((2, 1)))
            self.recurrent = nn.LSTM(32, 8, bidirectional=True, batch_first=True)
            self.head = nn.Linear(16, CLASSES)

        def forward(self, image: Tensor) -> Tensor:
            x = self.body(image)
            x = x.permute(0, 3, 1, 2).flatten(2)
            return self.head(self.recurrent(x)[0].mean(1))

    return Net()


IMAGES = (
    Architecture("LeNet-5", TORCH, lambda: (LeNet(), image(1))),
    Architecture("AlexNet", TORCH, lambda: (alexnet(), image())),
    Architecture("VGG", TORCH, lambda: (vgg(), image())),
    Architecture("ResNet-18", TORCH, lambda: (resnet(bottleneck=False), image())),
    Architecture("ResNet-50", TORCH, lambda: (resnet(bottleneck=True), image())),
    Architecture("DenseNet", TORCH, lambda: (densenet(), image())),
    Architecture("SqueezeNet", TORCH, lambda: (squeezenet(), image())),
    Architecture(
        "ShuffleNet v2",
        TORCH,
        lambda: (nn.Sequential(conv(3, 16, stride=2), Shuffle(16), Shuffle(16), head(16)), image()),
    ),
    Architecture(
        "GoogLeNet",
        TORCH,
        lambda: (nn.Sequential(conv(3, 8, stride=2), Inception(8, 4), Inception(16, 4), head(16)), image()),
    ),
    Architecture("MobileNet v2", TORCH, lambda: (mobilenet(nn.ReLU6, excite=False), image())),
    Architecture("MobileNet v3", TORCH, lambda: (mobilenet(nn.Hardswish, excite=True), image())),
    Architecture("EfficientNet", TORCH, lambda: (mobilenet(nn.SiLU, excite=True), image())),
    Architecture("U-Net", TORCH, lambda: (UNet(), image(size=16)), SQUARES),
    Architecture("Feature pyramid", TORCH, lambda: (Pyramid(), image(size=16)), SQUARES),
    Architecture("MLP-Mixer", TORCH, lambda: (Mixer(), image())),
    Architecture("Convolutional autoencoder", TORCH, lambda: (autoencoder(), image(1, 16)), SQUARES),
    Architecture("VAE encoder", TORCH, lambda: (VariationalEncoder(), image(1, 16)), SQUARES),
    Architecture("ESPCN super-resolution", TORCH, lambda: (super_resolution(), image(1, 8)), SQUARES),
    Architecture("Spatial transformer", TORCH, lambda: (SpatialTransformer(), image(1, 16))),
    Architecture("Quantisation-aware", TORCH, lambda: (Quantized(), image(1, 16))),
    Architecture("CRNN", TORCH, lambda: (crnn(), image(1, 16))),
)
