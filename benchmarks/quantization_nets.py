"""The nets that quantizers are held against each other on: trained for two epochs, so that their ranges are real ones.

python benchmarks/quantization_nets.py

Architectures are those of ``nets``; the encoder here reads patches, the LSTM rows of pixels. Everything is seeded and
on one thread; weights and models are kept in build/quantization and made again where they are missing. Each function
that is named in ``NETS`` returns the module with its weights, for ``penstock export FILE:NAME``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import nets
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from penstock import zoo

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/quantization"
SHARED = Path(os.environ.get("PENSTOCK_SHARED") or ROOT.parent / "shared")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCHS, BATCH, TRAINED_ON, PEAK = 2, 128, 25_600, 3e-3
SPREAD = 16.0  # channels are scaled by factors from 1/16 to 16: 256 between the least and the greatest


class PatchEncoder(nn.Module):
    """A transformer encoder over the 64 patches of an image."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*(nets.Block(width, 4) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x + self.place)).mean(1))


class RowLSTM(nn.Module):
    """Two layers of LSTM over the 32 rows of an image, each of 96 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(96, 64, num_layers=2, batch_first=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(2)
        return self.fc(self.lstm(rows)[0][:, -1])


def cifar10() -> nn.Module:
    """Return the reference net of the zoo, which was trained to the end."""
    return zoo.load("cifar10").eval()


def resnet18() -> nn.Module:
    """Return the 18-layer residual network."""
    return _trained("resnet18", nets.ResNet18)


def mobilenetv2() -> nn.Module:
    """Return the net of depthwise convolutions and clipped activations."""
    return _trained("mobilenetv2", nets.MobileNetV2)


def senet() -> nn.Module:
    """Return the net of squeeze-and-excitation blocks."""
    return _trained("senet", nets.SENet)


def encoder() -> nn.Module:
    """Return the transformer encoder."""
    return _trained("encoder", PatchEncoder)


def lstm() -> nn.Module:
    """Return the recurrent net."""
    return _trained("lstm", RowLSTM)


def imbalanced() -> nn.Module:
    """Return the reference net with the channels between all its layers scaled by factors of 1/16 to 16."""
    return _imbalanced(range(6))


def imbalanced_once() -> nn.Module:
    """Return the reference net with the channels between its last convolution and what follows scaled so."""
    return _imbalanced([4])


def _imbalanced(pairs: Iterable[int]) -> nn.Module:
    """Scale the outputs of some layers, and scale them back in the next: ReLU and max pooling commute with that."""
    net = cifar10()
    seeded = torch.Generator().manual_seed(0)
    layers = [net.conv1, net.conv2, net.conv3, net.conv4, net.conv5, net.fc1, net.fc2]
    normalised = {net.conv2: net.bn1, net.conv4: net.bn2, net.conv5: net.bn3}
    with torch.no_grad():
        for layer, after in (layers[i : i + 2] for i in pairs):
            count = len(layer.bias)
            steps = torch.linspace(-1, 1, count)[torch.randperm(count, generator=seeded)]
            factors = SPREAD**steps
            scaled = normalised.get(layer, layer)  # a normalization in between would take the factor away
            scaled.weight.mul_(factors.reshape(-1, *[1] * (scaled.weight.ndim - 1)))
            scaled.bias.mul_(factors)
            spread = factors.repeat_interleave(after.weight.shape[1] // count)
            after.weight.div_(spread.reshape(1, -1, *[1] * (after.weight.ndim - 2)))
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net for net in (cifar10, resnet18, mobilenetv2, senet, encoder, lstm, imbalanced, imbalanced_once)
}


def pixels(part: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images of CIFAR-10 ``(N, 3, 32, 32)`` uint8 and their labels; ``part`` is "train" or "test"."""
    folder = data_folder()
    names = ["test_batch.bin"] if part == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    records = np.concatenate([np.fromfile(folder / name, np.uint8).reshape(-1, 3073) for name in names])[:count]
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def data_folder() -> Path:
    """Find CIFAR-10: the folder in PENSTOCK_CIFAR10, or the shared copy, which is unpacked once."""
    if named := os.environ.get("PENSTOCK_CIFAR10"):
        return Path(named)
    folder = ROOT / "build/cifar10"
    if not (folder / "test_batch.bin").exists():
        subprocess.run([str(SHARED / "cifar10/unpack"), str(folder)], check=True)
    return folder


def normalised(images: np.ndarray) -> np.ndarray:
    """Bring pixels ``(N, 3, H, W)`` uint8 into the form that the nets were trained on."""
    mean, std = (np.asarray(one, np.float32).reshape(3, 1, 1) for one in (MEAN, STD))
    return (images.astype(np.float32) / 255 - mean) / std


def _trained(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a net and give it the weights that are kept, or train it."""
    torch.manual_seed(0)
    net, kept = build(), BUILD / f"{name}.pt"
    if not kept.exists():
        _train(name, net)
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
    net.load_state_dict(torch.load(kept, weights_only=True))
    return net.eval()


def _train(name: str, net: nn.Module) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would give other weights
    began = time.process_time()
    images, labels = pixels("train", TRAINED_ON)
    x, y = torch.from_numpy(normalised(images)), torch.from_numpy(labels)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), PEAK, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    net.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(net(x[rows].flip(3) if rows[0] % 2 else x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        images, labels = pixels("test", 2000)
        right = (net(torch.from_numpy(normalised(images))).argmax(1).numpy() == labels).mean()
    torch.set_num_threads(threads)
    print(f"trained {name} in {time.process_time() - began:.0f} s, {right:.1%} right", file=sys.stderr)


def model(name: str) -> Path:
    """Return a net's ONNX model, exported with a dynamic batch where it isn't there yet."""
    from penstock import api
    from penstock.stages.export import ExportSettings

    path = BUILD / f"{name}.onnx"
    if not path.exists():
        NETS[name]()  # trains, before the export's time counts
        settings = ExportSettings(input=("x:float32[batch,3,32,32]",))
        api.export(f"{Path(__file__).resolve()}:{name}", path, settings)
    return path


def main() -> None:
    """Make all models."""
    for name in NETS:
        print(model(name))


if __name__ == "__main__":
    main()
