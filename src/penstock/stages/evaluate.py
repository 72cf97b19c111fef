"""Evaluate: accuracy on labelled data with its interval, and the paired difference to float32 on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock import user_code
from penstock.errors import InputError
from penstock.settings import option
from penstock.store import digest_of

if TYPE_CHECKING:
    import numpy as np

    from penstock.backends import Session
    from penstock.feeds import Feeds
    from penstock.progress import Progress


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """How accuracy is measured."""

    metric: str = option(
        "", "module:function (outputs, labels) → one score per sample, higher is better (default: top-1)"
    )
    batch: int = option(100, "samples per batch where the model's batch is dynamic", flag="--evaluate-batch", minimum=1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A mean score over ``samples``, in [0, 1] for top-1, with its 95 % interval, and the scores ``(N,)``.

    ``interval`` names its kind: Wilson's where every score is right or wrong, else the normal one of a mean.
    """

    metric: str
    samples: int
    score: float
    low: float
    high: float
    interval: str
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """This minus the baseline on the same samples, with its 95 % interval; in points of the score."""

    difference: float
    low: float
    high: float


def top_1(outputs: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Score 1 where the largest of the first output ``(N, classes)`` is the label ``(N,)``, else 0."""
    import numpy as np

    return np.asarray(outputs[0].reshape(len(labels), -1).argmax(1) == labels)


def load_metric(name: str) -> Callable[[list[np.ndarray], np.ndarray], Any]:
    """Find the user's metric (``module:function`` or ``file.py:function``); "" is top-1. Raises ``InputError``."""
    return user_code.function(name, "the metric") if name else top_1


def metric_digest(name: str) -> str:
    """Return a digest of the user's files behind a metric, so that an edited metric counts as another; "" for top-1."""
    return digest_of(sorted(user_code.files([user_code.module(name, "the metric")]).values())) if name else ""


def evaluate(session: Session, feeds: Feeds, settings: EvaluateSettings, progress: Progress, note: str) -> Evaluation:
    """Run all samples and score them. Raises ``InputError`` when the metric doesn't give one score per sample."""
    import numpy as np

    from penstock.intervals import wilson

    assert feeds.labels is not None
    metric = load_metric(settings.metric)
    scores = np.zeros(feeds.count)
    done = 0
    for real, batch in feeds.batches(settings.batch):
        made = session.run(batch)
        outputs = made if feeds.whole else [output[:real] if output.ndim else output for output in made]
        labels = feeds.labels[done : done + real]
        if feeds.whole and not settings.metric and len(outputs[0]) != 1:
            what = f"top-1 wants one row of class scores a sample, and the first output is {list(outputs[0].shape)}"
            raise InputError("bad-metric", what, where="top-1", do="name a measure with --metric module:function")
        with user_code.explained("the metric failed", settings.metric):
            given = np.asarray(metric(outputs, labels), dtype=float)
        if given.shape != (real,):
            what = f"the metric gave the shape {list(given.shape)} for {real} samples"
            raise InputError("bad-metric", what, where=settings.metric or "top-1", do="return one score per sample")
        if not np.isfinite(given).all():
            raise InputError("bad-metric", "the metric gave NaN or infinity", where=settings.metric or "top-1")
        scores[done : done + real] = given
        done += real
        progress.step(done, feeds.count, note)
    mean = float(scores.mean())
    if np.isin(scores, (0.0, 1.0)).all():
        low, high = wilson(int(scores.sum()), len(scores))
        interval = "Wilson, 95 %"
    else:  # a score that isn't right-or-wrong: the normal interval of its mean
        half = 1.959964 * float(scores.std(ddof=1)) / len(scores) ** 0.5 if len(scores) > 1 else float("inf")
        low, high = mean - half, mean + half
        interval = "normal, 95 %"
    return Evaluation(settings.metric or "top-1", len(scores), mean, low, high, interval, scores)


def paired(ours: Evaluation, baseline: Evaluation) -> PairedDifference:
    """Compare two evaluations of the same samples."""
    import numpy as np

    from penstock.intervals import paired_difference

    if np.isin(ours.scores, (0.0, 1.0)).all() and np.isin(baseline.scores, (0.0, 1.0)).all():
        return PairedDifference(*paired_difference(ours.scores == 1.0, baseline.scores == 1.0))
    gaps = ours.scores - baseline.scores
    half = 1.959964 * float(gaps.std(ddof=1)) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")
    return PairedDifference(float(gaps.mean()), float(gaps.mean()) - half, float(gaps.mean()) + half)
