"""From settings to a study: the model prepared and balanced, its samples, and where statistics are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock import graph, store
from penstock.calibration import Batches
from penstock.errors import UsageError
from penstock.quantization import balance, integers_alone, outliers, prepare, saturation, wide
from penstock.quantization.consumers import CONSUMERS
from penstock.quantization.shelf import Shelf
from penstock.quantization.study import Choice, Study
from penstock.quantization.synthetic import HEADROOM
from penstock.store import digest_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from penstock.stages.quantize import QuantizeSettings

SOME = 128  # samples that tell how channels stand to each other
WIDE = ("int16", "uint16")
WIDE_OPSET = 21  # the first whose QuantizeLinear knows 16 bits


def of_settings(settings: QuantizeSettings) -> Choice:
    """Return what the settings choose. Raises ``UsageError`` for what their consumer can't be served with."""
    table = CONSUMERS[settings.consumer]
    if settings.activations and settings.activations not in table.activations:
        what = f"{table.name} takes activations of {', '.join(table.activations)}, not {settings.activations}"
        raise UsageError("wrong-consumer", what, where="--activations", do="choose one of them, or another --consumer")
    if settings.format == "qoperator" and settings.consumer != "ort-cpu":
        what = f"operators such as QLinearConv are ONNX Runtime's way; {table.name} reads Q/DQ pairs"
        raise UsageError("wrong-consumer", what, where="--format", do="leave --format out, or use --consumer ort-cpu")
    if settings.format == "qoperator" and settings.activations in WIDE:
        what = f"operators such as QLinearConv take 8 bits, not {settings.activations}"
        raise UsageError("bad-setting", what, where="--format", do="leave --format out, or --activations")
    if settings.int16_layers:
        _widen(settings)
    hazard = saturation.reads_target(table.name, settings.activations or table.activations[0])
    narrow = hazard and saturation.lacks_vnni(settings.target_cpu)
    return Choice(
        settings.consumer, settings.activations, settings.ranges, settings.percentile, settings.per_channel,
        weight_bits=saturation.SAFE_BITS if narrow else 8,
        outputs=settings.quantize_outputs, equalize=settings.equalize, smooth=settings.smooth,
        correct_bias=settings.correct_bias, rounding=settings.rounding, exclude=settings.exclude,
        int16_layers=settings.int16_layers,
    )  # fmt: skip


def _widen(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` where single layers of 16 bits can't be served."""
    table, flag = CONSUMERS[settings.consumer], wide.FLAG
    narrow = settings.activations or table.activations[0]
    if narrow in WIDE:
        what = f"all activations are {narrow} already"
        raise UsageError("bad-setting", what, where=flag, do=f"leave out --activations, or {flag}")
    if wide.TYPES[narrow] not in table.activations:
        what = f"{table.name} takes activations of {', '.join(table.activations)}: no layer can have 16 bits"
        do = "leave the layers in float (--exclude), or choose another --consumer"
        raise UsageError("wrong-consumer", what, where=flag, do=do)
    if settings.format == "qoperator":
        what = "operators such as QLinearConv take 8 bits: no layer can have 16"
        raise UsageError("bad-setting", what, where="--format", do=f"leave out --format, or {flag}")


def studied(path: Path, samples: Batches, choice: Choice) -> tuple[Study, list[balance.Balanced]]:
    """Prepare a model, balance it where the choice says so, and return its study. Raises ``InputError``."""
    opset = WIDE_OPSET if choice.dtype in WIDE or choice.int16_layers else prepare.OPSET
    model = prepare.prepared(path, opset=opset, exclude=choice.exclude)
    if choice.table.everything:
        integers_alone.check(model, Study(model, samples).placed(choice), path)
    found = outliers.find(samples)
    cleaned = outliers.without(samples, found)
    done = []
    if choice.equalize or choice.smooth:
        done = balance.balance(model, cleaned.some(SOME), layers=choice.equalize, normalizations=choice.smooth)
    full = choice.ranges in ("minmax", "moving-average")  # they are asked for as they are
    seen = samples if full else cleaned
    shelf = None
    if seen.cache is not None and seen.description:
        shelf = Shelf(seen.cache, digest(model), digest_of([dict(seen.description), seen.size]))
    headroom = HEADROOM if "statistics" in samples.description else 1.0
    study = Study(model, seen, shelf=shelf, cleaned=cleaned, headroom=headroom)
    study.notes += [] if full else [one.text for one in found]
    if choice.int16_layers:
        wide.check(study.placed(choice), choice.int16_layers)
    return study, done


def digest(model: ir.Model) -> str:
    """Return the digest of a model in memory."""
    with store.scratch() as work:
        graph.save(model.clone(), work / "model.onnx")
        return digest_of([store.file_digest(path) for path in sorted(work.iterdir())])
