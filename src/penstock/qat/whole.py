"""The whole of it for a source that has a name: export, prepare, train, convert, compare the result with the module.

Imports torch: load it inside functions only.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from penstock import calibration, datasets, feeds, graph, intervals, outputs, store, trial
from penstock.data import Dataset, DataSettings
from penstock.errors import InputError, UsageError
from penstock.feeds import Feeds, RoleFeeds
from penstock.frontends import Source
from penstock.frontends import torch as frontend
from penstock.progress import SILENT, Progress
from penstock.qat import batches as user
from penstock.qat.agreeing import Agreement, agreement
from penstock.qat.conversion import Converted, convert
from penstock.qat.loop import Fitted, fit
from penstock.qat.preparation import prepare_model
from penstock.qat.rows import Rows, need_images
from penstock.qat.settings import QatSettings, Recipe
from penstock.signature import Signature
from penstock.stages import export as export_stage
from penstock.stages.export import ExportSettings

CALIBRATION_BATCH = 32
SELECT_BATCH = 200


@dataclass(frozen=True, slots=True)
class Result:
    """What was trained and written. Accuracies are top-1 on the select role, in [0, 1], of the same samples."""

    converted: Converted
    fitted: Fitted
    trained_samples: int
    select_samples: int
    float_accuracy: float
    accuracy: float  # of the int8 model in ONNX Runtime
    interval: tuple[float, float]  # Wilson, 95 %
    agreement: Agreement  # of the int8 model with the module that was trained
    notes: tuple[str, ...]


def run(
    source: str, output: str | Path, data: DataSettings, settings: QatSettings | None = None,
    recipe: Recipe | None = None, *, export: ExportSettings | None = None, weights: str = "", seed: int = 0,
    threads: int = 0, float_output: str | Path | None = None, checkpoint: str | Path | None = None,
    progress: Progress = SILENT,
) -> Result:  # fmt: skip
    """Train ``source`` on the training samples that no role judges by, and write the int8 model to ``output``.

    The golden set, the select role and the evaluate role are never trained on; select chooses the best state.
    ``threads`` are torch's; 0 leaves it its own number. Raises ``UsageError`` without labelled data and where a result
    would be written over what is read, ``InputError`` for what can't be exported, quantized or trained.
    """
    settings, recipe = settings or QatSettings(), recipe or Recipe()
    outputs.keep_apart(
        {"-o": output, "--float-output": float_output, "--checkpoint": checkpoint},
        {"the source that is read": source, "the weights that are read": weights, "the data that is read": data.data},
    )
    if not data.data:
        raise UsageError("no-data", "training needs labelled data", do="give it with --data")
    dataset = datasets.find(data.data, data, progress)
    if dataset.train.labels is None:
        raise UsageError("no-labels", f"{data.data} has no labels to train and to choose by", do="give labelled data")
    if dataset.whole:
        what = f"{data.data} gives the whole of what a run reads, and training takes samples in batches"
        raise InputError("data-does-not-fit", what, do="yield batches with the samples along the first axis")
    need_images(dataset.train, recipe, channels_last=dataset.preprocessing.layout == "NCHW")
    with store.scratch() as work:
        path, named = _exported(source, weights, export or ExportSettings(), dataset, work, progress)
        signature = graph.signature(graph.load(path))
        roles = feeds.from_data(dataset, signature, data, seed)
        _need_classes(signature, roles, dataset)
        if path.suffix == ".onnx" and Path(source).suffix == ".onnx":
            trial.survive(path, [roles.calibrate.first(1)], source)
        progress.begin("calibrate", f"{roles.calibrate.count} samples")
        samples = calibration.of_feeds(roles.calibrate, CALIBRATION_BATCH, golden=roles.golden)
        try:
            calibration.check(samples)
            prepared = prepare_model(path, samples, settings, named=named)
        except InputError as error:
            raise calibration.explained(error, source, samples) from error.__cause__
        progress.end(f"{len(prepared.placement.weights)} layers on integers, {prepared.calibration_samples} samples")
    rows = _rows(dataset, signature, data, seed, recipe)
    assert roles.select is not None
    select = _labelled(roles.select)
    with _threads(threads):
        fitted = fit(prepared, rows, recipe, select=select, seed=seed, checkpoint=checkpoint, progress=progress)
    progress.begin("convert", str(output))
    converted = convert(prepared, output, float_output=float_output)
    progress.end(str(output))
    progress.begin("agree", f"{roles.select.count} samples")
    same = agreement(prepared, output, select)
    progress.end(f"{same.top1:.2%} of {same.samples} samples as the trained module")
    assert same.right is not None and same.right_float is not None
    return Result(
        converted, fitted, len(rows.split), same.samples, same.right_float / same.samples, same.right / same.samples,
        intervals.wilson(same.right, same.samples), same, (*prepared.notes, *_notes(dataset)),
    )  # fmt: skip


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch have so many threads in here; 0 leaves it its own."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _exported(
    source: str, weights: str, settings: ExportSettings, dataset: Dataset, work: Path, progress: Progress
) -> tuple[Path, frozenset[str]]:
    """Return the float model, and which of its initializers are a module's parameters. A file serves as it is."""
    progress.begin("export", source)
    found = Source(source, weights)
    name, _ = export_stage.frontend(found)
    if name == "onnx":
        progress.end(source)
        return Path(source), frozenset()
    export_stage.export(found, settings, work / "model.onnx", dataset.example())
    named: frozenset[str] = frozenset()
    if name == "torch":
        named = frozenset(key for key, _ in frontend.load_module(found).module.named_parameters())
    progress.end(source)
    return work / "model.onnx", named


def _need_classes(signature: Signature, roles: RoleFeeds, dataset: Dataset) -> None:
    if not feeds.has_classes(signature):
        what = f"the output {signature.outputs[0].text()} holds no logits of classes, and the given loop trains those"
        do = "train in a loop of your own in Python: penstock.qat.prepare gives the module"
        raise InputError("no-classes", what, do=do)
    feeds.check_classes(roles, signature, dataset.name)
    if roles.select is None:
        what = f"{dataset.name} leaves no samples to choose the best state on"
        raise InputError("too-few-samples", what, do="give --select-samples above 0, and more data")


def _rows(dataset: Dataset, signature: Signature, data: DataSettings, seed: int, recipe: Recipe) -> Rows:
    index = feeds.training_rows(dataset, data, seed)
    names = feeds.names(dataset.train, signature, dataset.name)
    key = store.digest_of([dataset.digest, hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()])
    return Rows(dataset.train.take(index), dataset.preprocessing, names, recipe, seed, key)


def _labelled(role: Feeds) -> list[dict[str, np.ndarray]]:
    """Return the batches of a role with their labels."""
    assert role.labels is not None
    found, start = [], 0
    for count, batch in role.batches(SELECT_BATCH):
        if count != len(next(iter(batch.values()))):
            continue  # the last of a fixed batch, filled up by repetition
        found.append({**batch, user.LABELS: role.labels[start : start + count]})
        start += count
    return found


def _notes(dataset: Dataset) -> tuple[str, ...]:
    if dataset.evaluate is not None:
        return ()
    what = "only the calibration samples were trained on, the rest judges"
    return (f"{dataset.name} has no test set of its own: {what}",)
