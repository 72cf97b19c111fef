"""Untrusted models: what is refused before any library builds something from it."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock import graph, precheck
from penstock.errors import InputError


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        precheck.check(path)
    assert caught.value.do, "a refusal that a user can't act on is a bug"
    return caught.value


@pytest.mark.parametrize("external", [False, True])
def test_sound_models_pass(external: bool, tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    (tiny.with_external if external else tiny.save)(tiny.conv(), path)
    assert precheck.check(path).external == ((tmp_path / "w.data",) if external else ())


def test_data_in_a_folder_below_passes(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.with_external(tiny.mlp(), tmp_path / "m.onnx", "sub/deep/w.data")
    assert precheck.check(path).external == (tmp_path / "sub/deep/w.data",)


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.onnx").id == "no-such-file"
    assert refused(tmp_path).id == "not-a-file"
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert refused(tmp_path / "empty.onnx").id == "empty-model"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").id == "not-a-file"
    assert refused(tmp_path / "empty.onnx" / "below").id == "unreadable-file"


def test_too_large(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.save(tiny.mlp(), tmp_path / "m.onnx")
    monkeypatch.setattr(precheck, "MAX_MODEL_BYTES", path.stat().st_size - 1)
    assert refused(path).id == "model-too-large"
    monkeypatch.setattr(precheck, "MAX_MODEL_BYTES", path.stat().st_size)
    precheck.check(path)


@pytest.mark.parametrize("data", [b"hello, this is a text\n", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 30, b"\x08\x07"])
def test_what_is_no_model(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    assert refused(tmp_path / "m.onnx").id == "not-onnx"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_a_file_that_is_cut_off(share: float, tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.conv().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
    assert refused(tmp_path / "m.onnx").id == "not-onnx"


def altered(tiny: ModuleType, path: Path, **entries: str | None) -> Path:
    """Write a model whose first tensor has other entries for its external data."""
    model = tiny.mlp()
    tiny.with_external(model, path)
    tensor = model.graph.initializer[0]
    held = {e.key: e.value for e in tensor.external_data} | entries
    del tensor.external_data[:]
    tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in held.items() if v is not None)
    return tiny.save(model, path)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 10_000)
    return path


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("../secret", "outside"),
        ("sub/../../secret", "outside"),
        ("ABSOLUTE", "outside"),
        ("..\\secret", "outside"),
        ("C:secret", "outside"),
        ("", "names no file"),
        (None, "names no file"),
        (".", "external data"),
        ("./", "external data"),
        ("gone.data", "missing"),
        ("sub", "not a plain file"),
        ("w.data/", "a folder, not a plain file"),
        ("w.data/.", "a folder, not a plain file"),
        ("a" * 300, "File name too long"),
        ("a/" * 3000 + "w", "missing"),
        ("w.data\0", "names no file"),
    ],
)
def test_external_data_that_lies_elsewhere(
    location: str | None, told: str, tiny: ModuleType, tmp_path: Path, secret: Path
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    location = str(secret) if location == "ABSOLUTE" else location
    found = refused(altered(tiny, tmp_path / "in" / "m.onnx", location=location))
    assert found.id == "bad-external-data" and told in found.what and "w1" in found.where


def test_a_model_that_is_a_link_is_told_where_its_weights_may_lie(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = altered(tiny, tmp_path / "in" / "m.onnx", location="gone.data")
    (tmp_path / "link.onnx").symlink_to(target)
    found = refused(tmp_path / "link.onnx")
    assert "missing" in found.what and "the model file is a link to" in found.do and "in/m.onnx" in found.do
    assert "a link" not in refused(target).do


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"length": "999999999"}, "claims"),
        ({"offset": "999999999"}, "claims"),
        ({"offset": "-1"}, "claims"),
        ({"length": "-8"}, "claims"),
        ({"length": "x"}, "not a number"),
        ({"offset": "1e3"}, "not a number"),
        ({"offset": "1_0"}, "not a number"),  # what int() takes as well, and no other reader does
        ({"offset": " 0 "}, "not a number"),
        ({"offset": "٣"}, "not a number"),
        ({"length": "+0"}, "not a number"),
        ({"length": "9" * 6000}, "not a number"),
        ({"novel": "1"}, "unknown key 'novel'"),
    ],
)
def test_external_data_that_lies_about_itself(
    entries: dict[str, str], told: str, tiny: ModuleType, tmp_path: Path
) -> None:
    found = refused(altered(tiny, tmp_path / "m.onnx", **entries))
    assert found.id == "bad-external-data" and told in found.what


def test_a_length_that_is_not_the_tensors(tiny: ModuleType, tmp_path: Path) -> None:
    """The bytes are there, but not as many as shape and type need: told now, not somewhere later."""
    path = altered(tiny, tmp_path / "m.onnx", length="4")
    with pytest.raises(InputError):
        precheck.check(path)


def link(make: Callable[[Path, Path], None], tiny: ModuleType, folder: Path, secret: Path) -> Path:
    path = tiny.with_external(tiny.mlp(), folder / "m.onnx")
    (folder / "w.data").unlink()
    make(secret, folder / "w.data")
    return path


def test_links_are_refused(tiny: ModuleType, tmp_path: Path, secret: Path) -> None:
    soft = link(lambda a, b: b.symlink_to(a), tiny, tmp_path / "a", secret)
    assert "symbolic link" in refused(soft).what
    hard = link(lambda a, b: os.link(a, b), tiny, tmp_path / "b", secret)
    assert "hard link" in refused(hard).what
    through = tiny.with_external(tiny.mlp(), tmp_path / "c" / "m.onnx", "sub/w.data")
    (tmp_path / "c" / "sub").rename(tmp_path / "elsewhere")
    (tmp_path / "c" / "sub").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refused(through).what


def outside(array: np.ndarray, name: str = "evil") -> onnx.TensorProto:
    tensor = numpy_helper.from_array(array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="../secret"))
    return tensor


def one_node(node: onnx.NodeProto, functions: list[onnx.FunctionProto] | None = None) -> onnx.ModelProto:
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    made = helper.make_graph([node], "g", io[:1], io[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(made, functions=functions or [], opset_imports=imports)


def body(tensor: onnx.TensorProto) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Constant", [], ["o"], value=tensor)], "body", [], [out])


def hidden(where: str) -> onnx.ModelProto:
    evil = outside(np.zeros(1, np.float32))
    if where == "constant":
        return one_node(helper.make_node("Constant", [], ["y"], value=evil))
    if where == "tensors":
        node = helper.make_node("Identity", ["x"], ["y"])
        node.attribute.append(helper.make_attribute("list", [evil]))
        return one_node(node)
    if where == "subgraph":
        return one_node(helper.make_node("If", ["x"], ["y"], then_branch=body(evil), else_branch=body(evil)))
    if where == "graphs":
        node = helper.make_node("Identity", ["x"], ["y"])
        node.attribute.append(helper.make_attribute("list", [body(evil)]))
        return one_node(node)
    if where == "graphs beside a graph":
        node = helper.make_node("Identity", ["x"], ["y"])
        attribute = helper.make_attribute("list", [body(evil)])
        attribute.g.CopyFrom(body(numpy_helper.from_array(np.zeros(1, np.float32), "good")))
        node.attribute.append(attribute)
        return one_node(node)
    if where == "function":
        inner = helper.make_node("Constant", [], ["b"], value=evil)
        function = helper.make_function("own", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 17)])
        return one_node(helper.make_node("F", ["x"], ["y"], domain="own"), [function])
    model = one_node(helper.make_node("Identity", ["x"], ["y"]))
    sparse = onnx.SparseTensorProto(dims=[1])
    sparse.values.CopyFrom(evil)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    if where == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    elif where == "sparse attribute":
        model.graph.node[0].attribute.append(helper.make_attribute("s", sparse))
    return model


@pytest.mark.parametrize(
    "where",
    ["constant", "tensors", "subgraph", "graphs", "graphs beside a graph", "function", "sparse initializer", "sparse attribute"],  # noqa: E501
)  # fmt: skip
def test_external_data_is_found_wherever_a_tensor_can_hide(
    where: str, tiny: ModuleType, tmp_path: Path, secret: Path
) -> None:
    found = refused(tiny.save(hidden(where), tmp_path / "in" / "m.onnx"))
    assert found.id == "bad-external-data" and "outside" in found.what


@pytest.mark.parametrize("first", ["../secret", "w.data"])
def test_two_locations_are_refused(first: str, tiny: ModuleType, tmp_path: Path, secret: Path) -> None:
    """Readers differ in which of two they take, so what one checks isn't what another opens."""
    model = tiny.mlp()
    path = tiny.with_external(model, tmp_path / "in" / "m.onnx")
    tensor = model.graph.initializer[0]
    other = "w.data" if first == "../secret" else "../secret"
    rest = [e for e in tensor.external_data if e.key != "location"]
    del tensor.external_data[:]
    tensor.external_data.extend(onnx.StringStringEntryProto(key="location", value=v) for v in (first, other))
    tensor.external_data.extend(rest)
    assert refused(tiny.save(model, path)).id == "bad-external-data"


def test_taking_a_model_in_writes_nowhere_else(tiny: ModuleType, tmp_path: Path, secret: Path) -> None:
    from penstock.frontends import Source
    from penstock.frontends.onnx import export
    from penstock.stages.export import ExportSettings

    model = tiny.mlp()
    path = tiny.with_external(model, tmp_path / "in" / "m.onnx")
    model.graph.initializer[0].external_data.insert(0, onnx.StringStringEntryProto(key="location", value="../secret"))
    tiny.save(model, path)
    (tmp_path / "store" / "files").mkdir(parents=True)
    with pytest.raises(InputError):
        export(Source(str(path)), ExportSettings(), None, tmp_path / "store" / "files" / "model.onnx")
    assert not (tmp_path / "store" / "secret").exists()


def test_an_external_file_named_like_the_stores_own(tiny: ModuleType, tmp_path: Path) -> None:
    from penstock.frontends import Source
    from penstock.frontends.onnx import export
    from penstock.stages.export import ExportSettings

    model = tiny.mlp()
    x = np.ones((1, 6), np.float32)
    want = tiny.oracle(model, {"x": x})[0]
    path = tiny.with_external(model, tmp_path / "in" / "net.onnx", "model.onnx")
    (tmp_path / "out").mkdir()
    try:
        export(Source(str(path)), ExportSettings(), None, tmp_path / "out" / "model.onnx")
    except InputError as error:
        assert error.id != "not-onnx", "the weights took the model's place"
        return
    assert np.array_equal(tiny.oracle(onnx.load(tmp_path / "out" / "model.onnx"), {"x": x})[0], want)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["corrupt-model.onnx", "test_arbitrary_external_file.onnx", "test_evil_weights.onnx"])
def test_hostile_files_are_refused(name: str, shared: Path) -> None:
    refused(shared / "hostile" / name)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bad_names.onnx", "invalid_dim_param_value_repetition.onnx"])
def test_malformed_files_load_or_are_refused_in_our_words(name: str, shared: Path) -> None:
    try:
        graph.signature(graph.load(shared / "hostile" / name))
    except InputError as error:
        assert error.what and error.do


@pytest.mark.shared
def test_real_models_pass(shared: Path) -> None:
    models = sorted((shared / "models").glob("*/model.onnx"))
    assert len(models) > 20
    for path in models:
        precheck.check(path)


def hollow(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def test_weights_that_are_holes_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    """A hundred bytes and a file that takes no room would make optimize hold gigabytes."""
    hollow(tmp_path / "w.data", 512 << 20)
    path = tiny.save(hidden("constant"), tmp_path / "m.onnx")
    model = onnx.load(path, load_external_data=False)
    held = model.graph.node[0].attribute[0].t
    held.dims[0] = 128 << 20
    held.external_data[0].value = "w.data"
    found = refused(tiny.save(model, path))
    assert found.id == "sparse-file" and "536,870,912 bytes" in found.what
    with (tmp_path / "w.data").open("r+b") as file:  # mostly there is enough
        file.write(b"\1" * (300 << 20))
    precheck.check(path)


def test_a_small_file_may_have_holes(tmp_path: Path) -> None:
    from penstock.analysis import external_data

    hollow(tmp_path / "small", 60 << 20)
    assert external_data.holes(tmp_path / "small") == 0
    assert external_data.holes(tmp_path / "gone") == 0


def test_more_weights_than_memory(tiny: ModuleType, tmp_path: Path) -> None:
    """They are a warning for who looks, and a refusal for who has to hold them."""
    path = tiny.with_external(tiny.mlp(), tmp_path / "m.onnx")
    with precheck.limits(precheck.CheckSettings(max_model_bytes=100)):
        found = precheck.check(path, weights=False)
        assert [finding.id for finding in found.findings] == ["more-than-memory"] and not found.refused
        assert refused(path).id == "more-than-memory"
    assert precheck.memory_bytes() > 1 << 28


@pytest.mark.parametrize("kind", ["plain", "fifo", "device", "folder", "gone", "circle", "too large"])
def test_a_link_is_copied_only_if_it_leads_to_a_plain_file(
    kind: str, tiny: ModuleType, tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.cli import run

    path = tiny.with_external(tiny.mlp(), tmp_path / "in" / "m.onnx")
    data = tmp_path / "in" / "w.data"
    target = data.rename(tmp_path / "elsewhere\x1b[31m")
    if kind == "fifo":
        target = tmp_path / "pipe"
        os.mkfifo(target)
    elif kind in ("device", "folder", "gone", "circle"):
        target = {"device": Path("/dev/zero"), "folder": tmp_path, "gone": tmp_path / "none", "circle": data}[kind]
    data.symlink_to(target)
    limits = ["--max-tensor-bytes", "100"] if kind == "too large" else []
    code = run(["check", str(path), "--copy-links", *limits])
    shown = capsys.readouterr()
    assert "\x1b[31m" not in shown.err + shown.out and "error" not in shown.err
    if kind == "plain":
        assert code == 0 and not data.is_symlink() and "replaced by a copy" in shown.err
        return
    assert code == 2 and data.is_symlink()
    if kind != "too large":  # there the tensor itself is refused, before any link is followed
        assert "not copied" in shown.err and "put the data file itself" in shown.out


def test_no_link_is_copied_of_a_model_that_is_refused(tiny: ModuleType, tmp_path: Path, secret: Path) -> None:
    from penstock.cli import run

    path = link(lambda a, b: b.symlink_to(a), tiny, tmp_path / "a", secret)
    assert run(["check", str(path), "--copy-links", "--max-nodes", "1"]) == 2
    assert (tmp_path / "a" / "w.data").is_symlink()
    path.write_bytes(path.read_bytes()[:-5])
    assert run(["check", str(path), "--copy-links"]) == 2


def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    found = refused(tmp_path / "m.onnx")
    assert found.id == "not-onnx" and "a pointer of Git LFS" in found.what and "git lfs pull" in found.do


def test_a_link_is_not_copied_where_the_copy_would_not_fit(
    tiny: ModuleType, tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.cli import run

    (tmp_path / "in").mkdir()
    path = altered(tiny, tmp_path / "in" / "m.onnx", location="link.data", length="999999999", offset="0")
    (tmp_path / "in" / "link.data").symlink_to(secret)
    assert run(["check", str(path), "--copy-links"]) == 2
    shown = capsys.readouterr()
    assert "claims" in shown.out and "linked-external-data" in shown.out and "replaced by a copy" not in shown.err
    assert f"leads to {secret}" in shown.err and "not copied, as there is more to refuse" in shown.err
    assert (tmp_path / "in" / "link.data").is_symlink()
