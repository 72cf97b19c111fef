"""The worker's side of the doctor: import one runtime and ask it what it takes, by giving it tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock import kept, registry, store
from penstock.backends import Backend, Loadable, device_of
from penstock.deployment import Deployment
from penstock.jsonable import Json, to_json


def serve(argument: Json) -> dict[str, Json]:
    """Look at one backend: its facts, and the newest opset and IR version that it takes; ``onnx`` tells its own."""
    import onnx

    name = str(argument)
    if name == "onnx":
        return {"opset": int(onnx.defs.onnx_opset_version()), "ir": int(onnx.IR_VERSION)}
    backend = cast(Backend, registry.load("backends", name))
    if problem := backend.available():
        return {"problem": problem}
    found = dict(cast("dict[str, Json]", to_json(backend.facts())))
    if "onnx" in backend.FORMATS:
        found |= newest(backend, name)
    if name == "torch":
        from penstock.frontends._torch_export import LOWEST_NATIVE

        found |= {f"{exporter} writes from opset": lowest for exporter, lowest in LOWEST_NATIVE.items()}
    return found


def newest(backend: Backend, name: str) -> dict[str, Json]:
    """Find the newest opset and IR version that a backend runs right, downwards from the newest that onnx can write.

    The opset is the newest in which a float and a quantized model both run: a runtime may know the operators of the one
    and not of the other.
    """
    import onnx

    with store.scratch() as work, kept.keeping():

        def takes(opset: int, ir: int, quantized: bool = False) -> bool:
            path = work / f"{opset}-{ir}-{quantized}.onnx"
            store.write_bytes(path, tiny(opset, ir, quantized=quantized))
            return _runs(backend, name, path)

        most = int(onnx.defs.onnx_opset_version())
        plain = _first(lambda number: takes(number, 8), most)
        both = _first(lambda number: takes(number, 8, quantized=True), plain or 0)
        ir = _first(lambda number: takes(13, number), int(onnx.IR_VERSION))
    found: dict[str, Json] = {"opset": both or plain, "ir": ir}
    if plain != both:
        found["float models up to opset"] = plain
    return found


def _runs(backend: Backend, name: str, path: Path) -> bool:
    import numpy as np

    try:
        session = backend.load(Loadable(path), Deployment("probe", "", "", "fp32", name, device=device_of(backend)))
        (out,) = session.run({"x": np.array([-1.0, 2.0], dtype=np.float32)})
        session.close()
    except Exception:  # a runtime refuses in its own words
        return False
    return bool(out.tolist() == [0.0, 2.0])


def _first(takes: Callable[[int], bool], high: int) -> int | None:
    return next((number for number in range(high, 0, -1) if takes(number)), None)


def tiny(opset: int, ir: int, *, quantized: bool = False) -> bytes:
    """Return a model of one Relu over two floats, written for an opset and an IR version; ``quantized``: on uint8."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    held = []
    if quantized:  # by 1 and 0: the numbers stay
        held = [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]), helper.make_tensor("zero", 2, [], [0])]
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("QuantizeLinear", ["r", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes, "probe", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])], held
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    data: bytes = made.SerializeToString()
    return data
