"""Sessions in a real browser: types, threads, adapters, and a browser that is killed, hangs or is interrupted."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tiny_models
from penstock import environment, kept, precheck, registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
from penstock.errors import InputError, MissingError
from penstock.worker import WorkerCrash, WorkerTimeout

WEB, GPU = "onnxruntime-web", "onnxruntime-webgpu"
RNG = np.random.default_rng(0)
TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32, "uint32": TensorProto.UINT32, "int64": TensorProto.INT64,
    "uint64": TensorProto.UINT64, "bool": TensorProto.BOOL, "texts": TensorProto.STRING,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _there() -> Iterator[None]:
    """Skip where the files or a browser are missing; end what a failed test left."""
    backend: Any = registry.load("backends", WEB)
    if problem := backend.available():
        if os.environ.get("PENSTOCK_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{WEB}: {problem}")
        pytest.skip(f"{WEB}: {problem}")
    yield


def opened(path: Path, name: str = WEB, **more: Any) -> Any:
    backend: Any = registry.load("backends", name)
    return backend.load(Loadable(path), Deployment(f"m@{name}", "m", "", "fp32", name, **more))


def page_of(session: Any) -> Any:
    return session._far._page


@pytest.mark.parametrize("name", [WEB, GPU])
def test_a_browser_is_kept_for_the_next_model_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    more = {"options": {"adapter": "software"}} if name == GPU else {}
    first, other = (tiny_models.save(make(), tmp_path / f"{make.__name__}.onnx") for make in (
        tiny_models.mlp, tiny_models.conv))  # fmt: skip
    with kept.keeping():
        session = opened(first, name, **more)
        browser = page_of(session).browser.pid
        session.close()
        with pytest.raises(WorkerCrash, match="it was closed"):
            session.run({"x": np.ones((1, 6), np.float32)})
        second = opened(other, name, **more)
        assert page_of(second).browser.pid == browser
        x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
        want = tiny_models.oracle(onnx.load(other), {"x": x})
        assert np.allclose(second.run({"x": x})[0], want[0], atol=1e-5)
        os.kill(browser, signal.SIGKILL)
        with pytest.raises(WorkerCrash):
            second.run({"x": x})
        second.close()
        third = opened(first, name, **more)
        browser = page_of(third).browser.pid
        third.close()
        os.kill(browser, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(browser, 0)


def model_of(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> ModelProto:
    infos = [[helper.make_tensor_value_info(name, *spec) for name, spec in io.items()] for io in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def endless() -> ModelProto:
    def info(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, [None])],
        [info("on", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, [None])],
    )
    loop = helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)
    float_1d = (TensorProto.FLOAT, ["n"])
    return model_of([loop], {"x": float_1d, "go": (TensorProto.BOOL, [])}, {"y": float_1d})


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "texts":
        flat = ["", "naïve", "日本語", "a\nb", "\U0001f600"] * 4
        return np.array(flat[: int(np.prod(shape))], dtype=object).reshape(shape)
    bits = RNG.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    if dtype == "bool":
        bits &= 1
    return np.ascontiguousarray(bits).view(dtype).reshape(shape)  # every bit pattern, NaN among them


def test_every_type_goes_there_and_back(tmp_path: Path) -> None:
    io = {name: (kind, ["b", 3]) for name, kind in TYPES.items()}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in TYPES]
    path = tiny_models.save(
        model_of(nodes, io, {f"{name}_out": spec for name, spec in io.items()}), tmp_path / "m.onnx"
    )
    session = opened(path)
    for batch in (3, 1, 0):
        feeds = {name: values(name, (batch, 3)) for name in TYPES}
        for (name, fed), got in zip(feeds.items(), session.run(feeds), strict=True):
            assert got.dtype == fed.dtype and got.shape == fed.shape, name
            same = got.tolist() == fed.tolist() if name == "texts" else got.tobytes() == fed.tobytes()
            # a NaN may lose its payload on its way through JavaScript's half floats
            assert same or (got.dtype.kind == "f" and np.array_equal(got, fed, equal_nan=True)), name
    session.close()


def test_threads_are_what_was_asked_for(tmp_path: Path) -> None:
    session = opened(tiny_models.save(tiny_models.conv(), tmp_path / "m.onnx"), threads=2)
    assert session.actual()["threads"] == 2
    session.close()


def test_threads_that_do_not_run_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.browser import server

    shared = {name: value for name, value in server.HEADERS.items() if name != "Cross-Origin-Opener-Policy"}
    monkeypatch.setattr(server, "HEADERS", shared)
    with pytest.raises(InputError, match="runs with 1 threads, 2 were asked for"):
        opened(tiny_models.save(tiny_models.conv(), tmp_path / "m.onnx"), threads=2)


def test_time_is_taken_in_the_page(tmp_path: Path) -> None:
    session = opened(tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"))
    spent = session.timed({"x": np.zeros((1, 6), np.float32)}, 7)
    assert len(spent) == 7 and all(isinstance(one, int) and 0 <= one < 5e9 for one in spent)
    held = Path(f"/proc/{session.process_id}/cmdline").read_bytes()
    assert b"--type=renderer" in held
    session.close()


def test_what_runs_is_read_from_the_runtime(tmp_path: Path) -> None:
    session = opened(tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"))
    told = session.actual()
    assert set(told["nodes_by_provider"]) == {"CPUExecutionProvider"} and told["device"] == "cpu"
    assert session.run({"x": np.zeros((1, 6), np.float32)}), "it lives on"
    session.close()


def test_the_software_adapter_is_called_so(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.conv(), tmp_path / "m.onnx")
    session = opened(path, GPU, options={"adapter": "software", "layout": "NCHW"})
    told = session.actual()
    assert told["adapter"].endswith("(software)") and (told["device"], told["layout"]) == ("cpu", "NCHW")
    assert "WebGpuExecutionProvider" in told["nodes_by_provider"]
    feeds = {"x": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)}
    got, want = session.run(feeds)[0], tiny_models.oracle(tiny_models.conv(), feeds)[0]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    session.close()


def test_options_that_are_none(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx")
    for name, options in ((GPU, {"layout": "CHWN"}), (GPU, {"speed": "most"}), (WEB, {"layout": "NCHW"})):
        with pytest.raises(InputError, match=r"option|layout"):
            opened(path, name, options=options)
    with pytest.raises(MissingError, match="not on 'gpu'"):
        opened(path, WEB, device="gpu")


def alive(pid: int) -> bool:
    """Whether a process, or one of its group, runs still; who has ended and wasn't fetched by its parent doesn't."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == pid and state != "Z":
            return True
    return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    return not alive(pid)


def killed_later(pid: int) -> None:
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()


@pytest.mark.parametrize("who", ["renderer", "browser"])
def test_who_is_killed_in_a_run_is_an_error_of_this_session(who: str, tmp_path: Path) -> None:
    session = opened(tiny_models.save(endless(), tmp_path / "m.onnx"))
    other = opened(tiny_models.save(tiny_models.mlp(), tmp_path / "o.onnx"))
    browser = page_of(session).browser
    killed_later(session.process_id if who == "renderer" else browser.pid)
    began = time.monotonic()
    with pytest.raises(WorkerCrash, match="the page's process died" if who == "renderer" else "ended by SIGKILL"):
        session.run({"x": np.ones(3, np.float32), "go": np.array(True)})
    assert time.monotonic() - began < 20 and not browser._home.exists() and gone(browser.pid)
    with pytest.raises(WorkerCrash, match="is gone"):
        session.run({"x": np.ones(3, np.float32), "go": np.array(False)})
    session.close()
    assert other.run({"x": np.zeros((1, 6), np.float32)})
    other.close()


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_a_gpu_that_is_lost_is_noticed(tmp_path: Path) -> None:
    """Without it the run after the next would wait for ever."""
    session = opened(tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"), GPU)
    feeds = {"x": np.zeros((1, 6), np.float32)}
    session.run(feeds)
    family = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in page_of(session).browser._family()}
    os.kill(next(pid for pid, line in family.items() if b"--type=gpu-process" in line), signal.SIGKILL)
    deadline = time.monotonic() + 20
    said = ""
    while "the GPU was lost" not in said and time.monotonic() < deadline:
        try:  # a run that it meets may fail in the runtime's own words
            session.run(feeds)
        except InputError as error:
            said = error.what
    assert "the GPU was lost" in said
    session.close()


def test_a_session_leaves_no_thread_and_no_file_open(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx")
    opened(path).close()
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        session = opened(path)
        session.run({"x": np.zeros((1, 6), np.float32)})
        session.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads and open_files() <= files


def test_a_run_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    path = tiny_models.save(endless(), tmp_path / "m.onnx")
    with precheck.limits(replace(precheck.settings(), session_seconds=3.0)):
        session = opened(path)
        assert session.run({"x": np.ones(3, np.float32), "go": np.array(False)})[0].tolist() == [1, 1, 1]
        with pytest.raises(WorkerTimeout, match="more than 3 s"):
            session.run({"x": np.ones(3, np.float32), "go": np.array(True)})
    assert not page_of(session).browser._home.exists()
    session.close()


def wide(millions: int) -> ModelProto:
    """A model that holds two tensors of so many million numbers at a time."""
    size = numpy_helper.from_array(np.array([millions, 1_000_000]), "size")
    model = model_of(
        [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Expand", ["x", "size"], ["a"]),
         helper.make_node("Expand", ["twice", "size"], ["b"]), helper.make_node("Add", ["a", "b"], ["c"]),
         helper.make_node("ReduceMax", ["c"], ["y"], keepdims=1)],
        {"x": (TensorProto.FLOAT, [1, 1])}, {"y": (TensorProto.FLOAT, [1, 1])},
    )  # fmt: skip
    model.graph.initializer.append(size)
    return model


@pytest.mark.parametrize("millions", [600, 1200], ids=["in all", "in one tensor"])
def test_what_its_memory_does_not_hold_is_told_as_that(millions: int, tmp_path: Path) -> None:
    """More than 4 GB: what is asked for is named, and the next model is run."""
    feeds = {"x": np.ones((1, 1), np.float32)}
    small = opened(tiny_models.save(wide(1), tmp_path / "small.onnx"))
    assert small.run(feeds)[0] == 3
    small.close()
    with kept.keeping():
        session = opened(tiny_models.save(wide(millions), tmp_path / "wide.onnx"))
        with pytest.raises(InputError, match="the browser's memory doesn't hold it, which ends at 4 GB"):
            session.run(feeds)
        session.close()
        again = opened(tmp_path / "small.onnx")
        assert again.run(feeds)[0] == 3
        again.close()


@pytest.mark.slow
def test_weights_that_its_memory_does_not_hold(tmp_path: Path) -> None:
    """4.5 GB of them, in a file beside the model."""
    if not os.environ.get("PENSTOCK_TEST_LARGE"):
        pytest.skip(f"{WEB}: PENSTOCK_TEST_LARGE=1 lets this test write 4.5 GB")
    count, each = 5, 225_000_000
    model = model_of([], {"x": (TensorProto.FLOAT, ["n", 4])}, {f"y{count}": (TensorProto.FLOAT, ["n", 4])})
    with (tmp_path / "weights.bin").open("wb") as file:
        for _ in range(count * 10):
            file.write(b"\1" * (4 * each // 10))
    for at in range(count):
        place = {"location": "weights.bin", "offset": str(4 * at * each), "length": str(4 * each)}
        weight = TensorProto(name=f"w{at}", data_type=TensorProto.FLOAT, dims=[each], data_location=1)
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
        model.graph.initializer.append(weight)
        model.graph.node.append(helper.make_node("ReduceSum", [f"w{at}"], [f"s{at}"], keepdims=0))
        before = f"y{at}" if at else "x"
        model.graph.node.append(helper.make_node("Add", [before, f"s{at}"], [f"y{at + 1}"]))
    path = tiny_models.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="the browser's memory doesn't hold it") as caught:
        opened(path)
    assert caught.value.do == "run this model on another backend"


def test_an_interruption_ends_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"))
    page = page_of(session)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run({"x": np.zeros((1, 6), np.float32)})
    assert not page.browser._home.exists()
    with pytest.raises(WorkerCrash, match="interrupted"):
        session.run({"x": np.zeros((1, 6), np.float32)})


def test_a_damaged_file_is_named_with_the_line_that_mends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = environment.find(WEB).folder, tmp_path / "environments" / WEB
    folder.mkdir(parents=True)
    for path in whole.iterdir():
        (folder / path.name).symlink_to(path)
    bundle = folder / "ort.wasm.bundle.min.mjs"
    text = bundle.read_bytes()
    bundle.unlink()
    bundle.write_bytes(text + b"\n")
    monkeypatch.setenv("PENSTOCK_ENVIRONMENTS", str(folder.parent))
    with pytest.raises(MissingError, match="damaged") as caught:
        opened(tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"))
    assert bundle.name in caught.value.what and "penstock env remove" in caught.value.do
    bundle.unlink()
    with pytest.raises(MissingError, match="needs the environment"):
        opened(tmp_path / "m.onnx")


def test_the_browser_ends_with_this_process(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx")
    code = f"""
import os, signal
from pathlib import Path
from penstock import registry
from penstock.backends import Loadable
from penstock.deployment import Deployment
backend = registry.load("backends", {WEB!r})
session = backend.load(Loadable(Path({str(path)!r})), Deployment("m", "m", "", "fp32", {WEB!r}))
print(session._far._page.browser.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))
