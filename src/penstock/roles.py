"""The disjoint roles of data: which samples calibrate, which are golden, which select.

The order is a function of the seed and the sample's index alone (a keyed hash, no random generator), so it is the
same on every machine and for every version of every library.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Roles:
    """Row indices of each role, disjoint, each in dealing order: ``(k,)`` int64."""

    golden: np.ndarray
    calibrate: np.ndarray
    select: np.ndarray


def deal(labels: np.ndarray | None, count: int, *, seed: int, golden: int, calibrate: int, select: int) -> Roles:
    """Deal ``count`` samples into roles; with ``labels`` ``(count,)`` each role is stratified by class.

    A set too small for all roles gives each its share in the order golden, calibrate, select; none overlaps.
    """
    order = dealing_order(labels, count, seed=seed)
    first, second = golden, golden + calibrate
    return Roles(order[:first], order[first:second], order[second : second + select])


def dealing_order(labels: np.ndarray | None, count: int, *, seed: int) -> np.ndarray:
    """Order all samples so that every prefix, and every rest, has the classes in the data's own proportions.

    Within its class of n samples the k-th one (in the order of the hash) stands at (k + ½) / n, and all are sorted by
    that. Returns ``(count,)`` int64.
    """
    key = seed.to_bytes(8, "little", signed=True)
    ranks = [hashlib.blake2b(i.to_bytes(8, "little"), digest_size=8, key=key).digest() for i in range(count)]
    shuffled = sorted(range(count), key=ranks.__getitem__)
    if labels is None:
        return np.asarray(shuffled, dtype=np.int64)
    members = Counter(int(label) for label in labels)
    seen: Counter[int] = Counter()
    keyed: list[tuple[float, int, int]] = []
    for index in shuffled:
        label = int(labels[index])
        keyed.append(((seen[label] + 0.5) / members[label], label, index))
        seen[label] += 1
    return np.asarray([index for _, _, index in sorted(keyed)], dtype=np.int64)
