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
    names = {row["deployment"]["name"] for row in first["result"]["rows"]}
    assert {"int8@onnxruntime", "int8-dynamic@onnxruntime", "fp16@onnxruntime"} <= names
    assert (tmp_path / "out" / "models" / "int8-dynamic" / "model.onnx").is_file()
    assert cli.run(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert "quantize by dynamic" in again["result"]["resumed"]
