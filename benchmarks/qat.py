"""Quantization-aware training of the reference network: how the int8 model agrees with the module, and what choices do.

python benchmarks/qat.py --data cifar-10-batches-bin [--part agreement|choices] [--samples 12800] [--checkpoint FILE]

`agreement` trains as docs/qat.md says (two epochs, flips and crops of 4), writes the int8 model, and holds it in ONNX
Runtime against the module on the whole test set; then it counts the integers that the module has otherwise in float64
on the first 200 images. `choices` trains on the first --samples training rows under one other setting each and looks at
the select role. Prints tables in Markdown. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from penstock import api, calibration, datasets, feeds, graph, qat
from penstock.data import DataSettings
from penstock.feeds import Feeds
from penstock.qat.rows import Rows

RECIPE = qat.Recipe(flip=True, crop=4)
SCALES, LABELS = qat.QatSettings(scales="fixed"), qat.Recipe(flip=True, crop=4, distill=0.0, learning_rate=0.002)
COARSE = qat.QatSettings(per_channel=False, ranges="minmax")
CHOICES: dict[str, tuple[qat.QatSettings, qat.Recipe]] = {
    "default": (qat.QatSettings(), qat.Recipe()),
    "`--scales fixed`": (SCALES, qat.Recipe()),
    "`--learning-rate 0.001`": (qat.QatSettings(), qat.Recipe(learning_rate=0.001)),
    "`--learning-rate 0.02`": (qat.QatSettings(), qat.Recipe(learning_rate=0.02)),
    "`--flip --crop 4`": (qat.QatSettings(), RECIPE),
    "`--flip --crop 4 --distill 0 --learning-rate 0.002`": (qat.QatSettings(), LABELS),
    "`--per-tensor --ranges minmax`": (COARSE, qat.Recipe()),
    "`--per-tensor --ranges minmax --scales fixed`": (replace(COARSE, scales="fixed"), qat.Recipe()),
}


class Bench:
    """The float model, the data in its roles, and the training rows."""

    def __init__(self, folder: str, work: Path) -> None:
        settings = DataSettings(folder)
        self.dataset = datasets.find(folder, settings)
        self.model = work / "fp32.onnx"
        api.export("zoo:cifar10", self.model)
        signature = graph.signature(graph.load(self.model))
        self.roles = feeds.from_data(self.dataset, signature, settings, 0)
        self.index = feeds.training_rows(self.dataset, settings, 0)

    def prepared(self, settings: qat.QatSettings) -> qat.Prepared:
        return qat.prepare_model(self.model, calibration.of_feeds(self.roles.calibrate, 32), settings)

    def rows(self, recipe: qat.Recipe, samples: int = 0) -> Rows:
        split = self.dataset.train.take(self.index[:samples] if samples else self.index)
        return Rows(split, self.dataset.preprocessing, {"": "x"}, recipe, 0, self.dataset.digest)


def labelled(role: Feeds | None) -> Iterator[dict[str, np.ndarray]]:
    assert role is not None and role.labels is not None
    start = 0
    for count, batch in role.batches(200):
        yield {**batch, "labels": role.labels[start : start + count]}
        start += count


def choices(bench: Bench, samples: int) -> None:
    select = list(labelled(bench.roles.select))
    print("| | distance before | after | as the float model |\n|---|---|---|---|")
    for name, (settings, recipe) in CHOICES.items():
        done = qat.fit(bench.prepared(settings), bench.rows(recipe, samples), recipe, select=select)
        first, last = done.epochs[0], done.epochs[-1]
        assert first.distance is not None and last.distance is not None and last.agreement is not None
        print(
            f"| {name} | {1e4 * first.distance:.1f}e-4 | {1e4 * last.distance:.1f}e-4 | {last.agreement:.2%} |",
            flush=True,
        )


def agreement(bench: Bench, work: Path, checkpoint: str | None) -> None:
    prepared = bench.prepared(qat.QatSettings())
    qat.fit(prepared, bench.rows(RECIPE), RECIPE, select=labelled(bench.roles.select), checkpoint=checkpoint)
    qat.convert(prepared, work / "int8.onnx")
    test = list(labelled(bench.roles.evaluate))
    same = qat.agreement(prepared, work / "int8.onnx", test, threads=1)
    print(f"{same.samples:,} test images: right {same.right:,} in ONNX Runtime, {same.right_module:,} in the module, "
          f"{same.right_float:,} the float network; the same top-1 on {same.top1:.2%} (the module in float64: "
          f"{same.exact_top1:.2%}); {same.equal:.1%} of the logits equal, the others "
          f"{same.step:.4f} apart in the mean, {same.largest:.3f} at most")  # fmt: skip
    x = torch.from_numpy(test[0]["x"])
    ours = integers(prepared.module, x)
    exact = integers(copy.deepcopy(prepared.module).double(), x.double())
    print("\n| grid | integers | differ from float64 | at most by |\n|---|---|---|---|")
    for name, values in ours.items():
        gap = (values.double() - exact[name]).abs()
        print(f"| {name} | {gap.numel():,} | {int((gap > 0).sum()):,} | {int(gap.max())} |")


def integers(module: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what each grid gives, in steps of it."""
    found: dict[str, torch.Tensor] = {}

    def hook(name: str):
        def keep(grid: torch.nn.Module, _: object, made: torch.Tensor) -> None:
            found[name] = (made / grid.effective()[0]).round()

        return keep

    handles = [grid.register_forward_hook(hook(name)) for name, grid in module.grids.items()]
    with torch.no_grad():
        module(x)
    for handle in handles:
        handle.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar-10-batches-bin")
    parser.add_argument("--part", choices=("agreement", "choices", "both"), default="both")
    parser.add_argument("--samples", type=int, default=12_800)
    parser.add_argument("--checkpoint", default=None)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(words.data, Path(folder))
        if words.part != "choices":
            agreement(bench, Path(folder), words.checkpoint)
        if words.part != "agreement":
            choices(bench, words.samples)


if __name__ == "__main__":
    main()
