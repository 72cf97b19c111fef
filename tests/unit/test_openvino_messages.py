"""What OpenVINO says of a failure is cut to the line that says something."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends import Loadable, openvino
from penstock.backends._openvino_messages import cause
from penstock.deployment import Deployment
from penstock.errors import InputError


def test_the_operators_that_it_cannot_convert_are_named() -> None:
    head = """Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
"""
    told = (
        head
        + """Model wasn't fully converted.
Summary:
-- No conversion rule found for operations: Det-17, com.acme.Odd
To facilitate the conversion of unsupported operations, refer to the documentation
"""
    )
    assert cause(RuntimeError(told)) == "it has no rule for Det-17, com.acme.Odd"
    told = (
        head
        + """Model wasn't fully converted. Failed operations detailed log:
-- Gather-17 with a message:
While validating ONNX node '<Node(Gather): y>': Check 'is_axis_valid(axis, r)' failed at src/core/src/util.cpp:336:
Axis 9 out of the tensor rank range [-2, 1].

Summary:
-- Conversion is failed for: Gather-17, Pad-17
"""
    )
    assert cause(RuntimeError(told)) == "Gather-17: Axis 9 out of the tensor rank range [-2, 1].; Pad-17 fails"


def test_so_it_puts_it_today(tmp_path: Path) -> None:
    for node, told in ((("Det", ["x"]), "it has no rule for Det-17"), (("Reshape", ["x", "x"]), "Reshape-17: ")):
        made = helper.make_graph(
            [helper.make_node(*node, ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )  # fmt: skip
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(InputError) as caught:
            openvino.load(Loadable(tmp_path / "m.onnx"), Deployment("d", "", "", "fp32", "openvino"))
        assert caught.value.what.startswith(f"OpenVINO can't compile the model: {told}"), caught.value.what


def test_a_heading_is_shown_with_what_it_announces() -> None:
    told = """Exception from src/inference/src/cpp/core.cpp:97:
    Exception from src/frontends/onnx/frontend/src/frontend.cpp:393:
    FrontEnd API failed with OpConversionFailure:
    No conversion for: com.acme.Odd
    """
    assert cause(RuntimeError(told)) == "FrontEnd API failed with OpConversionFailure: No conversion for: com.acme.Odd"
    assert cause(RuntimeError("just this")) == "just this"
    assert cause(RuntimeError("a heading alone:")) == "a heading alone:"
