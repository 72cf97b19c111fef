"""Tracing: what it loses is an error with the user's line, what it doesn't lose is none; and which code needs it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

from exporting import HEAD, forward, made, told  # noqa: E402

SEQUENCE = "x:float32[batch,seq=5,4]"
LAYERS = {"LSTM": "nn.LSTM(4, 6, batch_first=True)", "GRU": "nn.GRU(4, 6, batch_first=True)"}


@pytest.mark.parametrize("exporter", ["torchscript", "auto"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_recurrent_layer_keeps_its_sequence_free(exporter: str, layer: str, tmp_path: Path) -> None:
    """Its own checks of shapes are no loss; dynamo unrolls it, so that auto takes the other exporter."""
    done = made(tmp_path, forward("return self.r(x)[0]", f"self.r = {LAYERS[layer]}"), SEQUENCE, exporter=exporter)
    assert done.signature.inputs[0].shape == ("batch", "seq", 4)
    assert done.facts["exporter"] == "torchscript"
    notes = ["exported with torchscript, as dynamo fixes a size in torch's own code (net.py:11: return self.r(x)[0])"]
    assert done.facts["notes"] == (notes if exporter == "auto" else [])
    assert {"batch": 2, "seq": 1} in done.facts["proved_at"]  # type: ignore[operator]


def test_dynamo_says_which_layer_of_torchs_holds_the_size(tmp_path: Path) -> None:
    error = told(tmp_path, forward("return self.r(x)[0]", f"self.r = {LAYERS['LSTM']}"), SEQUENCE, exporter="dynamo")
    assert error.id == "baked-in-size" and "by torch's own code (torch/nn/modules/rnn.py)" in error.what
    assert error.where.startswith("net.py:11: ") and "--exporter torchscript" in error.do


def test_auto_takes_the_other_exporter_for_a_layer_that_dynamo_can_not_keep_free(tmp_path: Path) -> None:
    """A pooling after a stride holds at every width but one, says dynamo; the traced model holds at all."""
    init = "self.c = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())"
    given = "x:float32[batch,3,height=32,width=32]"
    done = made(tmp_path, forward("return self.c(x)", init), given, exporter="auto")
    assert done.facts["exporter"] == "torchscript" and len(done.facts["proved_at"]) == 8  # type: ignore[arg-type]
    error = told(tmp_path, forward("return self.c(x)", init), given, exporter="dynamo")
    assert "torch/nn/modules/" in error.what and "container.py" not in error.what


@pytest.mark.parametrize("size", [6, 8, 9])
def test_auto_takes_the_other_exporter_for_a_slice(size: int, tmp_path: Path) -> None:
    """Dynamo settles on which side of the bound the size lies; the traced slice is right on both."""
    given = f"x:float32[batch,seq={size}]"
    done = made(tmp_path, forward("return x[:, :8] * 2"), given, exporter="auto")
    assert done.facts["exporter"] == "torchscript"
    assert done.facts["notes"] == [
        "exported with torchscript, as dynamo fixes a size at a slice (net.py:8: return x[:, :8] * 2)"
    ]
    output = done.signature.outputs[0].shape
    assert output is not None and output[0] == "batch" and output[1] not in ("seq", size), "8 of 12 are left"
    error = told(tmp_path, forward("return x[:, :8] * 2"), given, exporter="dynamo")
    assert error.id == "baked-in-size" and error.do.startswith("try --exporter torchscript; or ")


CAUSAL = """
t = x.shape[1]
a = x @ x.transpose(1, 2)
return a.masked_fill(self.m[:t, :t] == 0, float("-inf")).softmax(-1) @ x
"""


@pytest.mark.parametrize(
    ("code", "init", "given", "place"),
    [
        (CAUSAL, "self.m = torch.tril(torch.ones(16, 16))", "x:float32[batch,seq=5,4]", " at a slice"),
        ("return x @ x.transpose(1, 2) + self.m[:x.shape[1], :x.shape[1]]", "self.m = torch.ones(16, 16)",
         "x:float32[batch,seq=5,4]", " at a slice"),
        ("return torch.cat([x[:, :4].float(), x[:, -4:].float()], 1)", "", "x:float32[batch,seq=9]", " at a slice"),
        ("return x.narrow(1, 0, 3).sum(1)", "", "x:float32[batch,seq=9]", ""),
    ],
)  # fmt: skip
def test_auto_takes_it_where_a_line_decides_nothing(
    code: str, init: str, given: str, place: str, tmp_path: Path
) -> None:
    done = made(tmp_path, forward(code, init), given, exporter="auto")
    (note,) = done.facts["notes"]  # type: ignore[misc]
    assert done.facts["exporter"] == "torchscript"
    assert str(note).startswith(f"exported with torchscript, as dynamo fixes a size{place} (net.py:")


WINDOWS = """
b, c, h, w = x.shape
x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)
return x.reshape(-1, 16, c).mean(1)
"""


def test_an_axis_that_goes_with_two_dimensions_goes_by_the_name_of_none(tmp_path: Path) -> None:
    """Of a batch of 2 and a height of 8 there are as many windows as the width has pixels, at every width."""
    done = made(tmp_path, forward(WINDOWS), "x:float32[batch=2,3,height=8,width=12]", exporter="torchscript")
    (output,) = done.signature.outputs
    assert output.shape is not None and output.shape[0] not in ("batch", "height", "width", 12)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript", "auto"])
def test_an_axis_that_takes_one_size_alone_is_fixed(exporter: str, tmp_path: Path) -> None:
    """A Linear after a flattening: dynamo captures it without a word on the sizes before."""
    body = forward("return self.l(x.flatten(1))", "self.l = nn.Linear(48, 5)")
    done = made(tmp_path, body, "x:float32[batch,3,height=4,width=4]", exporter=exporter)
    assert done.signature.inputs[0].shape == ("batch", 3, 4, 4)
    assert [str(note).partition(":")[0] for note in done.facts["notes"]] == [  # type: ignore[union-attr]
        "'height' is fixed at 4", "'width' is fixed at 4"
    ]  # fmt: skip


def test_what_neither_exporter_can_keep_free_is_told_as_such(tmp_path: Path) -> None:
    body = forward("return torch.nn.functional.adaptive_avg_pool2d(x, (3, 3)).flatten(1)")
    error = told(tmp_path, body, "x:float32[batch,3,height=8,width=12]", exporter="auto")
    assert error.do == "give the axis a fixed size in --input: --exporter torchscript can't keep it free either"


def test_a_bound_that_the_users_code_makes_is_told_by_the_other_exporter(tmp_path: Path) -> None:
    body = forward("n = min(x.shape[1], 8)\nreturn x[:, :n].sum(1)")
    error = told(tmp_path, body, "x:float32[batch,seq=6]", exporter="auto")
    assert error.id == "trace-lost-something" and error.where == "net.py:8: n = min(x.shape[1], 8)"
    assert "torch.jit.script" in error.do


def test_a_size_that_tracing_bakes_into_a_layer_of_torchs_is_left_to_dynamo(tmp_path: Path) -> None:
    """Its checks on shapes pass; what it bakes in shows in the proof."""
    body = forward("return self.r(x, x, x)[0]", "self.r = nn.MultiheadAttention(4, 2, batch_first=True)")
    error = told(tmp_path, body, SEQUENCE)
    assert error.id == "baked-in-size" and "seq 1" in error.what
    assert error.do.startswith("try --exporter dynamo: this one bakes it in for torch/nn/modules/")


@pytest.mark.parametrize(
    ("code", "given", "static"),
    [
        ("return x * torch.tensor(0.5)", SEQUENCE, False),
        ("return torch.clamp(x, min=torch.tensor(0.0))", SEQUENCE, False),
        ("return x * torch.from_numpy(np.ones(4, np.float32))", SEQUENCE, False),
        ("n = int(x.shape[0])\nreturn x.reshape(n, -1)", SEQUENCE, True),
        ("assert len(x) == 2\nreturn torch.stack([r * 2 for r in x])", SEQUENCE, True),
        ("return x * float(self.scale)", SEQUENCE, False),
    ],
)
def test_what_is_no_loss_is_no_error(code: str, given: str, static: bool, tmp_path: Path) -> None:
    done = made(tmp_path, forward(code, "self.register_buffer('scale', torch.tensor(3.0))"), given, static=static)
    assert done.facts["exporter"] == "torchscript"


@pytest.mark.parametrize(
    ("code", "lost", "line", "cure", "static"),
    [
        ("if x.sum() > 0:\n    return x\nreturn -x", "a branch", 8, "torch.cond", False),
        ("if x.sum() > 0:\n    return x\nreturn -x", "a branch", 8, "torch.cond", True),
        ("y = x\nn = int(x.shape[0])\nreturn y.reshape(n, -1)", "a number", 9, "without int()", False),
        ("n = int(x.abs().max())\nreturn x * n", "a number", 8, "keep it in a tensor", True),
        ("return torch.stack([r * 2 for r in x])", "the number of steps of a loop", 8, "torch.jit.script", False),
        ("n = len(x)\nreturn x.reshape(n, -1)", "the length of a tensor", 8, "x.shape[0]", False),
        ("return x.reshape(-1, int(np.prod(x.shape[1:])))", "what numpy computes", 8, "x.shape", False),
        ("n = int(str(x.numel())) // 20\nreturn x.reshape(n, 20)", "a number", 8, "x.shape", False),
        ("return x * torch.tensor([x.sum(), 1.0])[0]", "a number", 8, "keep it in a tensor", True),
        ("return torch.split(x, (x > 0).sum() % 4 + 1, 1)[0]", "a number", 8, "keep it in a tensor", True),
        ("return x * torch.tensor(x.sum().numpy())", "what numpy computes", 8, "torch", True),
        ("return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))", "a torch.cond", 8, "torchscript out", False),
    ],
)
def test_what_is_lost_is_told_with_its_line(
    code: str, lost: str, line: int, cure: str, static: bool, tmp_path: Path
) -> None:
    error = told(tmp_path, forward(code), SEQUENCE, static=static)
    assert error.id == "trace-lost-something" and f"would lose {lost}" in error.what
    assert error.where.startswith(f"net.py:{line}: ") and cure in error.do


def test_a_check_inside_torch_is_no_loss_as_long_as_the_model_is_right(tmp_path: Path) -> None:
    """A batch normalization looks whether it has more than one value for each channel."""
    init = "self.bn = nn.BatchNorm1d(3)"
    body = forward("return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)", init)
    assert made(tmp_path, body, "x:float32[batch,3,4]").facts["exporter"] == "torchscript"


SCRIPTED = """
@torch.jit.script
def branch(x: torch.Tensor):
    if bool(x.sum() > 0):
        return x * 2
    else:
        return x - 1

class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
    def forward(self, x):
        if bool(x.sum() > 0):
            return self.fc(x)
        return x * 2

def helper(x):
    return branch(x)

def p():
    return [torch.full((2, 4), -3.0), torch.full((3, 4), 3.0), torch.full((1, 4), 0.3)]

"""


@pytest.mark.parametrize(
    ("call", "init"),
    [
        ("self.f(x) * 1", "self.f = branch"),
        ("helper(x) * 1", ""),
        ("scripted_elsewhere.branch2(x) * 1", ""),
        ("self.b(x) + 1", "self.b = torch.jit.script(Part())"),
        ("self.b(x) + 1", "self.b = nn.Sequential(torch.jit.script(Part()))"),
    ],
)
def test_scripted_code_is_recognised_by_whatever_name(
    call: str, init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "scripted_elsewhere.py").write_text(HEAD + SCRIPTED.replace("def branch(", "def branch2("))
    body = ("import scripted_elsewhere\n" if "elsewhere" in call else "") + SCRIPTED + forward(f"return {call}", init)
    done = made(tmp_path, body, "x:float32[batch,4]", exporter="auto", probe="p")
    assert done.facts["exporter"] == "torchscript" and done.facts["probes"] == 3
    assert "If" in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    monkeypatch.delitem(__import__("sys").modules, "scripted_elsewhere", raising=False)


def test_scripted_code_can_not_go_through_dynamo(tmp_path: Path) -> None:
    error = told(tmp_path, SCRIPTED + forward("return helper(x)"), "x:float32[batch,4]", exporter="dynamo")
    assert error.id == "wrong-exporter"


def test_a_traced_module(tmp_path: Path) -> None:
    """Its forward is a method in C++, which has no signature to read."""
    body = SCRIPTED + "def Net():\n    return torch.jit.trace(nn.Linear(4, 4).eval(), torch.ones(2, 4))\n"
    done = made(tmp_path, body, "x:float32[batch,4]", exporter="auto")
    assert done.signature.inputs[0].shape == ("batch", 4)


MASKED = forward("return (x @ x.transpose(1, 2)) * torch.triu(torch.ones(x.shape[1], x.shape[1]), 1)")


def test_an_operator_of_a_later_opset_raises_the_opset_where_it_is_left_open(tmp_path: Path) -> None:
    done = made(tmp_path, MASKED, SEQUENCE)
    assert done.facts["opset"] == 14 and done.facts["notes"] == ["opset 14, which aten::triu needs"]
    error = told(tmp_path, MASKED, SEQUENCE, opset=13)
    assert error.id == "no-translation" and "give --opset 14" in error.do


def test_opsets_that_nobody_knows(tmp_path: Path) -> None:
    for exporter in ("torchscript", "dynamo"):
        error = told(tmp_path, forward("return x * 2"), SEQUENCE, opset=99, exporter=exporter)
        assert error.id == "opset-not-honoured" and "99" in error.what and "or higher" not in error.do


LOOP_WITH_BRANCH = """
from torch._higher_order_ops.while_loop import while_loop

class Net(nn.Module):
    def forward(self, x):
        def cond(i, v):
            return i < 3
        def body(i, v):
            return i + 1, torch.cond(v.sum() > 0, lambda u: u * 0.5, lambda u: u + 1, (v,))
        return while_loop(cond, body, (torch.tensor(0), x))[1]

def p():
    return [torch.full((2, 4), -3.0), torch.full((3, 4), 3.0)]
"""


def test_a_loop_that_holds_a_branch(tmp_path: Path) -> None:
    import torch

    made(tmp_path, LOOP_WITH_BRANCH, "x:float32[batch,4]", exporter="dynamo", probe="p")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for start in (-3.0, -0.4, 3.0):
        v = torch.full((2, 4), start)
        for _ in range(3):
            v = v * 0.5 if v.sum() > 0 else v + 1
        np.testing.assert_allclose(session.run(None, {"x": np.full((2, 4), start, np.float32)})[0], v.numpy())
