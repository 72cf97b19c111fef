"""Asked and actual: what a runtime's own record says is held against what a deployment asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from penstock import api, asked, backend_options, crossing, registry, running
from penstock.backends import Loadable, NodeTime, _profile, onnxruntime
from penstock.cli import run
from penstock.data import DataSettings
from penstock.deployment import Deployment
from penstock.errors import UsageError
from penstock.jsonable import Json
from penstock.quantization import written
from penstock.stages.bench import BenchSettings
from penstock.stages.quantize import QuantizeSettings


def of(backend: str = "onnxruntime-webgpu", **more: Any) -> Deployment:
    given = {"precision": "fp32", "device": "any" if "gpu" in backend else "cpu"} | more
    return Deployment(f"m@{backend}", "m", "", backend=backend, **given)


GPU, CPU = "WebGpuExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("deployment", "actual", "told"),
    [
        (of(), {"nodes_by_provider": {GPU: 9}}, ""),
        (of(), {"nodes_by_provider": {GPU: 9, CPU: 3}}, ""),  # sizes alone
        (of(), {"nodes_by_provider": {GPU: 9, CPU: 3}, "nodes_elsewhere": {CPU: {"Conv": 1, "QuantizeLinear": 2}}},
         f"{CPU} ran 3 of its 12 nodes (2 QuantizeLinear, 1 Conv), {GPU} was asked for"),
        (of(), {"nodes_by_provider": {CPU: 12}}, f"{CPU} ran its nodes, {GPU} was asked for"),
        (of(), {"nodes_by_provider": {}}, ""),  # all of them are constants
        (of(), {}, ""),
        (of(), {"device": "gpu"}, ""),
        (of("openvino"), {"device": "CPU", "precision": "f32"}, ""),
        (of("openvino"), {"precision": "bf16"}, "it computes floats in bf16, fp32 was asked for"),
        (of("openvino", precision="int8"), {"precision": "bf16"}, "it computes floats in bf16, fp32"),
        (of("openvino-bf16", precision_hint="bf16"), {"precision": "bf16"}, ""),
        (of("openvino-bf16", precision_hint="bf16"), {"precision": "f32"}, "in fp32, bf16 was asked for"),
        (of("openvino", precision="fp16"), {"precision": "f32"}, ""),  # told by what it computes in
        (of("litert"), {"precision": "as written"}, ""),
        (of("litert", threads=2), {"threads": 1}, "it ran with 1 threads, 2 were asked for"),
    ],
)  # fmt: skip
def test_what_differs_is_told(deployment: Deployment, actual: Mapping[str, Json], told: str) -> None:
    found = asked.fallback(deployment, actual)
    assert told in found and bool(told) == bool(found)


def test_a_record_names_backend_device_provider_and_precision() -> None:
    told = asked.asked_of(of(options={"layout": "NCHW"}))
    assert told == {
        "backend": "onnxruntime-webgpu", "device": "any", "provider": GPU, "precision": "fp32", "precision_hint": "",
        "threads": 1, "options": {"layout": "NCHW"},
    }  # fmt: skip
    assert "provider" not in asked.asked_of(of("openvino"))


def test_nodes_that_compute_sizes_are_no_fallback() -> None:
    """A net that reshapes by its own sizes: of what is on the CPU, only the product of tensors counts."""
    ints = [helper.make_tensor(name, TensorProto.INT64, [1], [value])
            for name, value in (("two", 2), ("zero", 0), ("minus", -1))]  # fmt: skip
    ints.append(helper.make_tensor("at", TensorProto.INT64, [], [0]))
    made = [
        ("Shape", ["x"], "s"), ("Gather", ["s", "at"], "n"), ("Unsqueeze", ["n", "zero"], "u"),
        ("Mul", ["u", "two"], "t"), ("Concat", ["t", "minus"], "c"), ("Reshape", ["x", "c"], "r"),
        ("Mul", ["r", "r"], "y"),
    ]  # fmt: skip
    nodes = [
        helper.make_node(kind, reads, [out], f"{kind}_{out}", **({"axis": 0} if kind == "Concat" else {}))
        for kind, reads, out in made
    ]
    spec = [helper.make_tensor_value_info(name, 1, None) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", spec[:1], spec[1:], ints))
    sizes = asked.of_sizes(ir.from_proto(model))
    assert sizes == ["Shape_s", "Gather_n", "Unsqueeze_u", "Mul_t", "Concat_c"]
    on_cpu = [(CPU, name, name.partition("_")[0]) for name in (*sizes, "Mul_y")]
    told = asked.placed([(GPU, "Reshape_r", "Reshape"), *on_cpu, (CPU, "copy", "MemcpyToHost")], GPU, frozenset(sizes))
    assert told == {"nodes_by_provider": {GPU: 1, CPU: 7}, "nodes_elsewhere": {CPU: {"Mul": 1}}}


def test_nodes_without_names_go_by_their_operators() -> None:
    """As many of an operator as compute sizes: of two Muls on the CPU one is a fallback."""
    made = [("Shape", ["x"], "s"), ("Gather", ["s", "at"], "n"), ("Mul", ["n", "at"], "t"), ("Mul", ["x", "x"], "y"),
            ("Add", ["y", "t"], "z")]  # fmt: skip
    nodes = [helper.make_node(kind, reads, [out]) for kind, reads, out in made]
    spec = [helper.make_tensor_value_info(name, 1, None) for name in "xz"]
    held = [helper.make_tensor("at", TensorProto.INT64, [], [0])]
    model = helper.make_model(helper.make_graph(nodes, "g", spec[:1], spec[1:], held))
    sizes = asked.of_sizes(ir.from_proto(model))
    assert sizes == ["?Shape", "?Gather", "?Mul"]
    there = [(GPU, "", "Add"), (CPU, "", "Shape"), (CPU, "", "Gather"), (CPU, "", "Mul")]
    assert "nodes_elsewhere" not in asked.placed([*there, (GPU, "", "Mul")], GPU, sizes)
    assert asked.placed([*there, (CPU, "", "Mul")], GPU, sizes)["nodes_elsewhere"] == {CPU: {"Mul": 1}}


def test_one_model_that_fell_back_is_refused(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny.save(tiny.conv(), tmp_path / "m.onnx"))
    words = ["verify", path, "--against", path, "--quiet", "--json"]
    assert run(words) == 0
    told = json.loads(capsys.readouterr().out)["result"]
    assert told["asked"]["provider"] == CPU and set(told["actual"]["nodes_by_provider"]) == {CPU}
    monkeypatch.setattr(onnxruntime.OrtSession, "actual", lambda self: {"device": "cpu", "threads": 7})
    assert run(words) == 1
    reason = json.loads(capsys.readouterr().out)["result"]["outcome"]["reason"]
    assert reason == "it fell back: it ran with 7 threads, 1 were asked for"
    assert run([*words, "--allow-fallback"]) == 0


def test_a_model_that_folds_away_has_nothing_to_fall_back(tmp_path: Path) -> None:
    node = helper.make_node("Shape", ["x"], ["y"])
    ends = [helper.make_tensor_value_info("x", 1, [2, 3]), helper.make_tensor_value_info("y", 7, [2])]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    (cell,) = crossing.crossed([path], str(path), backends=("onnxruntime",)).cells
    assert cell.state == "agrees" and cell.actual["nodes_by_provider"] == {}


@pytest.mark.parametrize("backend", ["onnxruntime", "litert"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_counted(backend: str, threads: int, tiny: ModuleType, tmp_path: Path) -> None:
    """By those that the system has, not by what was asked for."""
    loaded: Any = registry.load("backends", backend)
    if problem := loaded.available():
        pytest.skip(f"{backend}: {problem}")
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    session = loaded.load(Loadable(path), of(backend, threads=threads))
    session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})
    told = session.actual()
    session.close()
    assert told["threads"] == threads or not Path("/proc/self/task").exists()


# -- options behind a backend's name -----------------------------------------------------------------------------------


def test_options_stand_behind_a_backends_name() -> None:
    assert backend_options.split("onnxruntime") == ("onnxruntime", {})
    told = "onnxruntime-tensorrt:fp16=on:calibration-table=/home/a:b/table.flat"
    assert backend_options.asked(told) == (
        "onnxruntime-tensorrt", {"fp16": "on", "calibration-table": "/home/a:b/table.flat"},
    )  # fmt: skip
    own = {"": {"level": "1"}, "int8-activations": {"level": "4"}}
    assert backend_options.ways(own, {"layout": "NCHW"}) == {
        "layout=NCHW": {"level": "1", "layout": "NCHW"},
        "int8-activations+layout=NCHW": {"level": "4", "layout": "NCHW"},
    }
    assert backend_options.ways(own, {"level": "2"}) == {"level=2": {"level": "2"}}


def test_files_of_one_name_and_another_content_give_other_names(tmp_path: Path) -> None:
    names = set()
    for folder, content in (("a@b", "1"), ("c", "1"), ("c", "2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "t.flat").write_text(content)
        (name,) = backend_options.ways({"": {}}, {"table": str(tmp_path / folder / "t.flat")})
        assert name.startswith("table=t.flat-") and "@" not in name and "/" not in name
        names.add(name)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("onnxruntime:basic", "names no option and value"),
        ("onnxruntime:", "names no option and value"),
        ("onnxruntime:optimisation=basic", "has no option 'optimisation'"),
        ("onnxruntime:optimization=much", "optimization is one of all, extended, basic, disabled, not 'much'"),
        ("onnxruntime:spinning=on:spinning=off", "given twice"),
        ("litert:a=b", "the backend 'litert' has no options"),
        ("nonesuch:a=b", "there is no backend named 'nonesuch'"),
    ],
)
def test_options_that_there_are_not(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        backend_options.asked(text)


def test_deployments_with_options_stand_beside_the_plain_one(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    backends = ("onnxruntime", "onnxruntime:optimization=disabled")
    cells = crossing.crossed([path], str(path), backends=backends).cells
    assert [cell.name for cell in cells] == ["m@onnxruntime", "m@onnxruntime+optimization=disabled"]
    assert [cell.actual["optimization"] for cell in cells] == ["all", "disabled"]
    assert cells[1].asked["options"] == {"optimization": "disabled"} and cells[1].asked["backend"] == "onnxruntime"
    quick = BenchSettings(warmup_calls=1, min_rounds=2, calls_per_round=2, seconds=0.0, footprint=False)
    found = api.bench([path], quick, backends=backends)
    assert [timing.name for timing in found.timings] == [cell.name for cell in cells]
    with pytest.raises(UsageError, match="has no option"):
        api.bench([path], quick, backends=("onnxruntime:layout=NCHW",))


def test_a_build_takes_them(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    quick = ["--min-rounds", "2", "--bench-seconds", "0.01", "--no-footprint", "--quiet", "--no-quantize"]
    words = ["build", str(path), "-o", str(tmp_path / "out"), *quick]
    assert run([*words, "--backends", "onnxruntime,onnxruntime:spinning=off"]) == 0
    ledger = (tmp_path / "out" / "ledger.jsonl").read_text()
    assert '"fp32@onnxruntime+spinning=off"' in ledger and '"options":{"spinning":"off"}' in ledger.replace(" ", "")
    assert run([*words[:3], str(tmp_path / "no"), *quick, "--backends", "onnxruntime:spinning=no"]) == 2
    assert not (tmp_path / "no").exists()


# -- times of nodes ----------------------------------------------------------------------------------------------------


def event(name: str, spent: int, start: int) -> dict[str, Any]:
    return {"name": f"{name}_kernel_time", "dur": spent, "ts": start, "args": {"op_name": "Conv", "provider": CPU}}


def test_a_profile_gives_medians_without_the_first_run() -> None:
    events: list[dict[str, Any]] = [{"name": "session_initialization", "dur": 5, "ts": 0}]
    for start, a, b in ((0, 9000, 8000), (20_000, 1000, 20), (30_000, 3000, 40)):
        events += [event("a", a, start), event("b", b, start + a), {"name": "model_run", "dur": a + b, "ts": start}]
    found = _profile.of_events(events, 2)
    assert found == [NodeTime("a", "Conv", CPU, 2.0), NodeTime("b", "Conv", CPU, 0.03)]


def test_nodes_of_a_body_are_summed_and_taken_from_what_is_around_them() -> None:
    inner = [event("b", 100, 1000 + 200 * trip) for trip in range(10)]
    run = [*inner, event("loop", 2500, 900), event("c", 50, 3400), {"name": "model_run", "dur": 1, "ts": 0}]
    assert _profile.of_events(run, 3) == [
        NodeTime("loop", "Conv", CPU, 1.5), NodeTime("b", "Conv", CPU, 1.0), NodeTime("c", "Conv", CPU, 0.05),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nodes_are_timed(backend: str, tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded: Any = registry.load("backends", backend)
    if problem := loaded.available():
        pytest.skip(f"{backend}: {problem}")
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    quick = ["--min-rounds", "2", "--bench-seconds", "0.01", "--no-footprint", "--quiet", "--backends", backend]
    assert run(["bench", str(path), *quick, "--nodes", "3", "--json"]) == 0
    nodes = json.loads(capsys.readouterr().out)["result"]["timings"][0]["nodes"]
    assert any(node["operator"] in ("Conv", "Convolution") for node in nodes) and all(node["ms"] >= 0 for node in nodes)
    assert run(["bench", str(path), *quick, "--nodes", "1"]) == 0
    assert f"slowest of {len(nodes)} nodes of m@{backend}" in capsys.readouterr().out
    assert run(["bench", str(path), *quick]) == 0 and "slowest" not in capsys.readouterr().out


def test_a_runtime_without_times_of_nodes_says_so(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    quick = ["--min-rounds", "2", "--bench-seconds", "0.01", "--no-footprint", "--quiet", "--backends", "reference"]
    assert run(["bench", str(path), *quick, "--nodes", "3"]) == 0
    assert "m@reference: its runtime gives no times of nodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "noted"),
    [
        ({}, ""),  # a runtime that doesn't tell
        ({"int8": 2}, ""),
        ({"int8": 1, "fp32": 1}, "1 of its 2 layers in float"),
        ({"fp32": 1, "bf16": 1}, "2 of its 2 layers in float"),
    ],
)
def test_int8_that_runs_in_float_is_told(counts: dict[str, Json], noted: str, tiny: ModuleType, tmp_path: Path) -> None:
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    model = tmp_path / "int8.onnx"
    api.quantize(source, model)
    assert written.on_integers(model) == (2, 0)
    deployment, actual = of("onnxruntime", precision="int8"), {"weighted_in": counts}
    found = asked.in_float(deployment, actual, model)
    assert noted in found and bool(noted) == bool(found)
    assert not asked.fallback(deployment, actual), "it is no breach: the numbers are those of the file"
    assert not asked.in_float(of("onnxruntime"), actual, model), "a float model is in float"
    assert not asked.in_float(deployment, actual, source), "nothing of that file is on integers"


def test_models_with_constants_of_narrow_types(tmp_path: Path) -> None:
    """A mask of booleans, and weights that no scale stands behind."""
    held = [
        helper.make_tensor("mask", TensorProto.BOOL, [4], [True, False, True, True]),
        helper.make_tensor("w", TensorProto.INT8, [4, 2], [*range(8)]),
    ]
    nodes = [
        helper.make_node("Greater", ["x", "x"], ["g"]), helper.make_node("And", ["g", "mask"], ["a"]),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["c", "w"], ["y"]),
    ]  # fmt: skip
    x, y = (helper.make_tensor_value_info(n, t, ["n", s]) for n, t, s in (("x", 1, 4), ("y", TensorProto.INT32, 2)))
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    assert [layer["op"] for layer in written.layers(path, "it")] == ["Greater", "And", "Cast", "MatMulInteger"]  # type: ignore[index,call-overload]
    assert written.on_integers(path) == (0, 0)


def test_activations_of_16_bits_are_asked_of_no_integers(tiny: ModuleType, tmp_path: Path) -> None:
    """ONNX Runtime has no kernels for them, and computes in float: that isn't another precision than was asked for."""
    source = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    model = tmp_path / "wide.onnx"
    api.quantize(source, model, QuantizeSettings(activations="uint16"))
    assert written.on_integers(model) == (0, 2)
    assert crossing.crossed([model], str(source), backends=("onnxruntime",)).holds


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runtime_counts_the_layers_that_ran_on_integers(backend: str, shared: Path) -> None:
    """OpenVINO computes a third party's residual blocks in float, ONNX Runtime on integers."""
    if problem := registry.load("backends", backend).available():  # type: ignore[attr-defined]
        pytest.skip(f"{backend}: {problem}")
    path = shared / "models" / "resnet-tiny-w8a8-qdq-extdata" / "model.onnx"
    runnable = running.runnables_of(path, backend, 1, "m")[0]
    session = runnable.open()
    try:
        session.run(running.role_feeds(path, DataSettings(), 0).golden.first(1))
        counts = session.actual()["weighted_in"]
    finally:
        session.close()
    assert isinstance(counts, dict) and sum(counts.values()) == 21 == sum(written.on_integers(path))  # type: ignore[arg-type]
    told = asked.in_float(runnable.deployment, {"weighted_in": counts}, path)
    assert bool(told) == (counts.get("fp32", 0) > 0)
