"""What torch has allocated at most, for tests of what a plan says of a host's memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak(work: Callable[[], object], folder: Path | None = None) -> int:
    """Bytes that torch takes at once on the processor while it works, what it maps of the folder's
    weights apart."""
    mapped = (folder / "model.safetensors").stat().st_size if folder else 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    found = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(found, key=lambda e: e.start_ns())]
    assert not folder or mapped in sizes
    return max(accumulate(size for size in sizes if abs(size) != mapped))
