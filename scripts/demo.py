"""The demo: the whole job on CIFAR-10 if it is at hand, else on the embedded digits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "demo-out"


def cifar10() -> Path | None:
    """Find CIFAR-10: the folder in PENSTOCK_CIFAR10, or the shared copy, which is unpacked once."""
    if named := os.environ.get("PENSTOCK_CIFAR10"):
        return Path(named)
    shared = Path(os.environ.get("PENSTOCK_SHARED") or ROOT.parent / "shared") / "cifar10"
    if not (shared / "unpack").is_file():
        return None
    folder = ROOT / "build" / "cifar10"
    if not (folder / "test_batch.bin").exists():
        print("unpacking CIFAR-10 …", flush=True)
        subprocess.run([str(shared / "unpack"), str(folder)], check=True)
    return folder


def main() -> int:
    """Run the build and say where to look."""
    penstock = Path(sys.executable).with_name("penstock")
    folder = cifar10()
    if folder is None:
        print("CIFAR-10 is not at hand (PENSTOCK_CIFAR10 names its folder): the demo runs on the embedded digits")
        arguments = ["zoo:digits"]
    else:
        print(f"the demo runs on CIFAR-10 in {folder}")
        arguments = ["zoo:cifar10", "--data", str(folder)]
    command = [str(penstock), "build", *arguments, "-o", str(OUT), "--max-drop", "0.5"]
    print("$ penstock", *command[1:], flush=True)
    began = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    print(f"took {time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
