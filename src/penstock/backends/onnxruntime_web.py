"""ONNX Runtime Web on WebAssembly, in a headless Chromium: what a page of yours would run."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.backends import Loadable
from penstock.backends._distant import DistantSession
from penstock.browser import session
from penstock.deployment import Deployment, Role
from penstock.errors import InputError, MissingError
from penstock.jsonable import Json
from penstock.variant import Format

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
BY_DEFAULT = False  # it starts a browser, and says nothing of this machine's own runtimes
ENVIRONMENT = session.ENVIRONMENT
PROVIDER = "CPUExecutionProvider"
RUNTIME = session.Runtime(
    "ONNX Runtime Web", "wasm", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
)  # fmt: skip
FLAGS = ("--disable-gpu",)


def available() -> str:
    """Return "" where its files and a Chromium are there."""
    return session.available()


def facts() -> Mapping[str, Json]:
    """Return the versions of the runtime and of the browser."""
    return session.facts()


def load(model: Loadable, deployment: Deployment) -> DistantSession:
    """Load the model in a page of its own, with so many threads. There are no options.

    Raises ``InputError`` where the runtime refuses it, or can't have the threads.
    """
    if deployment.device != "cpu":
        raise MissingError("no-device", f"this backend runs on the CPU, not on {deployment.device!r}")
    if deployment.options or deployment.precision_hint:
        given = ", ".join([*deployment.options, *([deployment.precision_hint] if deployment.precision_hint else [])])
        raise InputError("bad-option", f"onnxruntime-web has no options and no precision hints; it was given {given}")
    held = session.start(RUNTIME, model, deployment, FLAGS)
    return DistantSession(held.signature, held.load(deployment, RUNTIME.provider, {"device": "cpu"}, PROVIDER))
