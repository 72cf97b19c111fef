"""Far sides for the tests of ``penstock.far``: what a backend's function returns in its environment."""

import os
import sys
import time

import numpy as np

from penstock.errors import InputError, MissingError


class Side:
    def __init__(self, how: str) -> None:
        self.how = how

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        x = feeds["x"]
        if self.how == "prints":
            print("a word on standard output")
            os.write(1, b"and another")
        elif self.how == "raises":
            raise RuntimeError("first line\nsecond")
        elif self.how == "refuses":
            raise InputError("run-failed", "the shape is wrong", do="give another")
        elif self.how == "hangs" and x.sum() > 0:
            time.sleep(600)
        elif self.how == "aborts" and x.sum() > 0:
            print("my last words", file=sys.stderr, flush=True)
            os.abort()
        elif self.how == "exits":
            os._exit(7)
        elif self.how == "sleeps":
            time.sleep(0.02)
        return [x * 2, np.array([*feeds], dtype=object)]

    def actual(self) -> dict[str, object]:
        return {"device": "cpu", "modules": [name for name in ("onnx", "torch", "click") if name in sys.modules]}

    def close(self) -> None:
        if self.how == "clings":
            time.sleep(600)


def open_side(how: str) -> Side:
    if how == "missing":
        raise MissingError("environment-missing", "it isn't there", do="penstock env add x")
    if how == "never":
        time.sleep(600)
    return Side(how)
