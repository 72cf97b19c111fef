"""Sizes of an export: one for each name, the batch wherever it stands, and the example with what --input says."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytestmark = pytest.mark.torch

from exporting import forward, made, told  # noqa: E402
from penstock import inputs  # noqa: E402
from penstock.signature import Signature, TensorSpec  # noqa: E402

SQUEEZED = forward(
    """
    y = x.mean(0).mean(1, keepdim=True).squeeze()
    return y if x.shape[1] > 1 else y.unsqueeze(0)
    """
)
STATEFUL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.r = nn.LSTM(4, 6, batch_first=True)
    def forward(self, x, h, c):
        return self.r(x, (h, c))[0]

def two():
    return torch.randn(2, 5, 4), torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)

def one():
    return torch.randn(1, 5, 4), torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)
"""
STATES = ("x:float32[batch,seq=5,4]", "h:float32[1,batch,6]", "c:float32[1,batch,6]")


def test_the_batch_is_proved_at_its_sizes_wherever_it_stands(tmp_path: Path) -> None:
    """With the batch second, a batch of one was never run, and a wrong model passed."""
    error = told(tmp_path, SQUEEZED, "x:float32[seq=5,batch=2,4]", exporter="dynamo")
    assert error.id == "export-differs" and "batch 1" in error.what and "squeeze()" in error.do
    assert error.where.startswith("net.py:8: y = ")
    done = made(tmp_path, forward("return x.mean(0) * 2"), "x:float32[seq=5,batch=2,4]")
    assert done.facts["proved_at"] == [
        *({"seq": 5, "batch": n} for n in (1, 2, 3, 7)), {"seq": 1, "batch": 2}, {"seq": 6, "batch": 2},
    ]  # fmt: skip
    assert done.signature.outputs[0].shape == ("batch", 4), "an output's axes go by what moves them"


def test_without_a_batch_the_first_axis_is_it_and_others_are_not(tmp_path: Path) -> None:
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.t = nn.Parameter(torch.randn(10, 4))
            def forward(self, x, idx):
                return x @ self.t[idx].mean(0)
    """
    done = made(tmp_path, body, "x:float32[n,4]", "idx:int64[k=6]")
    sizes = done.facts["proved_at"]
    assert [s["n"] for s in sizes[:4]] == [1, 2, 3, 7] and [s["k"] for s in sizes] == [6, 6, 6, 6, 1, 7]  # type: ignore[index,union-attr,call-overload]


def test_a_name_has_one_size_everywhere(tmp_path: Path) -> None:
    done = made(tmp_path, STATEFUL, *STATES)
    assert [spec.text() for spec in done.signature.inputs] == [
        "x:float32[batch,seq,4]", "h:float32[1,batch,6]", "c:float32[1,batch,6]",
    ]  # fmt: skip
    spec = Signature((TensorSpec("x", "float32", ("n", 3)), TensorSpec("h", "float32", (1, "n"))), ())
    feeds = inputs.seeded(spec, batch=5, seed=0)
    assert feeds["x"].shape == (5, 3) and feeds["h"].shape == (1, 5)
    assert inputs.free_axes(spec) == []


@pytest.mark.parametrize("example", ["two", "one"])
def test_the_batch_of_an_example_is_found_by_trying(example: str, tmp_path: Path) -> None:
    done = made(tmp_path, STATEFUL, example=example)
    assert [spec.shape for spec in done.signature.inputs] == [("batch", 5, 4), (1, "batch", 6), (1, "batch", 6)]


def test_input_and_example_are_combined(tmp_path: Path) -> None:
    """Names and dynamic axes of the one, values and sizes of the other."""
    done = made(tmp_path, STATEFUL, "x:float32[batch,seq,4]", *STATES[1:], example="one")
    assert done.signature.inputs[0].shape == ("batch", "seq", 4)
    assert done.facts["proved_at"][0] == {"batch": 1, "seq": 5}  # type: ignore[index]
    body = forward("return x * 2") + "\ndef example_inputs():\n    return torch.ones(1, 9)\n"
    done = made(tmp_path, body, "x:float32[batch,width]")
    assert done.facts["proved_at"][0] == {"batch": 1, "width": 9}  # type: ignore[index]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("x:float32[batch,seq=9]", "'seq' is 9 elsewhere"),
        ("x:float32[batch,5]", "is float32[2, 4]"),
        ("x:float32[batch,seq,1]", "--input says"),
        ("x:int64[batch,4]", "--input says"),
        ("x:float32[same,same]", "'same' is 2 elsewhere"),
    ],
)
def test_input_and_example_that_disagree(given: str, what: str, tmp_path: Path) -> None:
    body = forward("return x * 2") + "\ndef ex():\n    return torch.zeros(2, 4)\n"
    error = told(tmp_path, body, given, example="ex")
    assert error.id == "bad-example" and what in error.what and error.do


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (("x:float32[batch,4]", "x:float32[batch,4]"), "the input 'x' is given twice"),
        (("x:float32[batch=2,4]", "y:float32[batch=3,4]"), "'batch' is given two sizes, 2 and 3"),
    ],
)
def test_input_that_contradicts_itself(given: tuple[str, ...], what: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward("return x * 2"), *given)
    assert error.id == "bad-input-spec" and what in error.what


def test_another_name_than_the_parameters_is_noted(tmp_path: Path) -> None:
    done = made(tmp_path, forward("return x * 2"), "picture:float32[batch,4]")
    assert done.facts["notes"] == ["the input 'picture' is the parameter 'x' of forward"]


FIXED = forward("return x.reshape(x.shape[0], 5, 4).mean(1)")


def test_an_axis_that_the_module_fixes_is_fixed_in_the_file_or_an_error(tmp_path: Path) -> None:
    done = made(tmp_path, FIXED, "x:float32[batch,seq=5,4]")
    assert done.signature.inputs[0].shape == ("batch", 5, 4)
    assert done.facts["notes"] == ["'seq' is fixed at 5: the module takes no other size that was tried"]
    assert done.facts["not_varied"] == ["seq"]
    error = told(tmp_path, FIXED, "x:float32[batch,seq=5,4]", exporter="dynamo")
    assert error.id == "baked-in-size" and "'seq'" in error.what


@pytest.mark.parametrize("taken", ["x / float({})", "x / len(x[0])", "x * int(math.sqrt({}))", "x * math.sqrt({})"])
def test_a_size_that_became_a_number_is_told_what_it_is(taken: str, tmp_path: Path) -> None:
    """The cure for a loop is none here; this one is taken, and the export goes through."""
    body = "import math\n" + forward(f"return {taken.format('x.shape[1]')}")
    error = told(tmp_path, body, "x:float32[batch,tokens=16,4]", exporter="dynamo")
    assert error.id == "baked-in-size" and "'tokens'" in error.what
    assert "take the size as x.shape has it, without int(), float(), len()" in error.do and "loop" not in error.do
    cured = forward(
        f"return x {'*' if '*' in taken else '/'} {'x.shape[1] ** 0.5' if 'sqrt' in taken else 'x.shape[1]'}"
    )
    assert made(tmp_path, cured, "x:float32[batch,tokens=16,4]", exporter="dynamo").facts["not_varied"] == []


@pytest.mark.parametrize(
    ("line", "cure"),
    [("if len(x[0]) > 3: x = x * 2", "write the branch"), ("assert int(x.shape[1]) > 3", "leave the check out"),
     ("for i in range(x.shape[1]): x = x + i", "while_loop"), ("while len(x[0]) > 9: x = x[:, 1:]", "while_loop")],
)  # fmt: skip
def test_a_branch_and_a_loop_over_a_size_have_their_own_cures(line: str, cure: str, tmp_path: Path) -> None:
    body = forward(f"{line}\nreturn x * 2")
    error = told(tmp_path, body, "x:float32[batch,tokens=16,4]", exporter="dynamo")
    assert error.id == "baked-in-size" and cure in error.do and line.split()[0] in error.where


def test_an_axis_that_takes_multiples_is_not_fixed(tmp_path: Path) -> None:
    body = forward("return x.reshape(x.shape[0], -1, 100).mean(2)")
    done = made(tmp_path, body, "x:float32[batch,seq=300]")
    assert done.facts["not_varied"] == [] and done.facts["proved_at"][-1] == {"batch": 2, "seq": 600}  # type: ignore[index]


def test_batches_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    error = told(tmp_path, forward("return x * 2"), "x:float32[batch,4]", batches=(1, 100_000_000))
    assert error.id == "sizes-too-large" and "1.6 GB" in error.what and error.where == "--export-batches"
    error = told(tmp_path, forward("return x * 2"), "x:float32[batch,n=1000000000]")
    assert error.id == "sizes-too-large" and "8 GB" in error.what and error.where == "--input"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("torch.zeros(2, 4, dtype=torch.bfloat16)", "a tensor of bfloat16"),
        ("torch.zeros(2, 4).to_sparse()", "a sparse tensor"),
        ("torch.zeros(2, 4, device='meta')", "on the device meta"),
        ("torch.zeros(0, 4)", "is empty"),
        ("'abc'", "is a str, not a tensor"),
        ("[None, None]", "is a NoneType, not a tensor"),
        ("()", "returned no inputs"),
    ],
)
def test_examples_that_can_be_no_input(value: str, what: str, tmp_path: Path) -> None:
    body = forward("return x * 2") + f"\ndef ex():\n    return {value}\n"
    error = told(tmp_path, body.replace("def forward(self, x)", "def forward(self, x, y=None)"), example="ex")
    assert error.id == "bad-example" and what in error.what and error.do


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("torch.zeros(2, 4, dtype=torch.bfloat16)", "a tensor of bfloat16"),
        ("torch.zeros(2, 4).to_sparse()", "a sparse tensor"),
        ("torch.zeros(2, 9)", "the probe's 'x' is float32[2, 9], but its axis 1 is fixed at 4"),
    ],
)
def test_probes_that_can_be_no_input(value: str, what: str, tmp_path: Path) -> None:
    error = told(
        tmp_path, forward("return x * 2") + f"\ndef p():\n    return {value}\n", "x:float32[batch,4]", probe="p"
    )
    assert error.id == "bad-probe" and what in error.what and error.do


def test_a_probe_of_another_batch_of_a_static_export_is_told_as_such(tmp_path: Path) -> None:
    body = forward("return x * 2") + "\ndef p():\n    return torch.zeros(3, 4)\n"
    error = told(tmp_path, body, "x:float32[batch,4]", probe="p", static=True)
    assert error.id == "bad-probe" and "its axis 0 is fixed at 2" in error.what


def test_a_module_that_fails_on_a_probe_names_the_probe(tmp_path: Path) -> None:
    body = forward("return self.e(x)", "self.e = nn.Embedding(3, 2)") + "\ndef p():\n    return torch.full((2, 4), 7)\n"
    error = told(tmp_path, body, "x:int64[batch,4]", probe="p")
    assert "the module fails on the inputs of probe 1, x int64[2, 4]" in error.what


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_module_that_writes_into_its_input_is_exported_and_noted(exporter: str, tmp_path: Path) -> None:
    done = made(tmp_path, forward("x += 1\nreturn x * 2"), "x:float32[batch,4]", exporter=exporter)
    assert done.facts["notes"] == ["the module writes into its input 'x', which the exported model leaves as it is"]
    got = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"x": np.ones((3, 4), np.float32)})
    assert len(got) == 1 and (got[0] == 4).all()


@pytest.mark.parametrize(
    ("result", "what"),
    [
        ("x * 2, x.shape[0]", "output 1 of the module is an int, not a tensor"),
        ("x * 2, 3", "output 1 of the module is an int, not a tensor"),
        ("{'y': x * 2, 'name': 'hello'}", "output 'name' of the module is a str, not a tensor"),
        ("x.to_sparse()", "output 0 of the module is a sparse tensor"),
        ("torch.fft.fft(x)", "output 0 of the module is complex"),
        ("x.to(torch.bfloat16)", "output 0 of the module is a tensor of bfloat16"),
    ],
)
def test_outputs_that_are_no_tensors(result: str, what: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward(f"return {result}"), "x:float32[batch,4]")
    assert error.id == "output-not-a-tensor" and what in error.what and error.do
    assert error.where.startswith("net.py:7: def forward")


def test_no_output_says_what_to_do(tmp_path: Path) -> None:
    error = told(tmp_path, forward("return 3"), "x:float32[batch,4]")
    assert error.id == "no-output" and error.do


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_parameters_with_defaults_are_no_inputs(exporter: str, tmp_path: Path) -> None:
    body = forward("return x * scale if mask is None else x * mask").replace(
        "(self, x)", "(self, x, scale=2.0, mask=None)"
    )
    done = made(tmp_path, body, "x:float32[batch,4]", exporter=exporter)
    assert [spec.name for spec in done.signature.inputs] == ["x"]
    made(tmp_path, body, "x:float32[batch,4]", "scale:float32[]", exporter=exporter)


def test_none_beside_tensors_is_left_out(tmp_path: Path) -> None:
    done = made(tmp_path, forward("return x * 2, None"), "x:float32[batch,4]")
    assert [spec.name for spec in done.signature.outputs] == ["output"]
