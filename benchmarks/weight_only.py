"""Weight-only quantization beside ONNX Runtime's own quantizer: the same layers, blocks of the same length.

python benchmarks/weight_only.py [--nets build/quantization] [--block-size 32] [--models GLOB] [--page FILE]

Each model is quantized by Penstock and by ``onnxruntime.quantization.matmul_nbits_quantizer``, on the same calibration
samples where one takes any; SQNR is of the first output on other samples, in ONNX Runtime with exact products
(accuracy level 1), and with activations rounded to int8 (level 4). Bits of a weight are counted in the file, with
scales and zero points. The encoder and its images are those of the quantizers' benchmark; the language models have
inputs made from seeds. Prints the tables, and with --page puts them into that file. ``--latency`` times instead.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import optimizer_tables
from onnx import numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as peer

from penstock import api, calibration, store
from penstock.stages.bench import BenchSettings
from penstock.stages.quantize import QuantizeSettings, quantize

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PENSTOCK_SHARED") or ROOT.parent / "shared") / "models"
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A model, calibration batches, evaluation batches, and layers that stay in float for both sides."""

    name: str
    path: Path
    calibrate: list[Feeds]
    evaluate: list[Feeds]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What came out: SQNR in dB of the weights, and of the output exactly and with int8 activations; CPU seconds."""

    who: str
    what: str
    bits: int
    of_weight: float
    file_bytes: int
    weights_db: float
    exact_db: float
    fast_db: float
    seconds: float


def cases(nets: Path) -> Iterator[Case]:
    """Yield the models that are there."""
    if (nets / "encoder.onnx").is_file():
        images = np.load(nets / "images.npz")
        train, test = images["x_train"], images["x_test"]
        yield Case(
            "encoder", nets / "encoder.onnx", [{"x": train[i : i + 32]} for i in range(0, 512, 32)],
            [{"x": test[i : i + 100]} for i in range(0, 1000, 100)], ("node_linear_12",),
        )  # fmt: skip
    yield Case(
        "tiny-gpt2-genai", SHARED / "tiny-gpt2-genai/model.onnx", [_tokens(16, seed) for seed in range(16)],
        [_tokens(16, seed) for seed in range(1000, 1016)],
    )  # fmt: skip
    yield Case(
        "bert-tf-qa", SHARED / "bert-tf-qa/model.onnx", [_question(32, seed) for seed in range(8)],
        [_question(32, seed) for seed in range(1000, 1008)],
    )  # fmt: skip


def _tokens(count: int, seed: int, past: int = 4, length: int = 12) -> Feeds:
    """Make token ids with a filled cache for tiny-gpt2."""
    rng = np.random.default_rng(seed)
    positions = np.tile(np.arange(past, past + length, dtype=np.int32), (count, 1))
    feeds = {"input_ids": rng.integers(0, 1000, (count, length)).astype(np.int32), "position_ids": positions}
    feeds["attention_mask"] = np.ones((count, past + length), np.int32)
    cache = {f"past_{i}": rng.normal(size=(2, count, 4, past, 8)).astype(np.float32) for i in range(5)}
    return feeds | cache


def _question(count: int, seed: int, length: int = 7) -> Feeds:
    """Make a question and a text of token ids for the BERT, the end filled up."""
    rng = np.random.default_rng(seed)
    used = rng.integers(4, length + 1, (count, 1))
    place = np.arange(length)
    return {
        "input_ids": (rng.integers(1, 20, (count, length)) * (place < used)).astype(np.int32),
        "token_type_ids": ((place >= used // 2) & (place < used)).astype(np.int32),
        "attention_mask": (place < used).astype(np.int32),
    }


# --- who quantizes ----------------------------------------------------------------------------------------------------


def ours(case: Case, into: Path, size: int, **chosen: Any) -> None:
    """Quantize by Penstock."""
    settings = QuantizeSettings(method="weight-only", block_size=size, least_weights=0, exclude=case.exclude, **chosen)
    quantize(case.path, calibration.of_list(case.calibrate), settings, into)


class _Reader(peer.CalibrationDataReader):
    """The library's reader over batches."""

    def __init__(self, batches: list[Feeds]) -> None:
        self.batches = list(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch."""
        return dict(self.batches.pop(0)) if self.batches else None


def theirs(case: Case, into: Path, size: int, algorithm: str, **chosen: Any) -> None:
    """Quantize by ONNX Runtime's quantizer; one sample a batch would make its GPTQ slower, not better."""
    common: dict[str, Any] = {"block_size": size, "nodes_to_exclude": list(case.exclude)}
    config: Any = None
    symmetric = bool(chosen.pop("symmetric", False))
    if algorithm == "rtn":
        config = peer.RTNWeightOnlyQuantConfig()
    elif algorithm == "k-quant":
        config = peer.KQuantWeightOnlyQuantConfig()
    elif algorithm == "hqq":
        config = peer.HQQWeightOnlyQuantConfig(block_size=size, **chosen)
    elif algorithm == "gptq":
        config = peer.GPTQWeightOnlyQuantConfig(_Reader(case.calibrate), block_size=128, **chosen)
    else:
        form = peer.QuantFormat.QDQ if chosen.pop("qdq", False) else peer.QuantFormat.QOperator
        config = peer.DefaultWeightOnlyQuantConfig(size, symmetric, quant_format=form, **chosen)
    made = peer.MatMulNBitsQuantizer(onnx.load(case.path), is_symmetric=symmetric, algo_config=config, **common)
    made.process()
    onnx.save(made.model.model, into)


def variants() -> Iterator[tuple[str, str, int, Callable[[Case, Path, int], None]]]:
    """Yield who, what, the bits, and a function that quantizes."""
    for bits in (4, 8):
        for zero in ("none", "integer", "float") if bits == 4 else ("none", "integer"):
            layout = "matmulnbits" if zero == "float" else "standard"
            for rounding in ("hqq", "gptq") if zero == "float" else ("rtn", "hqq", "gptq"):
                more = {"weight_bits": bits, "zero_points": zero, "weight_rounding": rounding, "weight_format": layout}
                what = f"{rounding}, {'no' if zero == 'none' else zero} zero points"
                yield "Penstock", what, bits, _bound(ours, **more)
        default: dict[str, Any] = {"algorithm": "default", "bits": bits}
        yield "ONNX Runtime", "default, no zero points", bits, _bound(theirs, symmetric=True, **default)
        yield "ONNX Runtime", "default, integer zero points", bits, _bound(theirs, **default)
        yield "ONNX Runtime", "hqq, float zero points", bits, _bound(theirs, algorithm="hqq", bits=bits)
        if bits == 8:
            continue
        for name in ("rtn", "k-quant", "gptq"):
            yield "ONNX Runtime", f"{name}, integer zero points", bits, _bound(theirs, algorithm=name)
        yield "ONNX Runtime", "gptq, no zero points", bits, _bound(theirs, algorithm="gptq", symmetric=True)
        best = {"algorithm": "gptq", "mse": True, "actorder": True}
        yield "ONNX Runtime", "gptq, integer zero points, mse and order", bits, _bound(theirs, **best)


def _bound(call: Callable[..., None], **more: Any) -> Callable[[Case, Path, int], None]:
    return lambda case, into, size: call(case, into, size, **more)


# --- what came out ----------------------------------------------------------------------------------------------------


def run(path: Path, batches: list[Feeds], level: str) -> np.ndarray:
    """Return the first output on all batches."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs() if "float" in value.type][:1]
    return np.concatenate([session.run(names, dict(feeds))[0] for feeds in batches])


def sqnr(got: np.ndarray, want: np.ndarray) -> float:
    """Return signal over error in dB."""
    signal, error = np.square(want, dtype=np.float64).sum(), np.square(got.astype(np.float64) - want).sum()
    return float(10 * np.log10(signal / error))


def weights(path: Path, original: list[np.ndarray]) -> tuple[float, float]:
    """Return the bits of all that stands for weights, by their number, and the mean SQNR of the matrices in dB.

    A matrix is held against that of the original of its shape which it is nearest to, but for a factor: a pass may have
    folded one in.
    """
    model = onnx.load(path)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    bits, count, found = 0, 0, {}
    for node in model.graph.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        arrays = [numpy_helper.to_array(held[name]) if name else None for name in node.input[1:4] if name in held]
        if node.op_type == "MatMulNBits":
            names, read = node.input[1:4], _nbits
        elif node.op_type == "DequantizeLinear":
            names, read = node.input, _standard
            arrays = [numpy_helper.to_array(held[name]) for name in names]
        else:
            continue
        if names[0] in found:
            continue
        real = read(*arrays, **given)
        alike = [one for one in original if one.shape == real.shape]
        found[names[0]] = max(sqnr(real, one * np.vdot(real, one) / np.vdot(one, one)) for one in alike)
        count += real.size
        bits += 8 * sum(_bytes(held[name]) for name in names if name)
    return bits / count, float(np.mean([*found.values()]))


def _standard(whole: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0) -> np.ndarray:
    """Dequantize (K, N): a scale for each column, or for each block of one."""
    if block_size:
        scale = np.repeat(scale, block_size, axis=0)[: len(whole)]
        zero = None if zero is None else np.repeat(zero, block_size, axis=0)[: len(whole)]
    return (whole.astype(np.float32) - (0 if zero is None else zero.astype(np.float32))) * scale


def _nbits(packed: Any, scale: Any, zero: Any = None, *, bits: int, block_size: int, **more: int) -> np.ndarray:
    """Unpack and dequantize the weights of a MatMulNBits to (K, N)."""
    inner, outer = more["K"], more["N"]
    blocks = -(-inner // block_size)
    whole = _unpacked(packed, bits).reshape(outer, -1)[:, :inner]
    none = np.full((outer, blocks), 1 << (bits - 1), np.float32)
    if zero is not None:
        rows = zero.reshape(outer, -1)
        none = (_unpacked(rows, bits) if zero.dtype == np.uint8 else rows)[:, :blocks].astype(np.float32)
    scales, nones = (np.repeat(one.reshape(outer, blocks), block_size, axis=1)[:, :inner] for one in (scale, none))
    return ((whole - nones) * scales).T


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _bytes(tensor: onnx.TensorProto) -> int:
    size = {onnx.TensorProto.INT4: 0.5, onnx.TensorProto.UINT4: 0.5, onnx.TensorProto.FLOAT: 4}
    return int(np.ceil(np.prod(tensor.dims) * size.get(tensor.data_type, 1)))


def matrices(path: Path) -> list[np.ndarray]:
    """Return the matrices of a model as (K, N), both ways round."""
    found = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
    return [*found, *(one.T for one in found)]


def measure(case: Case, size: int, work: Path) -> Iterator[Row]:
    """Quantize a model every way; a way that fails yields a row that says so."""
    want, original = run(case.path, case.evaluate, "1"), matrices(case.path)
    for number, (who, what, bits, make) in enumerate(variants()):
        path = work / f"{number}.onnx"
        began = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # one of theirs draws a bar
                make(case, path, size)
            seconds = time.process_time() - began
            exact, fast = (sqnr(run(path, case.evaluate, level), want) for level in ("1", "4"))
        except Exception as error:  # a peer may raise anything
            reason = re.sub(r"/\S*", "…", " ".join(str(error).split()))[:70] or type(error).__name__
            yield Row(who, f"{what} ({reason})", bits, np.nan, 0, np.nan, np.nan, np.nan, np.nan)
            continue
        of_weight, weights_db = weights(path, original)
        yield Row(who, what, bits, of_weight, path.stat().st_size, weights_db, exact, fast, seconds)


# --- how fast ---------------------------------------------------------------------------------------------------------


def latency(work: Path, backends: list[str], seconds: float) -> str:
    """Time one row through four layers of 1024 → 4096 → 1024, a token's way: its weights fit no cache."""
    rng = np.random.default_rng(0)
    nodes, held, last = [], [], "x"
    for layer in range(4):
        for name, shape in (("up", (1024, 4096)), ("down", (4096, 1024))):
            array = (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
            held.append(numpy_helper.from_array(array, f"{name}{layer}"))
            nodes.append(onnx.helper.make_node("MatMul", [last, f"{name}{layer}"], [f"{name}_{layer}"]))
            last = f"{name}_{layer}"
            if name == "up":
                nodes.append(onnx.helper.make_node("Relu", [last], [f"relu_{layer}"]))
                last = f"relu_{layer}"
    io = [onnx.helper.make_tensor_value_info(name, 1, [1, 1024]) for name in ("x", last)]
    graph = onnx.helper.make_graph(nodes, "layers", io[:1], io[1:], held)
    models = [work / "fp32.onnx"]
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), models[0])
    for bits in (8, 4):
        forms = {f"int{bits}": {}, f"int{bits}-nbits": {"weight_format": "matmulnbits"}}
        forms[f"int{bits}-nbits-int8"] = {"weight_format": "matmulnbits", "int8_activations": True}
        for name, more in forms.items():
            models.append(work / f"{name}.onnx")
            chosen: dict[str, Any] = {"weight_bits": bits, "weight_rounding": "rtn", **more}
            quantize(models[0], [], QuantizeSettings(method="weight-only", **chosen), models[-1])
    bench = BenchSettings(seconds=seconds, footprint=False, warmup_calls=10, calls_per_round=3)
    found = api.bench(models, bench, backends=backends)
    lines = ["| deployment | file, MB | p50, ms | of fp32 in ONNX Runtime (95 %) |", "|---|---:|---:|---:|"]
    for one in found.timings:
        size = (work / f"{one.name.partition('@')[0]}.onnx").stat().st_size / 1e6
        ratio = "1" if one.to_baseline is None else one.to_baseline.text()
        lines.append(f"| {one.name} | {size:.0f} | {one.p50_ms:.2f} | {ratio} |")
    noise = f" The machine was noisy: {found.noise[0]}." if found.noise else ""
    return "\n".join([*lines, "", f"{found.rounds} rounds, one thread, batch 1.{noise}"])


def table(case: Case, found: list[Row]) -> str:
    """Write the rows as Markdown, by bits of a weight; what fails, in a sentence below."""
    lines = [
        f"{case.name}, {case.path.stat().st_size:,} bytes in float32:", "",
        "| | bits | of a weight | file, bytes | weights, dB | output, dB | int8 activations, dB | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in sorted(found, key=lambda row: (row.bits, row.who, row.of_weight)):
        if row.file_bytes:
            fast = "–" if abs(row.fast_db - row.exact_db) < 0.005 else f"{row.fast_db:.1f}"
            lines.append(
                f"| {row.who} {row.what} | {row.bits} | {row.of_weight:.3f} | {row.file_bytes:,}"
                f" | {row.weights_db:.1f} | {row.exact_db:.1f} | {fast} | {row.seconds:.1f} |"
            )
    return "\n".join([*lines, *_failed([row for row in found if not row.file_bytes])])


def _failed(rows: list[Row]) -> list[str]:
    """List who gives no result, by what he says."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        what, _, reason = row.what.partition(" (")
        reasons.setdefault(reason.rstrip(")"), []).append(f"{row.who} {what}, {row.bits} bits")
    told = [f"- no result: {'; '.join(names)}: `{reason}`" for reason, names in reasons.items()]
    return ["", *told] if told else []


def main() -> int:
    """Run the benchmark; exit code 1 where a peer of no more bits is ahead of our best of that many by over 0.5 dB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, default=ROOT / "build/quantization", help="folder of the encoder")
    parser.add_argument("--block-size", type=int, default=32, help="inputs that share a scale")
    parser.add_argument("--models", default="*", help="only models of these names (a glob)")
    parser.add_argument("--latency", action="store_true", help="only time four large layers")
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds for each deployment")
    parser.add_argument("--page", type=Path, help="write the tables between the marks in this file")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    if asked.latency:
        with store.scratch() as work:
            text = latency(work, ["onnxruntime", "openvino"], asked.seconds)
        print(text)
        if asked.page:
            optimizer_tables.put_into(asked.page, "weight-only-latency", text)
        return 0
    texts, behind = [], []
    for case in cases(asked.nets):
        if not fnmatch(case.name, asked.models):
            continue
        with store.scratch() as work:
            found = list(measure(case, asked.block_size, work))
        texts.append(table(case, found))
        print(texts[-1], flush=True)
        for row in found:
            if row.who != "Penstock" and row.file_bytes:
                rivals = [r.exact_db for r in found if r.who == "Penstock" and r.of_weight <= row.of_weight + 1e-9]
                if row.exact_db > max(rivals, default=-np.inf) + 0.5:
                    behind.append(f"{case.name}: {row.what} of {row.bits} bits is ahead")
    if asked.page:
        optimizer_tables.put_into(asked.page, "weight-only", "\n\n".join(texts))
    print("\n".join(behind), file=sys.stderr)
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
