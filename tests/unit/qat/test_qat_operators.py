"""Every operator that can be trained through computes what ONNX's reference evaluator computes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from penstock.errors import InputError
from penstock.qat import operators
from penstock.qat.network import Network

pytestmark = pytest.mark.torch
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """An operator, its inputs (a tuple is an initializer's), its attributes, and how many outputs it has."""

    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18
    runtime: bool = False  # held against ONNX Runtime, where the reference evaluator fails or says something else

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join(f'{k}={v}' for k, v in self.attributes.items())}"


IMAGE, ROW = floats(2, 4, 9, 8), floats(3, 5)
PADS = ints(0, 0, 1, 2, 0, 0, 3, 1)
POSITIVE = np.abs(ROW) + 0.1
UNARY = ("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
         "Mish", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
         "Tanh")  # fmt: skip
PAIRS = ("Add", "Div", "Max", "Min", "Mul", "Sub", "Sum", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
REDUCED = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare")
POOL = {"kernel_shape": [3, 2], "strides": [2, 2]}
CASES = [
    *(Case(op, (ROW,)) for op in UNARY),
    *(Case(op, (ROW, (floats(5),))) for op in PAIRS),
    *(Case(op, (IMAGE, (ints(1, -1),)), {"keepdims": keep}) for op in REDUCED for keep in (0, 1)),
    Case("ReduceMean", (IMAGE,), {"axes": [2, 3]}, opset=13), Case("ReduceMean", (IMAGE,)),
    Case("ReduceSum", (IMAGE,), {"noop_with_empty_axes": 1}),
    Case("Sqrt", (POSITIVE,)), Case("Log", (POSITIVE,)), Case("Pow", (POSITIVE, (np.array(2.5, np.float32),))),
    Case("Pow", (ROW, (np.array(2, np.int64),))), Case("Div", (ints(7, -7, 5), (ints(2, 2, -3),))),
    Case("Elu", (ROW,), {"alpha": 0.3}), Case("LeakyRelu", (ROW,), {"alpha": 0.2}),
    Case("HardSigmoid", (ROW,), {"alpha": 0.5, "beta": 0.1}), Case("PRelu", (ROW, (floats(5),))),
    Case("Gelu", (ROW,), opset=20), Case("Gelu", (ROW,), {"approximate": "tanh"}, opset=20),
    Case("Swish", (ROW,), {"alpha": 1.5}, opset=24),
    Case("Mod", (ints(7, -7, 5), (ints(3, 3, -3),))), Case("Mod", (ROW, (floats(5),)), {"fmod": 1}),
    Case("Clip", (ROW, (np.array(-0.5, np.float32),), (np.array(0.7, np.float32),))),
    Case("Clip", (ROW, None, (np.array(0.7, np.float32),))), Case("Clip", (ROW,)),
    Case("And", (ROW > 0, (ROW > 0.5,))), Case("Or", (ROW > 0, (ROW > 0.5,))), Case("Not", (ROW > 0,)),
    Case("Where", (ROW > 0, ROW, (floats(1, 5),))), Case("Dropout", (ROW,)),
    Case("Cast", (ROW,), {"to": TensorProto.INT64}), Case("Cast", (ROW > 0,), {"to": TensorProto.FLOAT}),
    Case("Cast", (ROW,), {"to": TensorProto.DOUBLE}), Case("Einsum", (ROW, (floats(5, 2),)), {"equation": "ij,jk->ki"}),
    Case("MatMul", (floats(2, 3, 4), (floats(4, 5),))), Case("MatMul", (floats(2, 3, 4), floats(2, 4, 3))),
    Case("Gemm", (ROW, (floats(5, 2),), (floats(2),))), Case("Gemm", (ROW, (floats(2, 5),)), {"transB": 1}),
    Case("Gemm", (ROW, (floats(3, 2),), (floats(5, 2),)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (ROW, (floats(2, 5),), (floats(3, 1),)), {"transB": 1}),
    Case("Softmax", (IMAGE,)), Case("Softmax", (IMAGE,), {"axis": 1}), Case("LogSoftmax", (ROW,)),
    Case("ArgMax", (ROW,), {"axis": 1, "keepdims": 0}), Case("ArgMin", (ROW,), {"axis": 0}),
    Case("BatchNormalization", (IMAGE, *[(floats(4),)] * 3, (np.abs(floats(4)),)), {"epsilon": 1e-3}),
    Case("InstanceNormalization", (IMAGE, (floats(4),), (floats(4),)), {"epsilon": 1e-3}),
    Case("GroupNormalization", (IMAGE, (floats(4),), (floats(4),)), {"num_groups": 2}, opset=21),
    Case("LayerNormalization", (ROW, (floats(5),), (floats(5),)), {"epsilon": 1e-3}),
    Case("LayerNormalization", (IMAGE, (floats(9, 8),)), {"axis": 2}),
    Case("LayerNormalization", (IMAGE, (floats(1, 8),), (floats(8),)), {"axis": 2}),
    Case("RMSNormalization", (ROW, (floats(5),)), {"epsilon": 1e-3}, opset=23),
    Case("Conv", (IMAGE, (floats(6, 4, 3, 3),), (floats(6),)), {"pads": [1, 1, 1, 1]}),
    Case("Conv", (IMAGE, (floats(6, 4, 3, 2),)), {"pads": [2, 0, 1, 1], "strides": [2, 1]}),
    Case("Conv", (IMAGE, (floats(4, 1, 3, 3),)), {"group": 4, "dilations": [2, 2]}),
    *(Case("Conv", (IMAGE, (floats(6, 4, 3, 2),)), {"auto_pad": auto, "strides": [2, 2]})
      for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    Case("Conv", (floats(2, 3, 9), (floats(4, 3, 3),)), {"pads": [1, 1]}),
    Case("Conv", (floats(1, 2, 5, 5, 5), (floats(3, 2, 3, 3, 3),))),
    Case("ConvTranspose", (IMAGE, (floats(4, 3, 3, 3),), (floats(3),)), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("ConvTranspose", (IMAGE, (floats(4, 3, 3, 3),)), {"strides": [2, 2], "pads": [0, 1, 2, 1]}),
    Case("ConvTranspose", (IMAGE, (floats(4, 2, 3, 3),)), {"strides": [2, 2], "group": 2, "output_padding": [1, 0]},
         runtime=True),
    Case("MaxPool", (IMAGE,), POOL), Case("MaxPool", (IMAGE,), POOL | {"pads": [1, 1, 1, 1]}),
    Case("MaxPool", (IMAGE,), POOL | {"pads": [2, 0, 1, 1]}), Case("MaxPool", (IMAGE,), POOL | {"ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [2, 2]}),
    Case("MaxPool", (IMAGE,), POOL | {"auto_pad": "SAME_UPPER"}),
    Case("AveragePool", (IMAGE,), POOL), Case("AveragePool", (IMAGE,), POOL | {"pads": [1, 0, 1, 1]}),
    Case("AveragePool", (IMAGE,), POOL | {"pads": [1, 0, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (floats(1, 2, 9, 9),), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, opset=19),
    Case("GlobalAveragePool", (IMAGE,)), Case("GlobalMaxPool", (IMAGE,)),
    Case("Flatten", (IMAGE,)), Case("Flatten", (IMAGE,), {"axis": -1}), Case("Flatten", (IMAGE,), {"axis": 0}),
    Case("Reshape", (IMAGE, (ints(0, -1, 6),))), Case("Transpose", (IMAGE,), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", (ROW,)), Case("Concat", (ROW, (floats(3, 2),)), {"axis": -1}),
    Case("Split", (IMAGE, (ints(3, 1),)), {"axis": 1}, outputs=2),
    Case("Split", (ROW,), {"axis": 1, "num_outputs": 2}, outputs=2),
    Case("Slice", (IMAGE, (ints(1, 2),), (ints(100, -1),), (ints(1, 3),))),
    Case("Slice", (IMAGE, (ints(-1, 7),), (ints(-100, 0),), (ints(2, 3),), (ints(-1, -3),))),
    Case("Slice", (ROW, (ints(1),), (ints(3),))),
    Case("Squeeze", (floats(2, 1, 3, 1), (ints(1),))), Case("Squeeze", (floats(2, 1, 3, 1),)),
    Case("Unsqueeze", (ROW, (ints(0, -1),))), Case("Gather", (IMAGE, (np.array([[2, -1], [0, 3]]),)), {"axis": 1}),
    Case("Gather", ((floats(7, 3),), ints(6, 0, -2))), Case("Gather", (IMAGE, (np.array(1, np.int64),)), {"axis": 2}),
    Case("GatherElements", (ROW, (np.array([[1, -1], [0, 2], [3, 4]]),)), {"axis": 1}),
    Case("Expand", (floats(3, 1), (ints(2, 1, 4),))), Case("Tile", (ROW, (ints(2, 3),))),
    *(Case("Pad", (IMAGE, (PADS,)), {"mode": mode}) for mode in ("constant", "reflect", "edge")),
    Case("Pad", (ROW, (ints(1, 2),), (np.array(1.5, np.float32),), (ints(-1),))),
    Case("Pad", (ROW, (ints(0, -1, 1, 0),)), runtime=True),
    Case("Shape", (IMAGE,)), Case("Shape", (IMAGE,), {"start": 1, "end": -1}), Case("Size", (IMAGE,)),
    Case("Constant", (), {"value_floats": [1.5, 2.5]}), Case("Constant", (), {"value_int": 3}),
    Case("Constant", (), {"value": numpy_helper.from_array(floats(2, 2))}),
    Case("ConstantOfShape", (ints(2, 3),), {"value": numpy_helper.from_array(np.array([7], np.int64))}),
    Case("Range", (np.array(1, np.int64), np.array(9, np.int64), np.array(3, np.int64))),
    Case("DepthToSpace", (IMAGE,), {"blocksize": 2}), Case("DepthToSpace", (IMAGE,), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (floats(1, 2, 4, 6),), {"blocksize": 2}),
]  # fmt: skip
RESIZES = [
    # the reference evaluator aligns corners of sizes that aren't whole, no runtime does
    Case("Resize", (IMAGE, None, (np.array(scales, np.float32),)), attributes, runtime="align" in str(attributes))
    for scales in ([1, 1, 2, 2], [1, 1, 0.6, 1.7])
    for attributes in (
        {}, {"mode": "linear"}, {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"},
    )
] + [
    Case("Resize", (IMAGE, None, None, (ints(2, 4, 5, 13),)), {"mode": "linear"}),
    Case("Resize", (IMAGE, None, (np.array([1.5, 2], np.float32),)), {"axes": [3, 2]}),
    Case("Resize", (IMAGE, None, (np.array([1, 1, 0.6, 1.7], np.float32),)),
         {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, opset=19),
]  # fmt: skip


def model_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    names, feeds, held, infos = [], {}, [], []
    for number, value in enumerate(case.inputs):
        names.append("" if value is None else f"i{number}")
        if isinstance(value, tuple):
            held.append(numpy_helper.from_array(np.asarray(value[0]), names[-1]))
        elif value is not None:
            feeds[names[-1]] = value
            infos.append(helper.make_tensor_value_info(names[-1], helper.np_dtype_to_tensor_dtype(value.dtype), None))
    outs = [f"o{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outs, name="node", **case.attributes)
    ends = [helper.make_empty_tensor_value_info(name) for name in outs]
    graph = helper.make_graph([node], "one", infos, ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10), feeds


def onnxruntime_of(model: onnx.ModelProto) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", [*CASES, *RESIZES], ids=str)
def test_an_operator_computes_what_the_reference_evaluator_does(case: Case) -> None:
    model, feeds = model_of(case)
    want = onnxruntime_of(model).run(None, feeds) if case.runtime else ReferenceEvaluator(model).run(None, feeds)
    made = Network(ir.from_proto(model))(*[torch.from_numpy(np.array(array)) for array in feeds.values()])
    for got, right in zip(made if isinstance(made, tuple) else (made,), want, strict=True):
        right = np.asarray(right)
        assert str(got.dtype).removeprefix("torch.") == str(right.dtype) and tuple(got.shape) == right.shape
        np.testing.assert_allclose(got.detach().numpy(), right, rtol=2e-5, atol=2e-5)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in (*CASES, *RESIZES)} == set(operators.table())


@pytest.mark.parametrize(("case", "said"), [
    (Case("ScatterND", (ROW, (ints(0).reshape(1, 1),), (floats(1, 5),))), "ScatterND isn't among"),
    (Case("Resize", (IMAGE, None, (np.array([1, 1, 2, 2], np.float32),)), {"mode": "cubic"}), "mode cubic"),
    (Case("MaxPool", (IMAGE,), POOL, outputs=2), "more than one result"),
    (Case("Pad", (IMAGE, (PADS,)), {"mode": "wrap"}, opset=19), "mode wrap"),
    (Case("ConvTranspose", (IMAGE, (floats(4, 3, 3, 3),)), {"output_shape": [18, 16]}), "output_shape"),
    (Case("AveragePool", (IMAGE,), POOL | {"dilations": [2, 2]}, opset=19), "dilations"),
    (Case("BatchNormalization", (IMAGE, *[(np.abs(floats(4)),)] * 4), {"training_mode": 1}), "training_mode"),
], ids=str)  # fmt: skip
def test_what_cannot_be_trained_through_is_refused_by_name(case: Case, said: str) -> None:
    model, _ = model_of(case)
    if case.outputs == 2:  # the second one counts where it is read
        model.graph.node.append(helper.make_node("Identity", ["o1"], ["o2"], name="reader"))
        model.graph.output.append(helper.make_empty_tensor_value_info("o2"))
    with pytest.raises(InputError) as caught:
        Network(ir.from_proto(model))
    assert caught.value.id == "cannot-train" and said in caught.value.what and "'node'" in caught.value.what


def test_gradients_pass_through_the_operators_of_the_main_path() -> None:
    passing = {case.op: case for case in CASES if case.inputs and isinstance(case.inputs[0], np.ndarray)}
    for op in ("Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "Gelu", "LayerNormalization", "Softmax", "Transpose",
               "Reshape", "Concat", "Slice", "Pad", "Split", "Gather", "HardSwish", "ConvTranspose"):  # fmt: skip
        model, feeds = model_of(passing[op])
        given = [torch.from_numpy(np.array(array)).requires_grad_() for array in feeds.values()]
        made = Network(ir.from_proto(model))(*given)
        (made[0] if isinstance(made, tuple) else made).square().sum().backward()
        assert given[0].grad is not None and given[0].grad.abs().sum() > 0, op
