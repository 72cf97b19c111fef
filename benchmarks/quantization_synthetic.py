"""What calibrating without data is worth: made-up samples against real ones, in dB at the output on real data.

python benchmarks/quantization_synthetic.py [--models NAME,…] [--seeds 0,1000,2000] [--page FILE]

Nets are exported raw, so that their BatchNormalizations are there; each is quantized by ``--method static`` on as many
samples as Penstock makes up without data, real ones too. "random, wider" has the headroom of synthetic samples alone.
Real data evaluates: CIFAR-10's test part, enlarged to what a shared model takes. Of several outputs the worst counts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import optimizer_tables
import quantization_data as data
import quantization_nets as nets
from quantization_tools import decibels, run, session

from penstock import api, calibration, store, synthetic_feeds
from penstock.data import DataSettings
from penstock.feeds import Feeds
from penstock.stages.export import ExportSettings
from penstock.stages.quantize import QuantizeSettings, quantize
from penstock.store import Cache

NETS = ("cifar10", "resnet18", "mobilenetv2", "senet")
SCALED = "resnet18, inputs 0 to 255"
SHARED = ("ultraface-rfb-320",)
WAYS = ("real", "random", "random, wider", "synthetic")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=";".join((*NETS, SCALED, *SHARED)), help="these alone, by semicolons")
    parser.add_argument("--seeds", default="0,1000,2000", help="of made-up samples and of the deal of real ones")
    parser.add_argument("--page", type=Path, help="write the table between the marks in this file")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    rows = [["model", *WAYS, "means off: random, synthetic", "deviations off"]]
    for name in asked.models.split(";"):
        found = [measured(name, seed) for seed in seeds]
        told = [one[1] for one in found]
        cells = [span([one[0][way] for one in found]) for way in WAYS]
        off = [", ".join(f"{np.mean([one[kind][key] for one in told]):.2f}" for kind in ("random", "made"))
               for key in ("mean_off", "deviation_off")] if all(told) else ["–", "–"]  # fmt: skip
        rows.append([name, *cells, *off])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    text = optimizer_tables.table(f"Calibrating without data ({optimizer_tables.today()})", rows)
    print(text)
    if asked.page:
        optimizer_tables.put_into(asked.page, "quantization-synthetic", text)
    return 0


def span(found: list[float]) -> str:
    """Show the mean of some figures, with the least and the greatest."""
    return f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else f"{found[0]:.1f}"


def measured(name: str, seed: int) -> tuple[dict[str, float], Mapping[str, Mapping[str, float]]]:
    """Quantize a model in all ways; return dB by way, and how near the samples came to the statistics."""
    path, real, tests = case(name)
    reference = [run(session(path), feeds) for feeds in tests]
    made_up = api.role_feeds(path, DataSettings(), seed)
    with store.scratch() as work:
        fitted = synthetic_feeds.of_model(path, made_up, DataSettings(), seed, Cache(work / "cache"))
        count = fitted.calibrate.count
        given = api.role_feeds(path, DataSettings(data=str(real), calibrate=count, golden=count), seed)
        batches = {
            "real": of(given.calibrate), "random": of(made_up.calibrate), "synthetic": of(fitted.calibrate),
            "random, wider": replace(of(made_up.calibrate), description={"statistics": {}}),
        }  # fmt: skip
        levels = {}
        for way, samples in batches.items():
            into = work / "quantized.onnx"
            quantize(path, samples, QuantizeSettings(), into)
            quantized = session(into)
            found = decibels(reference, (run(quantized, feeds) for feeds in tests))
            levels[way] = min(found.values(), default=-math.inf)
    return levels, fitted.calibrate.description.get("statistics", {})


def of(feeds: Feeds) -> calibration.Batches:
    """Return samples in batches as the command line has them."""
    return calibration.of_feeds(feeds, 32)


def case(name: str) -> tuple[Path, Path, list[dict[str, np.ndarray]]]:
    """Return a model, the file of real samples to calibrate on, and those to evaluate on."""
    if name in SHARED:
        shared = data._shared(name, data.MODELS / name / "model.onnx")
        assert shared.data is not None
        return shared.model, shared.data, list(shared.evaluation())
    net = "resnet18" if name == SCALED else name
    raw = nets.BUILD / f"{net}-raw.onnx"
    if not raw.exists():
        settings = ExportSettings(input=("x:float32[batch,3,32,32]",), raw=True)
        api.export(f"{Path(nets.__file__).resolve()}:{net}", raw, settings)
    images = nets.pixels("train", 2048)[0]
    path = nets.BUILD / f"synthetic-{net}{'-scaled' if name == SCALED else ''}.npz"
    tests = nets.pixels("test", 1000)[0]
    prepare = (lambda x: x.astype(np.float32)) if name == SCALED else nets.normalised
    if not path.exists():
        data._save(path, {"x_train": prepare(images)})
    model = scaled(raw) if name == SCALED else raw
    return model, path, [{"x": prepare(tests[start : start + 100])} for start in range(0, len(tests), 100)]


def scaled(raw: Path) -> Path:
    """Return the net with what brings pixels from 0 to 255 into its form put before it."""
    import onnx
    from onnx import helper, numpy_helper

    path = raw.with_name(f"{raw.stem}-scaled.onnx")
    model = onnx.load(raw)
    held = {"px_mean": np.array(nets.MEAN, np.float32) * 255, "px_std": np.array(nets.STD, np.float32) * 255}
    for node in model.graph.node:
        node.input[:] = ["px_normalised" if read == "x" else read for read in node.input]
    model.graph.initializer.extend(numpy_helper.from_array(one.reshape(1, 3, 1, 1), key) for key, one in held.items())
    first = [helper.make_node("Sub", ["x", "px_mean"], ["px_centred"], "px_centre"),
             helper.make_node("Div", ["px_centred", "px_std"], ["px_normalised"], "px_normalise")]  # fmt: skip
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
