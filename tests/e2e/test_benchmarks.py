"""The benchmark of the optimizers runs: its figures are only taken now and then, and it must not rot meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.shared
def test_the_optimizers_are_measured(shared: Path, tmp_path: Path) -> None:
    """On a model with data beside it, with the one tool that needs no installation of its own."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- optimizers -->\nold\n<!-- /optimizers -->\nafter\n")
    words = ["--quick", "--models", "motor-fault-extdata", "--tools", "penstock", "--page", str(page)]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "optimizers.py", *words], cwd=ROOT, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| motor-fault-extdata | 18    | 15     | **13**" in text
    assert "Optimizing twice gives the same bytes on 1 of 1." in text


@pytest.mark.shared
@pytest.mark.slow
def test_weight_only_is_measured(shared: Path, tmp_path: Path) -> None:
    """On the smallest model, without the encoder; it fails where a peer is ahead at equal bits."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- weight-only -->\nold\n<!-- /weight-only -->\nafter\n")
    words = ["--models", "tiny-gpt2-genai", "--nets", str(tmp_path), "--page", str(page)]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "weight_only.py", *words], cwd=ROOT, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "| Penstock gptq, no zero points | 4 | 5.000 |" in text and "| ONNX Runtime default" in text
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
