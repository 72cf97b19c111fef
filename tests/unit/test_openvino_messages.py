"""What OpenVINO says of a failure is cut to the line that says something."""

from penstock.backends.openvino import _cause


def test_a_heading_is_shown_with_what_it_announces() -> None:
    told = """Exception from src/inference/src/cpp/core.cpp:97:
    Exception from src/frontends/onnx/frontend/src/frontend.cpp:393:
    FrontEnd API failed with OpConversionFailure:
    No conversion for: com.acme.Odd
    """
    assert _cause(RuntimeError(told)) == "FrontEnd API failed with OpConversionFailure: No conversion for: com.acme.Odd"
    assert _cause(RuntimeError("just this")) == "just this"
    assert _cause(RuntimeError("a heading alone:")) == "a heading alone:"
