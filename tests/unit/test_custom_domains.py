"""Custom domains: refused by default, let through by name, and run by a library that the user named, never unasked."""

import hashlib
import importlib.machinery
import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import api, custom_domains, graph, precheck, searching
from penstock.backends import Loadable
from penstock.build_settings import BuildSettings, resolve
from penstock.cli import run as cli
from penstock.data import DataSettings
from penstock.deployment import Deployment
from penstock.errors import InputError, UsageError
from penstock.measures import Runnable
from penstock.pipeline import build
from penstock.precheck import CheckSettings
from penstock.stages.bench import BenchSettings
from penstock.stages.optimize import OptimizeSettings, optimize
from penstock.stages.search import SearchSettings

DOMAIN = "ai.onnx.contrib"


def custom(domain: str = DOMAIN, op: str = "Inverse") -> onnx.ModelProto:
    """Return (x + 10·1)⁻¹ · w, with an Identity that optimize takes out."""
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Add", ["x", "b"], ["sum"]), helper.make_node("Identity", ["sum"], ["same"]),
        helper.make_node(op, ["same"], ["inverse"], domain=domain, name="own"),
        helper.make_node("MatMul", ["inverse", "w"], ["y"]),
    ]  # fmt: skip
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    held = [numpy_helper.from_array(10 * np.eye(4, dtype=np.float32), "b"), numpy_helper.from_array(weight, "w")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:], held), opset_imports=opsets, ir_version=9
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(custom(), tmp_path / "inverse.onnx")
    return tmp_path / "inverse.onnx"


@pytest.fixture
def library() -> Path:
    """Return a real library with operators of ai.onnx.contrib."""
    found = importlib.util.find_spec("onnxruntime_extensions")
    if found is None or found.origin is None:
        pytest.skip("onnxruntime-extensions is not installed")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    return next(Path(found.origin).parent.glob(f"_extensions_pydll*{suffix}"))


def settings(source: Path, *allow: str) -> BuildSettings:
    quick = BenchSettings(warmup_calls=2, min_rounds=3, calls_per_round=2, seconds=0.1)
    return BuildSettings(str(source), check=CheckSettings(allow_domain=allow), bench=quick)


# --- without a library


def test_a_domain_is_refused_by_default_with_the_cure(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(settings(model), tmp_path / "out")
    assert caught.value.id == "custom-operators" and "Inverse" in caught.value.what
    assert f"--allow-domain {DOMAIN}=" in caught.value.do


def test_letting_one_domain_through_lets_no_other_through(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(settings(model, "com.acme"), tmp_path / "out")
    assert caught.value.id == "custom-operators"


def test_a_domain_inside_a_function_is_seen(tmp_path: Path) -> None:
    inner = helper.make_node("Odd", ["a"], ["b"], domain="com.acme")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    made = custom("own", "Wrapped")
    made.functions.append(helper.make_function("own", "Wrapped", ["a"], ["b"], [inner], opsets))
    made.opset_import.append(opsets[1])
    onnx.save(made, tmp_path / "m.onnx")
    uses = custom_domains.used(graph.load(tmp_path / "m.onnx"))
    assert [(use.domain, use.operators) for use in uses] == [("com.acme", ("Odd",))]


def test_without_a_library_a_build_says_that_nothing_can_run_it(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(settings(model, DOMAIN), tmp_path / "out")
    assert caught.value.id == "no-library" and DOMAIN in caught.value.what and "--allow-domain" in caught.value.do


def test_without_a_library_export_inspect_and_optimize_work(model: Path, tmp_path: Path) -> None:
    with precheck.limits(CheckSettings(allow_domain=(DOMAIN,))):
        done = api.export(str(model), tmp_path / "same.onnx")
        found = api.inspect(model)
    assert done.facts["custom_domains"] == {DOMAIN: {"operators": ["Inverse"], "library": None, "sha256": None}}
    assert (tmp_path / "same.onnx").read_bytes() == model.read_bytes()
    assert [(use.domain, use.library) for use in found.custom] == [(DOMAIN, "")]


def test_optimize_leaves_custom_nodes_as_they_are(model: Path, tmp_path: Path) -> None:
    (tmp_path / "slim").mkdir()
    optimize(model, OptimizeSettings(), tmp_path / "slim")
    slim = onnx.load(tmp_path / "slim" / "model.onnx")
    assert "Identity" not in {node.op_type for node in slim.graph.node}
    own = next(node for node in slim.graph.node if node.domain == DOMAIN)
    assert (own.op_type, own.name, len(own.attribute)) == ("Inverse", "own", 0)


@pytest.mark.parametrize(
    ("texts", "error", "id"),
    [(("=x.so",), UsageError, "bad-domain"), (("com.acme=",), UsageError, "bad-domain"),
     (("a b",), UsageError, "bad-domain"), (("ai.onnx",), UsageError, "bad-domain"),
     (("com.microsoft",), UsageError, "bad-domain"), (("com.acme", "com.acme"), UsageError, "bad-domain"),
     (("com.acme=nowhere.so",), InputError, "no-such-file"), (("com.acme=/",), InputError, "no-such-file")],
)  # fmt: skip
def test_what_is_written_wrongly(texts: tuple[str, ...], error: type, id: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(error) as caught:
        build(settings(model, *texts), tmp_path / "out")
    assert caught.value.id == id and caught.value.do


def test_what_is_no_library_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "fake.so").write_text("no library")
    with pytest.raises(InputError) as caught:
        build(settings(model, f"{DOMAIN}={tmp_path}/fake.so"), tmp_path / "out")
    assert "library" in caught.value.what and caught.value.do


def test_a_library_is_not_loaded_for_a_model_without_its_domain(tmp_path: Path, tiny: ModuleType) -> None:
    tiny.save(tiny.conv(), tmp_path / "plain.onnx")
    (tmp_path / "fake.so").write_text("it would fail to load")
    with precheck.limits(CheckSettings(allow_domain=(f"com.acme={tmp_path}/fake.so",))):
        assert custom_domains.libraries(tmp_path / "plain.onnx") == ()


# --- with a real library


def test_a_model_alone_never_loads_a_library_that_lies_beside_it(model: Path, library: Path) -> None:
    """Neither the domain's name nor a file beside the model is enough; a library is passed where it was named."""
    (model.parent / library.name).symlink_to(library)
    assert custom_domains.libraries(model) == ()
    with precheck.limits(CheckSettings(allow_domain=(DOMAIN,))):
        assert custom_domains.libraries(model) == ()
    plain = Deployment("t", "fp32", "", "fp32", "onnxruntime")
    with pytest.raises(InputError, match="Inverse"):
        Runnable(plain, Loadable(model), False).open()
    with precheck.limits(CheckSettings(allow_domain=(f"{DOMAIN}={library}",))):
        assert custom_domains.libraries(model) == (str(library.resolve()),)


def test_the_runtime_computes_what_numpy_does(model: Path, library: Path) -> None:
    plain = Deployment("t", "fp32", "", "fp32", "onnxruntime")
    session = Runnable(plain, Loadable(model, libraries=(str(library),)), False).open()
    x = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    (got,) = session.run({"x": x})
    session.close()
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    want = np.linalg.inv(x.astype(np.float64) + 10 * np.eye(4)) @ weight
    assert np.abs(got - want).max() < 1e-6


def test_a_build_names_the_library_everywhere_and_refuses_other_backends(
    model: Path, library: Path, tmp_path: Path
) -> None:
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    given = f"{DOMAIN}={library}"
    result = build(settings(model, given), tmp_path / "out", cache=tmp_path / "cache")
    assert result.chosen.endswith("@onnxruntime")
    said = {row.deployment.name: [v.reason for v in row.verdicts if not v.passed] for row in result.rows}
    for name, reasons in said.items():
        without = [reason for reason in reasons if "library of custom operators" in reason]
        assert bool(without) != name.endswith("@onnxruntime"), (name, reasons)
    shown = {"operators": ["Inverse"], "library": library.name, "sha256": digest}
    fp32 = next(variant for variant in result.variants if variant.name == "fp32")
    assert fp32.settings["custom_domains"] == {DOMAIN: shown}
    assert said["int8@onnxruntime"] is not None, "the MatMul behind the custom operator is quantized"
    lines = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    exported = next(x["body"] for x in lines if x["kind"] == "record" and x["body"]["stage"] == "export")
    assert exported["facts"]["custom_domains"] == {DOMAIN: shown}
    lock = tmp_path / "out" / "penstock.lock.toml"
    table = tomllib.loads(lock.read_text())
    assert table["libraries"] == {DOMAIN: digest} and table["check"]["allow_domain"] == [given]
    assert resolve({}, file=lock, environ={}).check.allow_domain == (given,)  # it can be built again from


def test_inspect_tells_the_library(model: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["inspect", str(model), "--json", "--allow-domain", f"{DOMAIN}={library}"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["result"]["custom"]
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert told == {"domain": DOMAIN, "operators": ["Inverse"], "library": library.name, "sha256": digest}


@pytest.mark.shared
def test_a_tokenizer_is_inspected_and_optimized_and_its_texts_cannot_be_made_up(
    shared: Path, library: Path, tmp_path: Path
) -> None:
    source = shared / "models" / "bert-tokenizer-ext" / "model.onnx"
    (tmp_path / "slim").mkdir()
    optimize(source, OptimizeSettings(), tmp_path / "slim")
    before, after = onnx.load(source), onnx.load(tmp_path / "slim" / "model.onnx")
    assert [n.SerializeToString() for n in after.graph.node] == [n.SerializeToString() for n in before.graph.node]
    with pytest.raises(InputError, match="type object can be made"):
        build(settings(source, f"{DOMAIN}={library}"), tmp_path / "out")


def test_a_search_runs_a_model_whose_library_is_named(model: Path, library: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(64, 4)).astype(np.float32), rng.integers(0, 4, 64)
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    wanted = SearchSettings(max_drop=100.0, objective="size", evaluations=1)
    quick = BenchSettings(seconds=0, min_rounds=3, calls_per_round=2, warmup_calls=2)
    with precheck.limits(CheckSettings(allow_domain=(f"{DOMAIN}={library}",))):
        found = searching.search(
            model, tmp_path / "best.onnx", DataSettings(data=str(tmp_path / "data.npz")), wanted, bench=quick
        )
    assert found.chosen == "static" and found.rungs[0].latency is not None
