"""The module shared by the CIFAR-10 and the digits networks. Imports torch: load it inside functions only."""

from __future__ import annotations

import torch
from torch import nn


class ReferenceNet(nn.Module):
    """Five 3x3 convolutions, three of them followed by BatchNorm and pooling, and two fully connected layers.

    Input ``(N, 3, 32, 32)`` float32, output ``(N, classes)`` logits; 666,986 parameters for ten classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv4 = nn.Conv2d(64, 64, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv5 = nn.Conv2d(64, 128, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(128)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(2048, 256)
        self.fc2 = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = self.pool(torch.relu(self.bn1(self.conv2(x))))
        x = torch.relu(self.conv3(x))
        x = self.pool(torch.relu(self.bn2(self.conv4(x))))
        x = self.pool(torch.relu(self.bn3(self.conv5(x))))
        x = torch.flatten(x, 1)
        x = self.dropout(torch.relu(self.fc1(x)))
        logits: torch.Tensor = self.fc2(x)
        return logits
