"""The most memory that a rank takes, and what it sends, against the formulas of `headwater plan`.

    python tests/benchmarks/bench_memory.py

A GPT of 13.9 M parameters (6 layers, width 384, 6 heads, context 256, vocabulary 8,192) and a
Switch of 4 experts on two ranks, float32, under our engine at every ZeRO stage, with and without
recomputation. Memory is the growth of a rank's resident set to its highest mark, which the kernel
keeps, from before the model is made to the end of two steps; smaller trainings go before, so that
libraries and their own buffers are there already. malloc is told to give back at once what is
freed; as it comes, glibc keeps much of it for the next time, and the marks stand a quarter to nine
tenths higher. What is sent is what the rank writes to sockets in the second step.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.context import Context
from pipeline.stage import Workers
from stages.models.config import DecoderConfig, ExpertsConfig, GPTConfig, LanguageConfig
from stages.models.decoder import Decoder
from stages.models.gpt import GPT
from stages.training.cost import Layout, traffic
from stages.training.engine import Engine
from stages.training.group import WorkerGroup
from stages.training.loop import Fit
from stages.training.memory import memory
from stages.training.objective import Batch, Loss, SupervisedObjective, Trainable
from stages.training.rank import Rank
from stages.training.settings import TrainSection

DENSE = GPTConfig(vocab_size=8192, context=256, layers=6, width=384, heads=6)
SWITCH = DecoderConfig(
    vocab_size=8192,
    context=256,
    layers=6,
    width=384,
    heads=6,
    kv_heads=6,
    inner=1024,
    head_size=64,
    experts=ExpertsConfig(num=4, every=2, capacity_factor=None),
)
MIB = 2.0**20
MMAP_THRESHOLD, TRIM_THRESHOLD, PIECE = -3, -1, 1 << 16
"""Of mallopt: what is larger than a piece goes back to the kernel when it is freed."""


@dataclass(frozen=True)
class Case:
    """A training of two steps."""

    config: LanguageConfig
    zero: int
    micro: int = 4
    passes: int = 2
    recompute: bool = False
    expert_parallel: int = 1

    @property
    def settings(self) -> TrainSection:
        """For two ranks."""
        said = {"steps": 9, "warmup": 0, "checkpoint_every": 0, "zero": self.zero}
        said |= {"global_batch": 2 * self.micro * self.passes, "micro_batch": self.micro}
        return TrainSection.model_validate(said | {"expert_parallel": self.expert_parallel})

    @property
    def layout(self) -> Layout:
        """The same, as a plan sees it."""
        return Layout.of(self.settings, 2, recompute=self.recompute, gpu=False)

    def __str__(self) -> str:
        name = "Switch" if isinstance(self.config, DecoderConfig) else "GPT"
        spread = f", experts over {self.expert_parallel}" if self.expert_parallel > 1 else ""
        again = ", recomputed" if self.recompute else ""
        return f"{name}, ZeRO-{self.zero}{spread}, {self.passes} x {self.micro} samples{again}"


class Seen(NamedTuple):
    """Of one rank: bytes."""

    memory: float
    sent: float


@dataclass
class Language(SupervisedObjective):
    """Next-token prediction on random tokens."""

    case: Case

    def open(self, rank: Rank) -> dict[str, Trainable]:
        config = self.case.config
        model = GPT(config) if isinstance(config, GPTConfig) else Decoder(config)
        model.recompute = self.case.recompute
        self.train = self
        return {"model": Trainable(model)}

    def __getitem__(self, index: int) -> torch.Tensor:
        config, generator = self.case.config, torch.Generator().manual_seed(index)
        return torch.randint(config.vocab_size, (config.context + 1,), generator=generator)

    def collate(self, samples: Sequence[Any]) -> Batch:
        windows = torch.stack(list(samples))
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def loss(self, model: Callable[..., Any], batch: Batch) -> Loss:
        return Loss(model(batch["tokens"], targets_BT=batch["targets"]))

    def export(self, engines: Any, out: Path) -> None:
        """Nothing is kept."""


def measure(rank: Rank, cases: Sequence[Case]) -> list[Seen]:
    """What each training takes, rehearsals first."""
    malloc = ctypes.CDLL("libc.so.6")
    malloc.mallopt(MMAP_THRESHOLD, PIECE)
    malloc.mallopt(TRIM_THRESHOLD, PIECE)
    for case in REHEARSALS:
        _measured(rank, case)
    return [_measured(rank, case) for case in cases]


def _measured(rank: Rank, case: Case) -> Seen:
    before = _settle()
    objective, settings = Language(case), case.settings
    trainable = objective.setup(rank, settings, 0)["model"]
    engines = {"model": Engine("model", trainable, settings, rank)}
    fit = Fit(rank, objective, settings, 0, "", engines, None)
    fit._step()  # ZeRO 3 learns in what order weights are needed, and sends more
    written = _written()
    fit._step()
    seen = Seen(_status("VmHWM") - before, _written() - written)
    engines["model"].close()
    return seen


def _settle() -> float:
    """Give back what is not used, and start the high-water mark from there."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024.0 * int(found[1])


def _written() -> float:
    """Bytes that this process wrote so far, to sockets among others."""
    found = re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return float(found[1])


REHEARSALS = [
    *(Case(replace(DENSE, layers=1), zero, micro=1) for zero in range(4)),
    Case(replace(SWITCH, layers=2), 1, micro=1, expert_parallel=2),
]
CASES = [
    *(Case(DENSE, zero, recompute=again) for again in (False, True) for zero in range(4)),
    Case(DENSE, 1, micro=8, passes=1),
    *(Case(SWITCH, zero) for zero in (1, 3)),
    *(Case(SWITCH, zero, expert_parallel=2) for zero in (1, 3)),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            found = group.run(measure, CASES)[0]
    for case, seen in zip(CASES, found, strict=True):
        plan = memory(case.config, case.layout)
        sent = traffic(case.config, case.layout).total
        print(
            f"{case!s:48s} {seen.memory / MIB:6.0f} MiB, planned {plan.peak / MIB:6.0f}"
            f" ({plan.peak / seen.memory - 1:+5.0%})   sent {seen.sent / MIB:6.1f} MiB,"
            f" planned {sent / MIB:6.1f}"
        )


if __name__ == "__main__":
    # The ranks import what they are to run by its module's name.
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_memory

    bench_memory.main()
