"""The digits network: the reference network for scikit-learn's handwritten digits, 666,986 parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def network(classes: int = 10) -> nn.Module:
    """Build the untrained network.

    Input ``(N, 3, 32, 32)`` float32, preprocessed as the data set declares; output ``(N, classes)`` logits.
    Needs the extra ``torch``.
    """
    from penstock.zoo._network import ReferenceNet

    return ReferenceNet(classes)
