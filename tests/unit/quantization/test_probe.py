"""Probing: what chunks hold at once is bounded, and finding out how large tensors are doesn't itself hold them all."""

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import helper

from penstock import calibration, graph
from penstock.quantization import prepare, probe

RNG = np.random.default_rng(0)


def prepared(model: onnx.ModelProto, tiny: ModuleType, folder: Path) -> tuple[object, list[str]]:
    found = prepare.prepared(tiny.save(model, folder / "m.onnx"))
    for node in found.graph:
        for value in node.outputs:
            value.shape = None  # as a model that declares nothing
    return found, [str(value.name) for node in found.graph for value in node.outputs]


def test_sizes_are_found_by_one_sample(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = prepared(tiny.conv(), tiny, tmp_path)
    x = RNG.normal(size=(12, 3, 8, 8)).astype(np.float32)
    ran: list[int] = []
    real = probe.opened

    def watched(*given: object, **named: object) -> object:
        session = real(*given, **named)  # type: ignore[arg-type]
        run = session.run
        session.run = lambda feeds: (ran.append(len(feeds["x"])), run(feeds))[1]  # type: ignore[method-assign]
        return session

    monkeypatch.setattr(probe, "opened", watched)
    sizes = probe._sizes(model, names, {"x": x})  # type: ignore[arg-type]
    assert ran == [1], "one run, of the first sample"
    seen: dict[str, int] = {}

    def visit(name: str, array: np.ndarray, first: int, count: int) -> None:
        seen[name] = array.nbytes

    runs = probe.observe(model, names, calibration.of_list([{"x": x}]), visit, chunk_bytes=4096)  # type: ignore[arg-type]
    assert seen == {name: sizes[name] for name in seen} and set(seen) == set(names)
    assert runs > 1, "the tensors of twelve samples don't fit into 4 KB together"


def test_inputs_that_belong_together_are_run_whole(tiny: ModuleType, tmp_path: Path) -> None:
    """One sample of the first input and all of a table that happens to be as long can't be run: then the batch is."""
    nodes = [helper.make_node("MatMul", ["x", "y"], ["z"])]
    info = [helper.make_tensor_value_info(name, 1, ["n", "n"]) for name in "xyz"]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:2], info[2:]),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    found = graph.load(tiny.save(model, tmp_path / "m.onnx"))
    for value in found.graph.outputs:
        value.shape = None
    square = RNG.normal(size=(6, 6)).astype(np.float32)
    assert probe._sizes(found, ["z"], {"x": square, "y": square}) == {"z": square.nbytes}
