"""ONNX Runtime Web on WebGPU, in a headless Chromium; without a GPU, on its software adapter, for correctness alone.

The runtime's own layout, NHWC, computes some models wrongly and says nothing (Silero VAD is one, with 1.30): verify
what it gives, and try the option ``layout`` with ``NCHW``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from penstock import backend_options
from penstock.backends import Loadable
from penstock.backends._distant import DistantSession
from penstock.browser import session
from penstock.deployment import ANY_DEVICE, Deployment, Role
from penstock.errors import InputError, MissingError
from penstock.jsonable import Json
from penstock.variant import Format

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
DEVICE = ANY_DEVICE
BY_DEFAULT = False  # it starts a browser, and without a GPU it is some hundred times slower than the others
ENVIRONMENT = session.ENVIRONMENT
RUNTIME = session.Runtime(
    "ONNX Runtime Web (WebGPU)", "webgpu", "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"
)
PROVIDER = "WebGpuExecutionProvider"
OPTIONS = {"layout": ("NHWC", "NCHW"), "adapter": ("any", "hardware", "software")}  # the first is the default
FLAGS = ("--enable-unsafe-webgpu",)
SOFTWARE = (*FLAGS, "--use-webgpu-adapter=swiftshader")


def available() -> str:
    """Return "" where its files and a Chromium are there; which adapter there is, only a session knows."""
    return session.available()


def facts() -> Mapping[str, Json]:
    """Return the versions of the runtime and of the browser."""
    return session.facts()


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Load the model in a page of its own, on one provider, so that nothing falls back to WebAssembly as a whole.

    The option ``layout`` is what the runtime prefers, NHWC or NCHW. The option ``adapter`` is ``any``: a GPU, and the
    software adapter where there is none; ``hardware`` refuses that, and ``software`` asks for it. The device ``gpu``
    asks for hardware too. Raises ``MissingError`` where there is no such adapter.
    """
    asked = backend_options.chosen(deployment, OPTIONS)
    if deployment.precision_hint:
        raise InputError("bad-option", f"onnxruntime-webgpu has no precision hints; not {deployment.precision_hint!r}")
    if deployment.device not in (ANY_DEVICE, "cpu", "gpu"):
        raise MissingError("no-device", f"this backend has no device {deployment.device!r}", do="use device gpu")
    held, adapter = _with_adapter(model, deployment, asked["adapter"])
    if adapter["software"] and "hardware" in (asked["adapter"], "hardware" if deployment.device == "gpu" else ""):
        held.close()
        what = f"the browser has no hardware for WebGPU here, only {_name(adapter)}"
        raise MissingError("no-device", what, do="use the option adapter=software, for correctness alone")
    told: dict[str, Json] = {
        "device": "cpu" if adapter["software"] else "gpu", "adapter": _name(adapter), "layout": asked["layout"],
    }  # fmt: skip
    provider: Json = {"name": RUNTIME.provider, "preferredLayout": asked["layout"]}
    return DistantSession(held.signature, held.load(deployment, provider, told, PROVIDER))


def _with_adapter(
    model: Loadable, deployment: Deployment, asked: str
) -> tuple[session.WebPage, dict[str, Json]]:  # fmt: skip
    """Start a browser that has an adapter: one that is let choose, then one that is told to compute in software."""
    tries = {"any": (FLAGS, SOFTWARE), "hardware": (FLAGS,), "software": (SOFTWARE,)}[asked]
    for flags in tries:
        held = session.start(RUNTIME, model, deployment, flags)
        try:
            found, _ = held.ask("adapter")
        except BaseException:
            held.close()
            raise
        if found is not None:
            return held, cast("dict[str, Json]", found)
        held.close()
    raise MissingError("no-device", "the browser finds no adapter for WebGPU", do="use onnxruntime-web, or a newer one")


def _name(adapter: Mapping[str, Json]) -> str:
    words = [str(adapter[key]) for key in ("vendor", "architecture", "device", "description") if adapter[key]]
    return " ".join([*words, "(software)"] if adapter["software"] else words)
