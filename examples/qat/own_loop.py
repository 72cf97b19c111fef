"""Train a network, fine-tune it on the grids of its int8 model in a loop of its own, and write both models.

Writes fp32.onnx, int8.onnx, and net.safetensors with the weights before fine-tuning.
"""

import sys

import numpy as np
import torch
from net import SmallNet, example_inputs
from safetensors.torch import save_file
from torch.nn import functional

from penstock import DataSettings, datasets, qat

EPOCHS, FINE_EPOCHS = (12, 3) if len(sys.argv) < 2 else (int(sys.argv[1]), 1)

torch.manual_seed(0)
data = datasets.find("digits", DataSettings())
images = torch.from_numpy(data.preprocessing.apply(data.train.arrays[""][:]))
labels = torch.from_numpy(data.train.labels)


def epoch(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Go through the training samples once, in a random order; return the mean loss."""
    losses = []
    module.train()
    for index in torch.randperm(len(images)).split(64):
        loss = functional.cross_entropy(module(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


net = SmallNet()
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
for number in range(EPOCHS):
    print(f"float  epoch {number + 1}: loss {epoch(net, optimizer):.4f}")
save_file(net.state_dict(), "net.safetensors")

# the same loop, on the module that rounds where the int8 model will
prepared = qat.prepare(net, example_inputs(), [images[:256]])
optimizer = torch.optim.AdamW(prepared.module.parameters(), lr=2e-4)
for number in range(FINE_EPOCHS):
    print(f"int8   epoch {number + 1}: loss {epoch(prepared.module, optimizer):.4f}")
prepared.module.eval()
done = qat.convert(prepared, "int8.onnx", float_output="fp32.onnx")
same = qat.agreement(prepared, done.output, [(images[:512], labels[:512])])
print(f"int8.onnx: {done.size_bytes:,} bytes, {same.top1:.2%} of its answers are the module's")
