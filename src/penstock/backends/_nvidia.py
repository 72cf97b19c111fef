"""What backends on NVIDIA's GPUs share: whether there is one here, and their environment."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Mapping
from pathlib import Path

from penstock import environment
from penstock.environment import Environment
from penstock.jsonable import Json

ENVIRONMENT = "onnxruntime-gpu"
DRIVER = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
# what the libraries do to float32 unasked: rounds it to 19 bits in products
EXACT = {"NVIDIA_TF32_OVERRIDE": "0"}


def _driver() -> ctypes.CDLL | str:
    """Return the driver, which was started, or why there is none."""
    for name in DRIVER:
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        code = found.cuInit(0)
        return f"its driver doesn't start (CUDA error {code})" if code else found
    return f"there is no driver here ({DRIVER[0]})"


def devices() -> int | str:
    """Return how many GPUs the driver has, or why there is no driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if isinstance(driver, str):
        return driver
    driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def name() -> str:
    """Return what the driver calls the first GPU, "" where there is none."""
    driver, told, device = _driver(), ctypes.create_string_buffer(256), ctypes.c_int(0)
    if isinstance(driver, str) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    return "" if driver.cuDeviceGetName(told, len(told), device) else told.value.decode(errors="replace")


def facts(backend: str) -> dict[str, Json]:
    """Return the version, where it runs, and the GPU."""
    found = environment.needed(ENVIRONMENT, f"the backend {backend}")
    return {"version": found.packages["onnxruntime-gpu"], "environment": str(found.folder), "gpu": name()}


def problem() -> str:
    """Return "" where a GPU and the environment are there, else which isn't, and the line that makes the latter."""
    found = devices()
    missing = found if isinstance(found, str) else "" if found else "the driver finds none"
    add = environment.problem(ENVIRONMENT)
    if missing:
        return f"it needs one of NVIDIA's GPUs, and {missing}" + (f"; where there is one: {add}" if add else "")
    return add


def libraries(found: Environment) -> list[Path]:
    """Return the folders of an environment's own CUDA, cuDNN and TensorRT, where libraries are to be looked for."""
    packages = found.folder.glob("lib/python*/site-packages")
    return sorted(
        folder for home in packages for pattern in ("nvidia/*/lib", "nvidia/*/lib/x86_64", "tensorrt_libs")
        for folder in home.glob(pattern)
    )  # fmt: skip


def environ(found: Environment, *, exact: bool) -> Mapping[str, str]:
    """Return the variables of the process that runs the model."""
    import os

    paths = [*map(str, libraries(found)), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    told = {"LD_LIBRARY_PATH": os.pathsep.join(paths), "ORT_DISABLE_TELEMETRY": "1"}
    return {**told, **EXACT} if exact else told
