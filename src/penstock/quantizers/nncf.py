"""Static int8 through NNCF's post-training quantization, with NNCF's own defaults.

NNCF takes samples one at a time: by default a range is the mean over samples of what each one reaches, so a batch given
as one item would count as one sample. What is added to the library: models below opset 13 are brought to 13 first (it
gives one scale a tensor below that), nodes without a name get one, its telemetry stays off, and nothing is printed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import graph
from penstock.errors import InputError, UsageError
from penstock.graph import first_line
from penstock.quantizers import ort

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from penstock.jsonable import Json
    from penstock.stages.quantize import QuantizeSettings

READS = frozenset({"consumer", "activations", "format", "quantize_outputs", "per_channel", "target_cpu"})
_UNSERVED = {
    "integer-only": "it leaves what it has no integers for in float",
    "tensorrt": "TensorRT takes symmetric int8 activations alone",
}
INSTALL = "pip install 'penstock[nncf]'"


def available() -> str:
    """Return "" when NNCF imports here."""
    try:
        with _quiet():
            import nncf  # noqa: F401  # imported to see whether it loads
    except Exception as error:  # a broken wheel raises more than ImportError
        return f"{INSTALL} ({first_line(error)})"
    return ""


def quantize(
    model: Path, batches: Iterable[Mapping[str, np.ndarray]], settings: QuantizeSettings, into: Path
) -> Mapping[str, Json]:
    """Quantize ``model``; see :class:`penstock.quantizers.Quantizer`."""
    import onnx_ir as ir

    from penstock.quantization import finite, prepare, saturation

    need(settings)
    loaded = graph.load(model)
    opset = loaded.opset_imports.get("")
    graph.inline(loaded)  # the library looks into no function
    ort._refuse_hopeless(loaded, model)
    finite.check(loaded, model)
    converted = prepare.raised(loaded, prepare.OPSET, model)
    prepare.named(converted)
    exclude = sorted(prepare.known_names(converted, settings.exclude))
    ir.external_data.load_to_model(converted)
    # it takes the first import for the standard's
    imports = {"": converted.opset_imports[""]} | dict(converted.opset_imports)
    converted.opset_imports.clear()
    converted.opset_imports.update(imports)
    samples = _Samples(batches, split=graph.signature(loaded).fixed_batch in (None, 1))
    with _quiet():
        import nncf

        options, version = _options(settings, exclude), f"nncf {nncf.__version__}"
        try:
            # subset_size: its default, 300, would leave samples out
            quantized = nncf.quantize(
                ir.to_proto(converted), nncf.Dataset(samples), subset_size=max(samples.count, 1), **options
            )
        except Exception as error:  # the library raises many types, all about this model
            what = f"NNCF can't quantize this model: {first_line(error)}"
            raise InputError("cannot-quantize", what, where=str(model), do="choose --method static") from error
    result = ir.from_proto(quantized)
    bits = saturation.bits(settings.target_cpu)
    left = sorted({n.op_type for n in result.graph.all_nodes() if n.op_type in ort._HEAVY and not _is_quantized(n)})
    grids = [node.inputs[2] for node in result.graph if node.op_type == "QuantizeLinear" and len(node.inputs) > 2]
    types = sorted({graph.dtype_name(grid) for grid in grids if grid is not None})
    graph.tidy(result)
    graph.save(result, into)
    return {
        "method": "static", "format": "QDQ", "calibration": "mean of each sample's range", "library": version,
        "calibration_batch": samples.size, "calibration_samples": samples.count,
        "activations": ", ".join(types), "weights": "int8", "per_channel": settings.per_channel,
        "target_cpu": settings.target_cpu, "weight_bits": bits,
        "notes": [saturation.unmeasured(settings.target_cpu)] if bits < 8 else [],
        "opset_raised_from": opset if converted is not loaded else None, "operators_left_in_float": list(left),
    }  # fmt: skip


def need(settings: QuantizeSettings) -> None:
    """Raise ``UsageError`` for settings that the library isn't asked for here."""
    if settings.consumer in _UNSERVED:
        what = f"the method 'nncf' can't serve {settings.consumer!r}: {_UNSERVED[settings.consumer]}"
        raise UsageError("wrong-consumer", what, where="--consumer", do="choose --method static")
    wrong = {
        "--activations": ("NNCF chooses the type of activations itself", settings.activations),
        "--format": ("NNCF writes pairs of QuantizeLinear and DequantizeLinear", settings.format != "qdq"),
        "--quantize-outputs": ("NNCF decides itself which results it quantizes", settings.quantize_outputs),
    }
    for flag, (what, is_wrong) in wrong.items():
        if is_wrong:
            do = f"leave {flag} out, or choose another --method"
            raise UsageError("cannot-serve", what, where=flag, do=do)


def _options(settings: QuantizeSettings, exclude: list[str]) -> dict[str, Any]:
    """Say the settings in the library's words; what isn't set stays its default."""
    from nncf import AdvancedQuantizationParameters, IgnoredScope
    from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters

    from penstock.quantization import saturation

    advanced = AdvancedQuantizationParameters()
    if saturation.lacks_vnni(settings.target_cpu):
        advanced.overflow_fix = OverflowFix.ENABLE  # by default it is the first layers alone whose sums can't overflow
    if not settings.per_channel:
        advanced.weights_quantization_params = QuantizationParameters(per_channel=False)
    scope = {"ignored_scope": IgnoredScope(names=exclude)} if exclude else {}
    return {"advanced_parameters": advanced, **scope}


class _Samples:
    """The library's data source over batches: one sample an item, as often as it likes to go through them."""

    def __init__(self, batches: Iterable[Mapping[str, np.ndarray]], *, split: bool) -> None:
        # it reads them several times, which a generator can't give
        self._batches = list(batches) if iter(batches) is batches else batches
        self._split = split
        self.count = self.size = 0
        for one in self:
            self.count += 1
            self.size = max(self.size, *(len(array) for array in one.values() if array.ndim), 1)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for feeds in self._batches:
            lengths = {len(array) for array in feeds.values() if array.ndim}
            if not self._split or len(lengths) != 1:
                yield dict(feeds)
                continue
            for row in range(lengths.pop()):
                yield {name: array[row : row + 1] if array.ndim else array for name, array in feeds.items()}

    def __len__(self) -> int:
        return self.count


def _is_quantized(node: ir.Node) -> bool:
    """Whether an input is dequantized: a weight always is, the activation may come through a pooling."""
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from sending telemetry, printing its progress, and setting the class of everyone's loggers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it takes a stub then
    disabled, logger_class = logging.root.manager.disable, logging.getLoggerClass()
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.setLoggerClass(logger_class)
