"""Kill builds at seeded points, build again, and hold the result against an undisturbed build.

    python scripts/torture.py --kills 300
    python scripts/torture.py --each-write

Each trial takes a fresh output folder and a fresh cache, and interrupts the same build one to three times: SIGKILL
after the n-th write or at a random moment, SIGINT, or a disk that is full from the n-th write on. Then the build runs
to its end. It has to leave the same models, the same golden set, the same lock file and the same ledger (but for times
and measured figures) as a build that nobody disturbed, no half-written file, and no cache entry that is damaged.
``--each-write`` kills one build after its first write, another after its second, and so on; with a number, at so many
of the writes, evenly spread.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from penstock import deferred, ledger, pipeline, registry, store
from penstock.build_settings import BuildSettings
from penstock.data import DataSettings
from penstock.ledger import Entry, without_measurements
from penstock.stages.bench import BenchSettings

Strike = tuple[str, float]  # how a build is interrupted, and at which write or second
MODES = ("kill-after-write", "kill-after-write", "kill-at-time", "interrupt", "disk-full", "torn-line")


def network(path: Path) -> None:
    """Write a network of two layers that can be optimized and quantized."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in (("w", (4, 3, 3, 3)), ("b", (4,)), ("fc", (4, 5)))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Identity", ["r"], ["i"], name="same"),
        helper.make_node("GlobalAveragePool", ["i"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def settings(model: Path) -> BuildSettings:
    """Return the settings of a quick build."""
    bench = BenchSettings(warmup_calls=1, min_rounds=3, calls_per_round=1, seconds=0.0, footprint=False)
    data = DataSettings(golden=4, calibrate=8)
    return BuildSettings(str(model), backends=("onnxruntime",), data=data, bench=bench)


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork; return its exit code, or the negative number of the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
        code = 0
        try:
            work()
        except KeyboardInterrupt:
            code = 130
        except BaseException as error:
            code = 4 if getattr(error, "id", "") == "disk-full" else 5
            if code == 5:
                sys.excepthook(type(error), error, error.__traceback__)
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def disturb(mode: str, at: float) -> None:
    """Arrange for the interruption; in the child, before the build. ``at`` is a number of writes, or seconds."""
    if mode == "kill-at-time":
        threading.Thread(target=lambda: (time.sleep(at), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
        return
    count = 0

    def strike() -> None:
        nonlocal count
        count += 1
        if mode == "disk-full" and count >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if count == at and mode != "disk-full":
            os.kill(os.getpid(), signal.SIGINT if mode == "interrupt" else signal.SIGKILL)

    def struck(function: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object, **named: object) -> object:
            if mode == "disk-full":
                strike()
                return function(*arguments, **named)
            try:
                return function(*arguments, **named)
            finally:
                strike()

        return run

    if mode == "torn-line":
        plain = store.BuildFolder.append

        def torn(folder: store.BuildFolder, entry: Entry) -> None:
            plain(folder, entry)
            if count + 1 >= at:
                os.truncate(folder.ledger_path, folder.ledger_path.stat().st_size - 7)
            strike()

        store.BuildFolder.append = torn  # type: ignore[method-assign]  # that is the point
        return
    for name in ("replace", "rename", "fsync"):
        setattr(os, name, struck(getattr(os, name)))
    if mode == "disk-full":
        ledger.line = struck(ledger.line)  # type: ignore[assignment]  # inside the append, as the disk would be
    else:
        store.BuildFolder.append = struck(store.BuildFolder.append)  # type: ignore[method-assign]


def state(folder: Path) -> dict[str, object]:
    """Return all of a build that has to be equal."""
    files = {
        str(path.relative_to(folder)): store.file_digest(path)
        for part in ("models", "golden")
        for path in sorted((folder / part).rglob("*"))
        # what a runtime computed may differ in the last place between processes; the ledger holds the verdicts on it
        if path.is_file()
    }
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "blobs" not in path.parts)
    return {
        "files": files,
        "names": names,
        "lock": (folder / "penstock.lock.toml").read_text(),
        "ledger": without_measurements((folder / "ledger.jsonl").read_text()),
    }


def difference(want: dict[str, object], got: dict[str, object]) -> str:
    """Name the first thing in which two builds differ; empty when they don't."""
    for key, value in want.items():
        if got[key] != value:
            if isinstance(value, list):
                pairs = [(a, b) for a, b in zip(value, got[key], strict=False) if a != b]  # type: ignore[call-overload]  # a list as well
                return f"{key}: {pairs[:1] or (len(value), len(got[key]))}"  # type: ignore[arg-type]
            return f"{key}: {value} is now {got[key]}"
    return ""


def by_chance(random_: random.Random, writes: int, seconds: float) -> Iterator[list[Strike]]:
    """Yield one to three interruptions for each of any number of builds."""
    while True:
        strikes = []
        for _ in range(random_.choice((1, 1, 2, 3))):
            mode = random_.choice(MODES)
            strikes.append(
                (mode, random_.uniform(0.0, seconds) if mode == "kill-at-time" else random_.randint(1, writes))
            )
        yield strikes


def at_writes(writes: int, most: int) -> list[list[Strike]]:
    """Return a kill after each write, or after ``most`` of them, evenly spread with the first and the last."""
    chosen = range(1, writes + 1) if most == 0 else np.unique(np.linspace(1, writes, most).round().astype(int))
    return [[("kill-after-write", int(number))] for number in chosen]


def trial(
    strikes: Sequence[Strike], model: Path, want: dict[str, object], root: Path
) -> tuple[int, str]:  # fmt: skip
    """Interrupt one build, finish it, compare; return the interruptions that took place and a fault."""
    told, happened = [], 0
    for mode, at in strikes:
        told.append(f"{mode} {at:.3g}")

        def work(mode: str = mode, at: float = at) -> None:
            disturb(mode, at)
            pipeline.build(settings(model), root / "out", cache=root / "cache")

        code = in_child(work)
        happened += code != 0
        if code not in (0, -signal.SIGKILL, 130, 4):
            return happened, f"{told}: the interrupted build ended with {code}"
    code = in_child(lambda: pipeline.build(settings(model), root / "out", cache=root / "cache") and None)
    if code != 0:
        return happened, f"{told}: the next build ended with {code}"
    if gap := difference(want, state(root / "out")):
        return happened, f"{told}: {gap}"
    if parts := [str(path) for path in (root / "out").rglob("*.part")]:
        return happened, f"{told}: half-written files are left: {parts}"
    cache = store.Cache(root / "cache")
    if damaged := [kept.key for kept in cache.entries() if cache.get(kept.key) is None]:
        return happened, f"{told}: damaged cache entries: {damaged}"
    return happened, ""


def torture(kills: int, seed: int, each_write: int | None = None, say: Callable[[str], None] = print) -> list[str]:
    """Interrupt builds until ``kills`` interruptions took place, or at each write once; return the faults."""
    faults: list[str] = []
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as home:
        model = Path(home) / "net.onnx"
        network(model)
        deferred.install()
        import onnxruntime  # noqa: F401  # in the parent, so that no fork has to; it starts no thread before a session

        import penstock.stages.optimize
        import penstock.stages.quantize  # noqa: F401

        for name in registry.names("passes"):
            registry.load("passes", name)

        writes = Path(home) / "writes"
        began = time.monotonic()

        def count() -> None:
            number = 0

            def counted(function: Callable[..., object]) -> Callable[..., object]:
                def run(*arguments: object, **named: object) -> object:
                    nonlocal number
                    number += 1
                    return function(*arguments, **named)

                return run

            for name in ("replace", "rename", "fsync"):
                setattr(os, name, counted(getattr(os, name)))
            store.BuildFolder.append = counted(store.BuildFolder.append)  # type: ignore[method-assign]
            pipeline.build(settings(model), Path(home) / "calm" / "out", cache=Path(home) / "calm-cache")
            writes.write_text(str(number))

        if in_child(count) != 0:
            return ["the undisturbed build failed"]
        seconds = time.monotonic() - began
        want, number = state(Path(home) / "calm" / "out"), int(writes.read_text())
        say(f"an undisturbed build makes {number} writes in {seconds:.1f} s; seed {seed}")
        done = trials = 0
        if each_write is None:
            planned: Iterable[list[Strike]] = by_chance(random_, number, seconds)
        else:
            planned, kills = at_writes(number, each_write), number + 1  # the list ends it
        for strikes in planned:
            if done >= kills:
                break
            root = Path(home) / f"trial-{trials}"
            happened, fault = trial(strikes, model, want, root)
            trials, done = trials + 1, done + happened
            if fault:
                faults.append(fault)
                say(f"FAULT in trial {trials} (seed {seed}): {fault}")
            elif trials % 20 == 0:
                say(f"{done} interruptions in {trials} builds, {len(faults)} faults")
            shutil.rmtree(root, ignore_errors=True)
        say(f"{done} interruptions in {trials} builds, {len(faults)} faults")
    return faults


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each-write", type=int, nargs="?", const=0, default=None, metavar="N")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(1 if torture(arguments.kills, arguments.seed, arguments.each_write) else 0)


if __name__ == "__main__":
    main()
