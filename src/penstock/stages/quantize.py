"""Quantize: from a float model and calibration data to an int8 model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import apart, calibration, precheck, registry
from penstock import settings as declared
from penstock.errors import InputError, MissingError, UsageError
from penstock.settings import option

if TYPE_CHECKING:
    import numpy as np

    from penstock.jsonable import Json
    from penstock.quantizers import Quantizer


CONSUMERS = ("ort-cpu", "openvino", "integer-only", "tensorrt")
ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
TARGET_CPUS = ("host", "vnni", "avx512", "avx2")
FORMATS = ("qdq", "qoperator")
CALIBRATIONS = ("auto", "random")
ROUNDINGS = ("gptq", "hqq", "rtn")
ZERO_POINTS = ("none", "integer", "float")
WEIGHT_FORMATS = ("standard", "matmulnbits")
LEAST_TOLD = 1 << 16  # bytes below which nobody minds a larger file
SHARED = frozenset(
    {"quantize", "method", "also_methods", "exclude", "calibration", "calibration_batch"}
)  # no method's own
RANGES = ("minmax", "moving-average", "percentile", "entropy", "mse")


@dataclass(frozen=True, slots=True)
class QuantizeSettings:
    """How a model is quantized."""

    quantize: bool = option(True, "make quantized variants", flag="--quantize/--no-quantize")
    method: str = option("static", "quantization method, see `penstock list quantizers`")
    also_methods: tuple[str, ...] = option((), "further methods, of each of which a build makes a variant")
    consumer: str = option("ort-cpu", "what will run it: decides which tensors are quantized", choices=CONSUMERS)
    activations: str = option("", "type of activations (default: the consumer's own)", choices=("", *ACTIVATIONS))
    ranges: str = option("auto", "how ranges are chosen from what calibration saw", choices=("auto", *RANGES))
    percentile: float = option(
        99.99, "share of the values in per cent that `--ranges percentile` keeps", minimum=50, maximum=100
    )
    equalize: bool = option(True, "scale channels against each other where one grid doesn't fit them all")
    smooth: bool = option(True, "the same through normalizations, for transformers (SmoothQuant)")
    correct_bias: str = option(
        "analytic", "take back in the biases what rounding the weights adds", choices=("none", "analytic", "empirical")
    )
    guard: bool = option(True, "leave layers in float that by themselves make most of the error at the output")
    rounding: str = option(
        "auto", "how weights are rounded (auto: adaptive, where there is data)", choices=("auto", "nearest", "adaptive")
    )
    format: str = option(
        "qdq", "pairs of QuantizeLinear and DequantizeLinear, or operators on integers", choices=FORMATS
    )
    per_channel: bool = option(True, "one scale per output channel of a weight", flag="--per-channel/--per-tensor")
    quantize_outputs: bool = option(False, "quantize the result of the last layer too, which clips it")
    force_small: bool = option(False, "with `--method dynamic`: quantize layers that are too small to gain by it too")
    force_conv: bool = option(False, "with `--method dynamic`: quantize convolutions too, which makes them slower")
    sensitivity: float = option(
        0.0, "seconds to measure what quantizing each layer alone does to the output (0: not at all)", minimum=0.0
    )
    target_cpu: str = option("host", "CPU that will run it: without VNNI weights keep to 7 bits", choices=TARGET_CPUS)
    calibration: str = option(
        "auto",
        "without data: inputs that meet the model's BatchNorm statistics where it has any, or random ones",
        choices=CALIBRATIONS,
    )
    calibration_batch: int = option(32, "samples per calibration batch, where the model's batch is dynamic", minimum=1)
    exclude: tuple[str, ...] = option((), "nodes to leave in float, by name; `*` stands for anything")
    int16_layers: tuple[str, ...] = option(
        (), "with `--method static`: layers whose activations get 16 bits, by name; `*` stands for anything"
    )
    # weight-only
    weight_bits: int = option(4, "weight-only: bits of a weight, 4 or 8", minimum=4)
    block_size: int = option(32, "weight-only: inputs that share a scale, a power of two from 16; 0: all", minimum=0)
    weight_rounding: str = option("gptq", "weight-only: how weights are rounded", choices=ROUNDINGS)
    zero_points: str = option("none", "weight-only: what stands for zero beside a scale", choices=ZERO_POINTS)
    weight_format: str = option(
        "standard", "weight-only: ONNX's DequantizeLinear, or ONNX Runtime's MatMulNBits", choices=WEIGHT_FORMATS
    )
    least_weights: int = option(256, "weight-only: matrices of fewer weights stay in float", minimum=0)
    embeddings: bool = option(False, "weight-only: store tables of embeddings too, in 8 bits with a scale for each row")
    int8_activations: bool = option(False, "weight-only: let MatMulNBits round activations to int8, which is faster")
    half_compute: bool = option(
        True, "fp16, bf16: compute in 16 bits, not only store the weights so", flag="--half-compute/--half-storage"
    )
    half_margin: float = option(2.0, "fp16, bf16: how many times larger values may be than on the samples", minimum=1)


def changed(settings: QuantizeSettings) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    return [field.name for field in fields(settings) if getattr(settings, field.name) != field.default]


def need_read(asked: Collection[str], methods: Collection[str]) -> None:
    """Raise ``UsageError`` where a setting is asked for that none of the methods reads."""
    held = {name: getattr(registry.load("quantizers", name), "READS", None) for name in methods}
    if None in held.values():  # a third party's method, that doesn't say what it reads
        return
    for name in asked:
        if name in SHARED or any(name in (reads or ()) for reads in held.values()):
            continue
        flag, theirs = _flag(name), [one for one in registry.names("quantizers") if name in _reads(one)]
        what = f"{flag} has no effect with {' and '.join(f'--method {one}' for one in methods)}"
        do = f"leave it out, or choose a method that reads it: {', '.join(theirs)}"
        raise UsageError("cannot-serve", what, where=flag, do=do)


def need_effect(asked: Collection[str], settings: QuantizeSettings, *, data: bool) -> None:
    """Raise ``UsageError`` where a setting is asked for that others leave without effect; ``data``: there is some."""
    from penstock.quantization import saturation

    ranges, consumer, activations = settings.ranges, settings.consumer, settings.activations
    static = settings.method == "static"
    eight = static and not saturation.reads_target(consumer, activations)
    idle = {
        "percentile": (static and ranges != "percentile", f"with --ranges {ranges}", "add --ranges percentile"),
        "target_cpu": (eight, f"with --consumer {consumer}" + f" and --activations {activations}" * bool(activations),
                       "choose another --consumer, or activations of 8 bits"),
        "calibration": (data and settings.calibration == "random", "with --data: it says what is made up without any",
                        "leave --data out"),
    }  # fmt: skip
    for name, (is_idle, where, instead) in idle.items():
        if name in asked and is_idle:
            flag = _flag(name)
            what = f"{flag} has no effect {where}"
            raise UsageError("bad-setting", what, where=flag, do=f"leave it out, or {instead}")


def _reads(name: str) -> Collection[str]:
    """Return what one of our own methods reads; a third party's isn't imported to be offered."""
    if name in registry.origins("quantizers"):
        return ()
    return cast("Collection[str]", getattr(registry.load("quantizers", name), "READS", ()))


def _flag(name: str) -> str:
    return next((field.flag for field in declared.fields("quantize") if field.name == name), name)


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Write the quantized model to the file ``into``; return facts for the record.

    ``batches`` are calibration feeds, best :class:`penstock.calibration.Batches`, which can be gone through again.
    Raises ``InputError`` for a model that can't be quantized.
    """
    from penstock.quantization import notices

    name = settings.method
    method = cast("Quantizer", registry.load("quantizers", name))
    batches = batches if isinstance(batches, calibration.Batches) else calibration.of_list(batches)
    if apart.foreign("quantizers", name):
        if getattr(method, "NEEDS_SAMPLES", True):
            calibration.check(batches)
            notices.hold_scale(model, batches)
        facts = dict(apart.quantize(name, model, batches.whole(), settings, into))
        return _noted(calibration.accounted(facts, batches), model, batches, settings, into)
    facts = quantize_with(method, model, batches, settings, into)
    if not into.is_file():
        what, do = f"the quantizer {name!r} wrote no model", "tell its authors, or choose another: --method"
        raise InputError("plug-in-failed", what, where=str(model), do=do)
    return _noted(calibration.accounted(facts, batches), model, batches, settings, into)


def _noted(
    facts: dict[str, Json], model: Path, batches: calibration.Batches, settings: QuantizeSettings, into: Path
) -> dict[str, Json]:
    """Return a quantizer's facts with its layers, notes of what is odd about its result, and about a user's samples."""
    from penstock.quantization import notices, written

    if "layers" not in facts:
        facts = {**facts, "layers": written.layers(into, str(facts.get("library") or settings.method))}
    if larger := _larger(model, into):
        facts = {**facts, "notes": [*cast("list[Json]", facts.get("notes") or []), larger]}
    if not facts.get("calibration_samples") or batches.description.get("kind") == "seeded":
        return facts
    notes = cast("list[Json]", facts.get("notes") or [])
    return {**facts, "notes": [*notes, *notices.of_samples(model, batches)]}


def _larger(model: Path, into: Path) -> str:
    """Say by how much the result is larger than the model, "" where it is smaller."""
    made, before = into.stat().st_size, model.stat().st_size
    if made <= before or made < LEAST_TOLD:
        return ""
    before += sum(path.stat().st_size for path in precheck.check(model, weights=False).external)
    if made <= before:
        return ""
    what = f"the result is larger than the model: {made:,} bytes, {before:,} before"
    return f"{what}; its weights are few beside what scales and pairs of Q/DQ take"


def needs_samples(name: str) -> bool:
    """Tell whether a method looks at calibration samples. Raises what its import does."""
    return bool(getattr(registry.load("quantizers", name), "NEEDS_SAMPLES", True))


def quantize_with(
    method: Quantizer, model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> dict[str, Json]:
    """Quantize by a method that was found, in this process. Raises ``MissingError`` where it can't run here."""
    from penstock.quantization import notices

    name = settings.method
    if settings.int16_layers and name != "static":
        what = f"{name!r} can't give single layers 16 bits"
        raise UsageError("cannot-serve", what, where="--int16-layers", do="leave it out, or use --method static")
    with registry.blamed("quantizers", name):
        if problem := method.available():
            raise MissingError("missing-extra", f"the quantizer {name!r} can't run here", do=problem)
        if getattr(method, "NEEDS_SAMPLES", True):
            calibration.check(batches)
            if isinstance(batches, calibration.Batches):
                notices.hold_scale(model, batches)
        try:
            return dict(method.quantize(model, batches, settings, into) or {})
        except InputError as error:
            instead = "choose a method that runs nothing: --method dynamic"
            raise calibration.explained(error, model, batches, instead) from error.__cause__
