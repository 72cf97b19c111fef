"""Networks with seeded weights, each exported by TorchScript, dynamo and raw dynamo: what graph optimizers meet."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from penstock import zoo

EXPORTERS = ("torchscript", "dynamo", "raw-dynamo")


class Residual(nn.Module):
    """Two 3×3 convolutions with batch normalization, and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.way = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.way = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.way(x))


class ResNet18(nn.Module):
    """The 18-layer residual network of He et al. (2015), with a quarter of the channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks, inputs = [], width
        for stage, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
            blocks += [Residual(inputs, outputs, 1 if stage == 0 else 2), Residual(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.pool(self.stem(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Inverted(nn.Module):
    """An inverted bottleneck with a depthwise convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        self.around = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.around else self.layers(x)


class MobileNetV2(nn.Module):
    """Like MobileNetV2 (Sandler et al., 2018), with fewer blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        plan = [(16, 16, 1, 1), (16, 24, 2, 4), (24, 24, 1, 4), (24, 32, 2, 4), (32, 32, 1, 4), (32, 64, 2, 4)]
        self.blocks = nn.Sequential(*(Inverted(*row) for row in plan))
        self.head = nn.Sequential(nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6())
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(128, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.head(self.blocks(self.stem(x))).mean([2, 3]))


class Squeezed(nn.Module):
    """A convolution whose channels are weighed by what the whole image shows (squeeze and excitation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)
        self.down, self.up = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(self.bn(self.conv(x)))
        weights = torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3))))))
        return x + y * weights.view(y.size(0), y.size(1), 1, 1)


class SENet(nn.Module):
    """A small network of squeeze-and-excitation blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.blocks = nn.Sequential(*(Squeezed(32) for _ in range(4)))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.silu(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Block(nn.Module):
    """One block of a transformer encoder, attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """A transformer encoder over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(100, 64), nn.Parameter(torch.zeros(1, 16, 64))
        self.blocks = nn.Sequential(*(Block(64, 4) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embed(ids) + self.place)).mean(1))


class Recurrent(nn.Module):
    """Two layers of LSTM in both directions, and what they say at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 20, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def _image(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "resnet18": (ResNet18, lambda: _image(64)),
    "mobilenetv2": (MobileNetV2, lambda: _image(64)),
    "senet": (SENet, lambda: _image(32)),
    "encoder": (Encoder, lambda: torch.randint(0, 100, (2, 16))),
    "lstm": (Recurrent, lambda: torch.randn(2, 9, 12)),
    "cifar10": (lambda: zoo.load("cifar10"), lambda: _image(32)),
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a network with seeded weights, batch statistics that aren't trivial, and an input with a batch of 2."""
    torch.manual_seed(0)
    build, example = NETS[name]
    net = build().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and name != "cifar10":
            module.running_mean = torch.randn_like(module.running_mean) * 0.1
            module.running_var = torch.rand_like(module.running_var) + 0.5
    return net, example()


def export(name: str, exporter: str, path: Path) -> Path:
    """Export a network with a dynamic batch into one file."""
    net, x = make(name)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            torch.onnx.export(net, (x,), str(path), dynamo=False, opset_version=17, input_names=["x"],
                              output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}})  # fmt: skip
        else:
            made = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
                                     optimize=exporter == "dynamo", verbose=False)  # fmt: skip
            made.save(str(path), external_data=False)
    return path


def export_all(folder: Path, models: str = "*") -> dict[str, Path]:
    """Export the networks by every exporter, those that aren't there yet; name/exporter → file.

    ``models`` is a glob of name-exporter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in NETS:
        for exporter in EXPORTERS:
            path = folder / f"{name}-{exporter}.onnx"
            if not fnmatch(path.stem, models):
                continue
            if not path.exists():
                print(f"exporting {path.stem}", file=sys.stderr)
                export(name, exporter, path)
            found[f"{name}/{exporter}"] = path
    return found


if __name__ == "__main__":
    export_all(Path(sys.argv[1] if len(sys.argv) > 1 else "build/nets"))
