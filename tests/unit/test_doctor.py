"""The doctor: what the machine has, read from made-up trees; clashes of wheels; settings that can't run."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from penstock import doctor, machine, registry, store
from penstock.cli import run

X86 = "processor : 0\nmodel name : A CPU\nflags : fpu sse4_1 avx avx2 fma {}\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm bf16\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "present", "absent"),
    [
        ("x86_64", X86.format("avx512f avx512_vnni avx512_bf16"), {"avx2", "avx512", "vnni", "bf16"}, {"amx"}),
        ("x86_64", X86.format("avx_vnni"), {"avx2", "vnni"}, {"avx512", "bf16", "amx"}),
        ("x86_64", X86.format(""), {"avx2"}, {"avx512", "vnni", "bf16", "amx"}),
        ("aarch64", ARM, {"dotprod", "i8mm", "bf16"}, {"sve"}),
        ("x86_64", "", set(), {"avx2", "avx512", "vnni", "bf16", "amx"}),
    ],
)
def test_features(
    architecture: str,
    cpuinfo: str,
    present: set[str],
    absent: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: architecture)
    found = {f.name: f.present for f in doctor._features(tree(tmp_path, {"proc/cpuinfo": cpuinfo}))}
    assert {name for name, there in found.items() if there} == present
    assert {name for name, there in found.items() if not there} == absent


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000", "sys/fs/cgroup/memory.max": "2147483648"}, 1.5, 2147483648),
        ({"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/memory.max": "max"}, None, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824"}, 2.0, 1073741824),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ({"proc/self/cgroup": "0::/user.slice/run.scope", "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
          "sys/fs/cgroup/user.slice/run.scope/cpu.max": "max 100000", "sys/fs/cgroup/user.slice/memory.max": "max",
          "sys/fs/cgroup/user.slice/run.scope/memory.max": "4294967296"}, 3.0, 4294967296),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/a\n5:memory:/b", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
          "sys/fs/cgroup/memory/b/memory.limit_in_bytes": "1000000000"}, 0.5, 1000000000),
        ({}, None, None),
    ],
)  # fmt: skip
def test_limits(files: dict[str, str], cores: float | None, memory: int | None, tmp_path: Path) -> None:
    host = doctor._host(tree(tmp_path, files))
    assert host.get("cores_limit") == cores and host.get("memory_limit_bytes") == memory


def distribution(folder: Path, name: str, version: str, files: str) -> None:
    home = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    tree(home, {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "RECORD": files})


def test_two_wheels_of_one_runtime_clash(tmp_path: Path) -> None:
    distribution(tmp_path, "onnxruntime", "1.30.0", "onnxruntime/__init__.py,,\n")
    one = doctor._clashes(metadata.distributions(path=[str(tmp_path)]))
    distribution(tmp_path, "onnxruntime-extensions", "0.1", "onnxruntime_extensions/__init__.py,,\n")
    other = doctor._clashes(metadata.distributions(path=[str(tmp_path)]))
    assert one == other == [], "another package beside it is no clash"
    distribution(tmp_path, "onnxruntime-gpu", "1.29.0", "onnxruntime/__init__.py,,\n")
    (clash,) = doctor._clashes(metadata.distributions(path=[str(tmp_path)]))
    assert clash.level == "clash" and "onnxruntime 1.30.0 and onnxruntime-gpu 1.29.0" in clash.what
    assert clash.do.startswith("pip uninstall -y onnxruntime onnxruntime-gpu; pip install")


def test_runtimes_are_asked_not_looked_up() -> None:
    """The newest versions come from running models: those of the runtime agree with what its sessions take."""
    found = doctor.probe("onnxruntime")
    assert not found.problem and found.opset and found.ir
    from penstock import doctor_probes
    from penstock.backends import onnxruntime as backend

    folder = Path(found.name)
    assert not folder.exists()
    assert doctor_probes._first(lambda n: n <= 3, 9) == 3 and doctor_probes._first(lambda n: False, 9) is None
    assert backend.facts()["version"] == found.version


PLUGIN = "import os\nos.abort()\n"


def test_a_runtime_that_crashes_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that takes its process down is told, and the others are still looked at."""
    (tmp_path / "crashing_backend.py").write_text(PLUGIN)
    tree(tmp_path / "crashing-1.0.dist-info", {
        "METADATA": "Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n",
        "entry_points.txt": "[penstock.backends]\ncrashing = crashing_backend\n",
    })  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "crashing" in registry.names("backends")
    found = doctor.probe("crashing")
    assert "it can't be used" in found.problem
    assert any(t.level == "broken" and "crashing" in t.what for t in doctor._broken([found]))
    assert not doctor.probe("reference").problem


def test_what_is_not_installed_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend with an environment of its own says what makes it, and nobody is told to install something anew."""
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(tmp_path))
    found = doctor.probe("tvm")
    assert found.absent and found.problem == "penstock env add tvm" and doctor._broken([found]) == []


def test_it_tells_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "-q"]) == 0
    shown = json.loads(capsys.readouterr().out)["result"]
    report = shown["report"]
    assert {one["name"] for one in report["runtimes"]} >= {"onnx", "onnxruntime", "openvino", "reference", "torch"}
    assert report["telemetry"]["onnxruntime"].startswith("off") and shown["blocked"] == []
    assert run(["doctor", "-q"]) == 0
    out = capsys.readouterr().out
    assert "opset up to" in out and "telemetry" in out and machine.describe()["python"] in out


@pytest.fixture(scope="module")
def found_once() -> tuple[doctor.Runtime, ...]:
    """Look at the runtimes once: it takes seconds, and they are the same for all settings."""
    return doctor._runtimes()


@pytest.fixture
def known(found_once: tuple[doctor.Runtime, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_runtimes", lambda: found_once)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("arguments", "config", "told"),
    [
        (["--backends", "onnxruntime,nothing"], "", "there is no backend named 'nothing'"),
        ([], 'backends = ["absent"]', "there is no backend named 'absent'"),
        ([], 'backends = "absent"', "there is no backend named 'absent'"),
        ([], '[quantize]\nmethod = "qq"', "there is no quantizer named 'qq'"),
        (["what.ever"], "", "there is no file"),
        (["--data", "nowhere"], "", "no data source reads 'nowhere'"),
    ],
)
def test_settings_that_cannot_run_here(
    arguments: list[str], config: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if config:
        Path("penstock.toml").write_text(config)
    assert run(["doctor", "-q", *arguments]) == 3
    out = capsys.readouterr().out
    assert told in out and "do: " in out
    assert run(["doctor", "-q", "--json", *arguments]) == 3
    (blocked,) = json.loads(capsys.readouterr().out)["result"]["blocked"]
    assert blocked["exit_code"] == 2, "a build would end with that: the settings are wrong on any machine"


@pytest.mark.usefixtures("known")
def test_what_is_missing_for_the_settings_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from penstock.backends import openvino

    monkeypatch.setattr(openvino, "available", lambda: "pip install 'penstock[openvino]'")
    assert run(["doctor", "-q", "--backends", "onnxruntime,openvino"]) == 3
    out = capsys.readouterr().out
    assert "the backend 'openvino' can't run here" in out and "do: pip install 'penstock[openvino]'" in out


@pytest.mark.usefixtures("known")
def test_data_sets_and_locks_that_are_there_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor", "-q", "--data", "cifar10", "--json"]) == 0
    (tmp_path / "penstock.lock.toml").write_text(
        'source = "absent.onnx"\n[inputs]\nbase = "."\n[inputs.read]\n[tools]\n'
    )
    assert run(["doctor", "-q", "penstock.lock.toml", "--json"]) == 3, "the lock's own source isn't there"


def test_the_opset_of_a_runtime_holds_for_quantized_models_too() -> None:
    """ONNX Runtime has Relu of a newer opset than QuantizeLinear; the lower one is what a build can rely on."""
    from penstock import doctor_probes
    from penstock.backends import onnxruntime as backend

    found = doctor_probes.newest(backend, "onnxruntime")
    with store.scratch() as work:
        path = work / "m.onnx"
        path.write_bytes(doctor_probes.tiny(int(found["opset"]), 8, quantized=True))
        assert doctor_probes._runs(backend, "onnxruntime", path)
        if newer := found.get("float models up to opset"):
            path.write_bytes(doctor_probes.tiny(int(newer), 8, quantized=True))
            assert not doctor_probes._runs(backend, "onnxruntime", path)


def test_what_is_missing_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name in ("torch", "openvino") else plain(name))
    lines = {trouble.do for trouble in doctor._missing()}
    assert lines == {
        "pip install torch==2.13.0  # then: pip install 'penstock[torch]'",
        "pip install 'penstock[openvino]'",
    }
