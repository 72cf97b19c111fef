"""Where a setting's value comes from, and what is refused with which hint."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock import settings
from penstock.build_settings import resolve
from penstock.errors import UsageError
from penstock.settings import option, split
from penstock.stages.bench import BenchSettings
from penstock.stages.export import ExportSettings
from penstock.stages.quantize import QuantizeSettings
from penstock.stages.select import SelectSettings


def quantize(flags: dict | None = None, environ: dict | None = None, file: dict | None = None) -> QuantizeSettings:
    return settings.resolve("quantize", flags or {}, environ or {}, {"quantize": file or {}}, QuantizeSettings)


def test_flag_beats_environment_beats_file_beats_default() -> None:
    file, env, flag = {"calibration-batch": 4}, {"PENSTOCK_QUANTIZE_CALIBRATION_BATCH": "5"}, {"calibration_batch": "6"}
    assert quantize().calibration_batch == 32
    assert quantize(file=file).calibration_batch == 4
    assert quantize(file=file, environ=env).calibration_batch == 5
    assert quantize(file=file, environ=env, flags=flag).calibration_batch == 6


def test_a_given_false_beats_a_true_below_it() -> None:
    assert quantize(file={"per_channel": True}, environ={"PENSTOCK_QUANTIZE_PER_CHANNEL": "no"}).per_channel is False
    assert quantize(file={"per_channel": True}, flags={"per_channel": False}).per_channel is False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("calibration_batch", "many"), ("calibration_batch", 1.5), ("calibration_batch", True), ("calibration_batch", 0),  # noqa: E501
        ("calibration_batch", [1]), ("per_channel", "maybe"), ("per_channel", 1), ("activations", "int4"),
        ("activations", 8), ("exclude", 3), ("exclude", {"a": 1}), ("exclude", [1]), ("method", ["x"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(file={field: value})
    assert caught.value.id == "bad-setting" and field in str(caught.value)


@pytest.mark.parametrize("value", ["x", "nan", "-1", -1, True, [1.0], 10**400])
def test_a_wrong_number_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        settings.resolve("bench", {}, {}, {"bench": {"seconds": value}}, BenchSettings)


@pytest.mark.parametrize("value", ["inf", float("inf")])
def test_an_infinite_time_is_refused(value: object) -> None:
    with pytest.raises(UsageError):
        settings.resolve("bench", {"seconds": value}, {}, {}, BenchSettings)


def test_the_choices_are_told() -> None:
    with pytest.raises(UsageError, match=r"one of .*uint8, int8, uint16, int16, not 'uint4'"):
        quantize(flags={"activations": "uint4"})


def test_optional_numbers() -> None:
    got = settings.resolve("select", {"max_drop": "0.5"}, {}, {"select": {"max-size-mb": 2}}, SelectSettings)
    assert (got.max_drop, got.max_size_mb, got.max_latency_ms) == (0.5, 2.0, None)
    assert isinstance(got.max_size_mb, float)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]),
        (" a , ,b, ", ["a", "b"]),
        ("x:float32[batch,3],y:int64[n]", ["x:float32[batch,3]", "y:int64[n]"]),
        ("", []),
        ("[1,2],3", ["[1,2]", "3"]),
    ],
)
def test_lists_are_cut_outside_of_brackets(text: str, items: list[str]) -> None:
    assert split(text) == items


def test_lists_from_text_and_from_lists() -> None:
    got = settings.resolve(
        "export", {"batches": "1,2"}, {"PENSTOCK_EXPORT_INPUT": "x:float32[b,3],y:int64[b]"}, {}, ExportSettings
    )
    assert got.batches == (1, 2) and got.input == ("x:float32[b,3]", "y:int64[b]")
    with pytest.raises(UsageError, match="at least 1"):
        settings.resolve("export", {"batches": [0]}, {}, {}, ExportSettings)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[bensh]\nseconds = 1", "did you mean 'bench'"),
        ("[bench]\nsecond = 1", "did you mean 'seconds'"),
        ("[select]\nmax-dorp = 1", "did you mean 'max_drop'"),
        ("sauce = 'x'", "did you mean 'source'"),
        ("bench = 3", "is a table"),
        ("[bench\n", "can't be read"),
    ],
)
def test_files_with_something_unknown_are_refused_with_a_hint(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path / "penstock.toml", text)
    with pytest.raises(UsageError, match=told) as caught:
        settings.read_file(file)
    assert caught.value.where == str(file)


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such settings file"):
        settings.read_file(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="can't be read"):
        settings.read_file(tmp_path / "b.toml")
    with pytest.raises(UsageError, match="can't be read"):
        settings.read_file(tmp_path)


def test_the_file_of_a_folder(tmp_path: Path) -> None:
    assert settings.find_file(tmp_path) is None
    project = write(tmp_path / "pyproject.toml", "[tool.other]\nx = 1")
    assert settings.find_file(tmp_path) is None
    write(project, "[tool.penstock.bench]\nseconds = 1.5")
    assert settings.find_file(tmp_path) == project
    assert settings.read_file(project) == {"bench": {"seconds": 1.5}}
    own = write(tmp_path / "penstock.toml", "")
    assert settings.find_file(tmp_path) == own


def test_every_field_says_what_it_is_for() -> None:
    for section in settings.SECTIONS:
        flags = [field.flag for field in settings.fields(section)]
        assert all(field.help for field in settings.fields(section)), section
        assert all(flag.startswith("--") for flag in flags) and len(set(flags)) == len(flags)
    every = [field.flag for section in settings.SECTIONS for field in settings.fields(section)]
    assert len(set(every)) == len(every), "penstock build has them all"


def test_fields_read_the_types() -> None:
    @dataclass(frozen=True)
    class Own:
        a: int = option(1, "a")
        b: float | None = option(None, "b", minimum=2.0)
        c: tuple[str, ...] = option((), "c", flag="--sea")

    shown = [(f.name, f.kind, f.many, f.optional, f.flag, f.minimum) for f in settings.fields("own", Own)]
    assert shown == [
        ("a", int, False, False, "--a", None),
        ("b", float, False, True, "--b", 2.0),
        ("c", str, True, False, "--sea", None),
    ]


# --- a whole build's


def test_top_level_keys_and_flags(tmp_path: Path) -> None:
    text = "source = 'a.onnx'\nseed = 3\nbackends = ['onnxruntime', 'reference']\n[bench]\nseconds = 0.5"
    file = write(tmp_path / "penstock.toml", text)
    got = resolve({"": {"seed": 4}, "select": {"max_drop": 1.0}}, file=file, environ={})
    assert (got.source, got.seed, got.backends) == ("a.onnx", 4, ("onnxruntime", "reference"))
    assert (got.bench.seconds, got.select.max_drop) == (0.5, 1.0)


def test_input_at_the_head_of_the_file_belongs_to_the_export(tmp_path: Path) -> None:
    file = write(tmp_path / "penstock.toml", "source = 'n.py:N'\ninput = ['x:float32[batch,3]']")
    assert resolve({}, file=file, environ={}).export.input == ("x:float32[batch,3]",)


def test_a_sole_backend_may_be_a_text(tmp_path: Path) -> None:
    file = write(tmp_path / "penstock.toml", "source = 'a.onnx'\nbackends = 'onnxruntime'")
    assert resolve({}, file=file, environ={}).backends == ("onnxruntime",)


@pytest.mark.parametrize(
    "text",
    ["", "source = 3", "source = 'a'\nseed = 'x'", "source = 'a'\nseed = -1", "source = 'a'\nseed = true",
     "source = 'a'\nbackends = 3", "source = 'a'\nbackends = [3]", "source = 'a'\nweights = 3"],
)  # fmt: skip
def test_bad_top_level_values_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        resolve({}, file=write(tmp_path / "penstock.toml", text), environ={})


def test_what_is_written_to_toml_is_read_back(tmp_path: Path) -> None:
    import tomli_w

    flags = {"": {"source": "a.onnx", "seed": 7}, "select": {"max_drop": 0.5}, "data": {"mean": (0.1, 0.2)}}
    first = resolve(flags, environ={})
    file = write(tmp_path / "penstock.toml", tomli_w.dumps(first.to_toml()))
    assert resolve({}, file=file, environ={}) == first
