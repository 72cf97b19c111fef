"""Guards around a library's work on an untrusted graph: how much memory it may ask for, how often garbage is collected.

A file of 200 bytes can make onnx's shape inference or a folded operator ask for gigabytes. Under the guard that ends as
a ``MemoryError``, in this process, before a page of it is touched.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

EXTRA_BYTES = 512 << 20
COLLECT_EVERY = 500_000  # objects made between two runs of the garbage collector


@contextlib.contextmanager
def limited_memory(extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Let this process take at most ``extra_bytes`` more of address space inside the block.

    On Linux only. The limit is the whole process's, so nothing else may run beside the block that needs more.
    """
    size = _address_space()
    if size is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + extra_bytes
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmSize:"):
                return int(line.split()[1]) * 1024
    return None


@contextlib.contextmanager
def rare_collection() -> Iterator[None]:
    """Collect garbage less often inside the block.

    Graphs are many small objects; at the usual threshold the collector walks all of them again for every few hundred
    that are made, which is half of the time that a large model takes.
    """
    before = gc.get_threshold()
    if before[0]:  # 0: the collector is off
        gc.set_threshold(max(before[0], COLLECT_EVERY), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
