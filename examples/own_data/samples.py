"""A data set of one's own, as `--data samples.py:batches` reads it.

The function takes no arguments. It returns or yields ``(inputs, labels)``, or inputs alone, with the samples along the
first axis: one array, or for a model of several inputs a dict from input name to array. What it gives is in the model's
own form already, unless [data] declares the preprocessing.
"""

from collections.abc import Iterator

import numpy as np

CLASSES = 10


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield 1,200 samples ``(100, 3, 32, 32)`` float32 at a time, with labels ``(100,)`` int64.

    Stripes whose width tells the class, under noise: the same at every call, as the roles are dealt by position.
    """
    random = np.random.RandomState(0)
    columns = np.arange(32)
    for _ in range(12):
        labels = random.randint(0, CLASSES, 100)
        stripes = np.sin(columns * (labels[:, None] + 1) * 0.2)  # (100, 32)
        images = np.broadcast_to(stripes[:, None, None, :], (100, 3, 32, 32))
        yield (images + random.normal(0, 0.3, images.shape)).astype(np.float32), labels.astype(np.int64)
