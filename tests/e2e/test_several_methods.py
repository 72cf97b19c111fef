"""A build with several ways to quantize: a variant of each, measured beside the others, and resumed as one."""

import json
from pathlib import Path
from types import ModuleType

from penstock import cli


def test_a_variant_of_each_method(tiny: ModuleType, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    model = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    command = ["build", str(model), "-o", str(tmp_path / "out"), "--backends", "onnxruntime", "--json", "-q"]
    command += ["--also-methods", "dynamic", "--also-methods", "fp16", "--force-small", "--no-footprint"]
    command += ["--bench-seconds", "0", "--min-rounds", "3", "--calls-per-round", "2", "--warmup-calls", "2"]
    assert cli.run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["command"] == "build"
    entries = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    names = {one for one in ("int8@onnxruntime", "int8-dynamic@onnxruntime", "fp16@onnxruntime") if one in str(entries)}
    assert {"int8@onnxruntime", "int8-dynamic@onnxruntime", "fp16@onnxruntime"} <= names
    assert (tmp_path / "out" / "models" / "int8-dynamic" / "model.onnx").is_file()
    assert cli.run(command) == 0
    assert "quantize by dynamic" in capsys.readouterr().out
