"""RotaryEmbedding from what LLaMA's code exports."""

import numpy as np
import pytest
from fusion_trial import hold, model, rewritten, some

PARTS = {
    "Slices": "a = Slice(x, zero, four, last)\nb = Slice(x, four, far, last)\n",
    "Split": "a, b = Split<axis=3>(x, halves)\n",
}
TURN = "n = Neg(b)\nr = Concat<axis=-1>(n, a)\np = Mul(x, c)\nq = Mul(r, s)\ny = Add(p, q)\n}"
HEAD = "(float[B,3,5,8] x{}) => (float[B,3,5,8] y) {{\n"
WAVES = """e = Concat<axis=-1>(t, t)
c0 = Cos(e)
s0 = Sin(e)
c = Unsqueeze(c0, one)
s = Unsqueeze(s0, one)
"""
SCALED = WAVES.replace("c = Unsqueeze(c0", "c1 = Mul(c0, {0.9})\nc = Unsqueeze(c1").replace(
    "s = Unsqueeze(s0", "s1 = Mul(s0, {0.9})\ns = Unsqueeze(s1"
)
WEIGHTS = {
    "zero": np.array([0]), "one": np.array([1]), "four": np.array([4]), "far": np.array([2**62]), "last": np.array([3]),
    "halves": np.array([4, 4]),
}  # fmt: skip


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("waves", [WAVES, SCALED])
def test_with_the_angles_computed(parts: str, waves: str) -> None:
    text = HEAD.format(", float[B,5,4] t") + waves + PARTS[parts] + TURN
    found = rewritten(model(text, 23, WEIGHTS))
    expected = {"RotaryEmbedding": 1, "Cos": 1, "Sin": 1, **({"Mul": 2} if waves is SCALED else {})}
    assert found.operators == expected
    hold(found, {"x": some(2, 3, 5, 8), "t": some(2, 5, 4, seed=1) * 3})


def angles(batch: int, *, twice: bool = True) -> dict[str, np.ndarray]:
    half = some(batch, 1, 5, 4, seed=2) * 3
    whole = np.concatenate([half, half if twice else half + 1], -1)
    return {**WEIGHTS, "c": np.cos(whole), "s": np.sin(whole)}


@pytest.mark.parametrize("batch", [1, 2])
def test_with_constants(batch: int) -> None:
    text = (HEAD.format("") + PARTS["Slices"] + TURN).replace("[B,", "[2,")
    found = rewritten(model(text, 23, angles(batch)))
    assert found.operators == {"RotaryEmbedding": 1}
    hold(found, {"x": some(2, 3, 5, 8)})


@pytest.mark.parametrize(
    ("batch", "twice", "opset", "reason"),
    [
        ("B", True, 23, "the cosines are constants, and the batch or the length isn't known"),
        ("2", False, 23, "the cosines or sines of the two halves differ"),
        ("2", True, 22, "RotaryEmbedding needs opset 23, the model has 22"),
    ],
)
def test_a_near_miss_says_why(batch: str, twice: bool, opset: int, reason: str) -> None:
    text = (HEAD.format("") + PARTS["Slices"] + TURN).replace("[B,", f"[{batch},")
    found = rewritten(model(text, opset, angles(1, twice=twice)))
    assert "RotaryEmbedding" not in found.operators
    assert found.reasons["fuse-rotary-embedding"] == [reason]
    hold(found, {"x": some(2, 3, 5, 8)})


@pytest.mark.parametrize("change", [("n, a", "a, n"), ("Neg(b)", "Neg(a)"), ("Slice(x, zero", "Slice(z, zero")])
def test_what_only_looks_like_it_stays(change: tuple[str, str]) -> None:
    text = (HEAD.format("") + "z = Relu(x)\n" + PARTS["Slices"] + TURN).replace("[B,", "[2,").replace(*change)
    found = rewritten(model(text, 23, angles(1)))
    assert "RotaryEmbedding" not in found.operators
    hold(found, {"x": some(2, 3, 5, 8)})
