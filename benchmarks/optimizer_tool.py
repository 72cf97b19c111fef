"""One graph optimizer as a process that stays warm: a JSON request a line on stdin, a JSON answer a line on stdout.

python benchmarks/optimizer_tool.py TOOL

A request names the model to read and the file to write; the answer has the seconds from before reading to after
writing, or the error. Runs in the peers' environment, where Penstock isn't installed, or in Penstock's own.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

Optimizer = Callable[[str, str], None]


def onnxsim() -> Optimizer:
    """Return onnxsim with its defaults."""
    import onnx
    import onnxsim as tool

    return lambda model, out: onnx.save(tool.simplify(onnx.load(model))[0], out)


def onnxslim() -> Optimizer:
    """Return onnxslim with its defaults."""
    import onnx
    import onnxslim as tool

    return lambda model, out: onnx.save(tool.slim(onnx.load(model)), out)


def onnxscript() -> Optimizer:
    """Return onnxscript's optimizer with its defaults."""
    import onnx
    import onnxscript.optimizer as tool

    return lambda model, out: onnx.save(tool.optimize(onnx.load(model)), out)


def onnxoptimizer() -> Optimizer:
    """Return onnxoptimizer with all passes that fuse and eliminate, to its fixpoint."""
    import onnx
    import onnxoptimizer as tool

    passes = tool.get_fuse_and_elimination_passes()
    return lambda model, out: onnx.save(tool.optimize(onnx.load(model), passes, True), out)


def onnxruntime(level: str) -> Optimizer:
    """Return ONNX Runtime's offline optimizer at a level."""
    import onnxruntime as tool

    levels = tool.GraphOptimizationLevel
    chosen = {"basic": levels.ORT_ENABLE_BASIC, "extended": levels.ORT_ENABLE_EXTENDED, "all": levels.ORT_ENABLE_ALL}

    def optimize(model: str, out: str) -> None:
        options = tool.SessionOptions()
        options.graph_optimization_level, options.optimized_model_filepath = chosen[level], out
        options.log_severity_level = 4
        tool.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    return optimize


def penstock() -> Optimizer:
    """Return Penstock: all passes, the log on, the proof apart."""
    from penstock.stages.optimize import MAIN, OptimizeSettings
    from penstock.stages.optimize import optimize as run

    def optimize(model: str, out: str) -> None:
        folder = Path(out + ".d")
        folder.mkdir(exist_ok=True)
        run(Path(model), OptimizeSettings(proof=False, strict=True), folder)
        (folder / MAIN).replace(out)

    return optimize


TOOLS: dict[str, Callable[[], Optimizer]] = {
    "penstock": penstock,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxscript": onnxscript,
    "onnxoptimizer": onnxoptimizer,
    "ort-basic": lambda: onnxruntime("basic"),
    "ort-extended": lambda: onnxruntime("extended"),
    "ort-all": lambda: onnxruntime("all"),
}


def main() -> None:
    """Serve until stdin ends. What the tool prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    optimize = TOOLS[sys.argv[1]]()
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        try:
            optimize(asked["model"], asked["out"])
            answer = {"seconds": time.perf_counter() - began}
        except BaseException as error:  # a tool may raise anything: it is its answer
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
