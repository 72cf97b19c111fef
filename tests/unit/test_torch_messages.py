"""Why an export is wrong: the cause is found by experiment, and named with node, line and a cure that helps."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

from exporting import forward, made, told  # noqa: E402

GIVEN = "x:float32[batch,3,4]"


def test_a_constant_that_happens_to_be_the_size_is_not_blamed(tmp_path: Path) -> None:
    """The slice's 2 is its own; the squeeze drops the batch of one."""
    body = forward(
        """
        y = x[:, :, :2]
        s = y.mean((1, 2), keepdim=True).squeeze()
        return s if x.shape[0] > 1 else s.unsqueeze(0)
        """
    )
    error = told(tmp_path, body, GIVEN, exporter="dynamo")
    assert error.id == "export-differs" and "squeeze()" in error.do and error.where.startswith("net.py:9: s = ")


def test_a_size_that_is_baked_in_is_found_by_changing_it(tmp_path: Path) -> None:
    """The slice has a 2 of its own; with the reshape's changed, the model is right."""
    body = forward(
        """
        y = x[:, :, :2]
        rows = len(x.detach().numpy()) if not torch.jit.is_tracing() else 2
        return y.reshape(rows, 6) * 2
        """
    )
    error = told(tmp_path, body, GIVEN)
    assert error.id == "baked-in-size" and "(Reshape)" in error.what and error.where.startswith("net.py:10: ")


def test_zeros_and_ones_of_the_example_are_not_blamed_for_rounding(tmp_path: Path) -> None:
    body = forward("y = (x.half() / 3).float()\nreturn torch.where(x > 100, torch.tensor(0.0), y)")
    error = told(tmp_path, body + "\ndef ex():\n    return torch.tensor([[0., 1, 1, 0], [1, 1, 0, 1]])\n", example="ex")
    assert error.id == "export-differs" and "float16" in error.do and "--export-tolerance 0.0003" in error.do


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_half_precision_names_the_tolerance_and_no_other_exporter(exporter: str, tmp_path: Path) -> None:
    body = forward("return self.fc(x.half())", "torch.manual_seed(0); self.fc = nn.Linear(4, 2).half()")
    error = told(tmp_path, body, GIVEN, exporter=exporter)
    assert error.id == "export-differs" and "--export-tolerance" in error.do and "--exporter" not in error.do


def test_a_value_that_is_baked_in_is_found_by_another_export(tmp_path: Path) -> None:
    """No warning tells of a storage that is read; the sum is none of the example's values."""
    body = forward("m = x.sum() * 1\nreturn x * m.detach().untyped_storage().tolist()[3]")
    error = told(tmp_path, body, GIVEN)
    assert error.id == "baked-in-value" and error.where.startswith("net.py:9: ") and "node" in error.what


def test_a_buffer_that_the_module_writes_into_is_no_value_of_the_example(tmp_path: Path) -> None:
    body = forward(
        "return F.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=True)",
        "self.bn = nn.BatchNorm1d(3)",
    )
    error = told(tmp_path, body, GIVEN, exporter="dynamo")
    assert error.id != "baked-in-value"


def test_what_fails_at_the_examples_own_sizes_is_not_laid_on_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.backends.onnxruntime import OrtSession
    from penstock.errors import InputError

    def refuse(*_: object) -> None:
        raise InputError("run-failed", "ONNX Runtime can't run the model: no such kernel")

    monkeypatch.setattr(OrtSession, "run", refuse)
    error = told(tmp_path, forward("return x * 2"), GIVEN)
    assert error.id == "export-differs" and "the example's own sizes" in error.what and "no such kernel" in error.what


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "code",
    [
        "return torch.cat([x[i:i + 1] * i for i in range(x.shape[0])])",
        "return torch.stack([r * 2 for r in x.unbind(0)])",
    ],
)
def test_a_loop_over_a_size_is_cured_as_a_loop(code: str, exporter: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward(code), GIVEN, exporter=exporter)
    assert error.id == "baked-in-size" and error.where.startswith("net.py:8: ")
    assert "while_loop" in error.do and "take sizes from x.shape" not in error.do


def test_values_that_mean_nothing_at_a_size_are_told_as_such(tmp_path: Path) -> None:
    """Where a mask leaves nothing, torch gives zeros; the made-up mask leaves nothing at a sequence of one."""
    body = """
        class Net(nn.Module):
            def forward(self, x, mask):
                y = x.masked_fill(mask, float("-inf")).softmax(1)
                return y if torch.compiler.is_exporting() else y.nan_to_num(0.0)
        def ex():
            return torch.ones(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    """
    given = ("x:float32[batch,seq=12]", "mask:bool[batch,seq=12]")
    error = told(tmp_path, body, *given, exporter="dynamo")
    assert error.id == "export-differs" and "NaN" in error.what and "--example" in error.do
    free = tuple(text.replace("=12", "") for text in given)
    assert made(tmp_path, body, *free, exporter="dynamo", example="ex").facts["not_varied"] == []


def test_the_cure_is_said_once(tmp_path: Path) -> None:
    error = told(
        tmp_path, forward("return x.reshape(x.shape[0], 12) + torch.zeros(x.size(0), 12)[:2]"), GIVEN, exporter="dynamo"
    )
    assert error.do.count("a reshape takes -1") <= 1


@pytest.mark.parametrize(
    ("code", "what", "line", "do"),
    [
        ("if x.shape[0] > 4:\n    return x * 2\nreturn x", "only where 2 <= batch and batch <= 4", 8, "torch.cond"),
        ("k = math.floor(x.shape[0] / 1)\nreturn x.reshape(k * 3, 4)", "math.floor(batch / 1)", 9, "x.shape"),
        ("n = int(x.shape[0])\nreturn x + self.t[:n, :4].sum(0)", "into the node 'slice_1'", 8, "x.shape"),
    ],
)
def test_dynamo_names_the_line_and_the_dimension(code: str, what: str, line: int, do: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward(code, "self.t = nn.Parameter(torch.randn(10, 4))"), GIVEN, exporter="dynamo")
    assert (
        error.id == "baked-in-size" and what in error.what and "L['" not in error.what and "Infinity" not in error.what
    )
    assert error.where.startswith(f"net.py:{line + 3}: ") and do in error.do


def test_of_several_things_that_dynamo_settles_the_one_in_question_is_named(tmp_path: Path) -> None:
    body = forward("if x.shape[0] > 4:\n    return x * 2\nif x.shape[2] > 3:\n    return x - 1\nreturn x")
    error = told(tmp_path, body, "x:float32[batch,3,width=6]", exporter="dynamo")
    assert "'batch'" in error.what and error.where.startswith("net.py:8: if x.shape[0] > 4")


def test_limits_are_told_without_infinities(tmp_path: Path) -> None:
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.t = nn.Parameter(torch.randn(10, 4))
            def forward(self, x, idx):
                return x @ self.t[idx][:4].transpose(0, 1)[:, :4]
    """
    error = told(tmp_path, body, "x:float32[batch,4]", "idx:int64[k=6]", exporter="dynamo")
    assert error.what.startswith("the dimension 'k' isn't free: the module holds only where 4 <= k (at the node")
    assert error.where.startswith("net.py:12: ") and "fixed size in --input" in error.do and "x.shape" not in error.do


def test_no_address_and_no_scratch_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.frontends import _torch_writers

    def fail(_: object) -> bytes:
        raise RuntimeError("can't trace <__torch__.B object at 0x555af4d8af10>")

    monkeypatch.setitem(__import__("penstock.frontends._torch_export", fromlist=["x"]).WRITERS, "torchscript", fail)
    error = told(tmp_path, forward("return x * 2"), GIVEN)
    assert "0x" not in error.what and _torch_writers is not None


def test_a_model_that_the_runtime_does_not_load_names_no_file(tmp_path: Path) -> None:
    from penstock.errors import GateError
    from penstock.frontends._torch_proof import load

    (tmp_path / "scratch.onnx").write_bytes(b"no model")
    with pytest.raises(GateError) as caught:
        load(tmp_path / "scratch.onnx")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "exporter", "kind", "line"),
    [("y = x * 2\nif x.shape[0] == 1:\n    y = y + 1\nreturn y.relu()", "dynamo", "branch", 9),
     ("y = x * 2\nreturn (y + 1 if x.shape[0] == 1 else y).relu()", "dynamo", "branch", 9),
     ("y = x[0]\nfor i in range(x.shape[0]):\n    y = y + x[i] * (i + 1)\nreturn x + y", "torchscript", "loop", 9),
     ("i = 0\nwhile x.shape[0] == 1 and i < 2:\n    i, x = i + 1, x * 2\nreturn x + 1", "dynamo", "loop", 9)],
)  # fmt: skip
def test_a_way_that_depends_on_a_size_is_found_by_watching(
    code: str, exporter: str, kind: str, line: int, tmp_path: Path
) -> None:
    error = told(tmp_path, forward(code), "x:float32[batch,4]", exporter=exporter)
    assert error.id == "baked-in-size" and f"a {kind} that depends on a size is baked in" in error.what
    assert error.where.startswith(f"net.py:{line}: ") and "--static" in error.do
    assert ("script the function that has the loop" if kind == "loop" else "torch.where") in error.do


def test_a_refusal_of_the_exporters_that_the_module_caught_is_found(tmp_path: Path) -> None:
    code = "try:\n    if x.sum() > 0:\n        return x * 2\nexcept Exception:\n    pass\nreturn x + 0"
    error = told(
        tmp_path, forward(code) + "\ndef ex():\n    return torch.ones(2, 4)\n", example="ex", exporter="dynamo"
    )
    assert error.id == "branch-lost" and error.where.startswith("net.py:9: if x.sum() > 0")
    assert "under the exporter your code goes another way" in error.what and "a try around it" in error.do


@pytest.mark.parametrize(
    "stored", ["self.register_buffer('h', torch.ones(2, 4))", "self.h = nn.Parameter(torch.ones(2, 4))"]
)
def test_a_stored_tensor_that_has_the_size_is_named(stored: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward("return x + self.h", stored), "x:float32[batch,4]", exporter="dynamo")
    named = "buffer" if "buffer" in stored else "parameter"
    assert error.what.endswith(f"into the node 'add' (aten.add.Tensor), by the {named} 'h', which has that size")
    assert "a size of 1, which is broadcast" in error.do


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "check",
    ["assert x.sum() > -1e9", "if x.isnan().any():\n    raise ValueError('NaN')", "if x.sum() < -1e9: raise ValueError",
     "assert x.shape[0] < 1000"],
)  # fmt: skip
def test_a_check_that_raises_has_a_cure_of_its_own(check: str, exporter: str, tmp_path: Path) -> None:
    error = told(tmp_path, forward(f"{check}\nreturn x * 2"), "x:float32[batch,4]", exporter=exporter)
    assert error.do.startswith("leave the check out of forward") and error.where.startswith("net.py:8: ")


@pytest.mark.parametrize("filled", ["zeros", "ones"])
def test_an_example_of_one_value_hides_nothing(filled: str, tmp_path: Path) -> None:
    """Its zeros are zeros at every size and in every order, and so is three times each of them."""
    body = forward(
        "y = self.fc(x) - self.fc(torch.ones(4))\nreturn y * 3 if x.shape[0] == 1 else y", "self.fc = nn.Linear(4, 2)"
    )
    body += f"\ndef ex():\n    return torch.{filled}(2, 4)\n"
    error = told(tmp_path, body, "x:float32[batch,4]", example="ex", exporter="dynamo")
    assert error.id == "baked-in-size" and error.where.startswith("net.py:12: return y * 3 if x.shape[0] == 1")


def test_a_branch_in_a_hook_is_found(tmp_path: Path) -> None:
    body = """
        def hook(module, args):
            if args[0].shape[0] == 1:
                return (args[0] * 2,)
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_forward_pre_hook(hook)
            def forward(self, x):
                return x.relu() + 1
    """
    error = told(tmp_path, body, "x:float32[batch,4]", exporter="dynamo")
    assert error.id == "baked-in-size" and error.where.startswith("net.py:8: if args[0].shape[0] == 1")


def test_a_size_in_a_set_is_told_with_the_line_and_without_the_exporters_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only strict mode takes that, and it runs no Python of the user's that a stack would show."""
    error = told(
        tmp_path,
        forward("if x.shape[1] in {4, 8}:\n    x = x * 2\nreturn x"),
        "x:float32[batch,n=4]",
        exporter="dynamo",
    )
    assert error.id == "baked-in-size" and error.where.startswith("net.py:8: if x.shape[1] in {4, 8}")
    assert "Error while creating guard" not in capfd.readouterr().err


def test_an_operator_of_ones_own_is_no_other_way_under_the_exporter(tmp_path: Path) -> None:
    """Under export its fake runs in its place; what differs is the translation."""
    body = """
        @torch.library.custom_op("penstock_test::twice", mutates_args=())
        def twice(x: torch.Tensor) -> torch.Tensor:
            return x * 2
        @twice.register_fake
        def _(x):
            return torch.empty_like(x)
        class Net(nn.Module):
            def forward(self, x):
                return twice(x)
    """
    (tmp_path / "tr.py").write_text(
        "from onnxscript import opset18 as op\n\ndef thrice(x):\n    return op.Mul(x, 3.0)\n"
    )
    given = {"translate": (f"penstock_test::twice={tmp_path}/tr.py:thrice",), "exporter": "dynamo"}
    error = told(tmp_path, body, "x:float32[batch,4]", **given)
    assert (
        error.id == "export-differs"
        and "another way" not in error.what
        and "thrice" in error.what + error.do + error.where
    )
