"""OpenVINO on the CPU in bfloat16: what it does by itself on CPUs that have it; a deployment of its own, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.backends import Loadable, openvino
from penstock.deployment import Deployment, Role
from penstock.errors import InputError
from penstock.jsonable import Json
from penstock.variant import Format

if TYPE_CHECKING:
    from penstock.backends.openvino import OpenVinoSession

ROLE: Role = "candidate"
FORMATS: tuple[Format, ...] = ("onnx",)
PRECISIONS = ("fp32",)  # of variants: others say themselves what they are computed in
BY_DEFAULT = False  # three digits of a logit: nobody should get that unasked
HINT = "bf16"


def available() -> str:
    """Return "" when OpenVINO imports here."""
    return openvino.available()


def facts() -> Mapping[str, Json]:
    """Return the version, the devices, and the hint."""
    return {**openvino.facts(), "precision_hint": HINT}


def load(model: Loadable, deployment: Deployment) -> OpenVinoSession:
    """Compile the model with the hint. Raises ``InputError`` where this CPU would compute it in float32."""
    session = openvino.load(model, replace(deployment, precision_hint=HINT))
    told = str(session.actual()["precision"])
    if "bf" not in told:
        session.close()
        what = f"this CPU has no {HINT}: OpenVINO computes in {told} here"
        raise InputError("runtime-refuses", what, do="use the backend openvino, which computes in float32")
    return session
