"""The most memory that a rank takes, and what it sends, against the formulas of `headwater plan`.

    python tests/benchmarks/bench_memory.py

A GPT of 13.9 M parameters (6 layers, width 384, 6 heads, context 256, vocabulary 8,192), a
Switch of 4 experts and a CLIP of 13 M parameters (6 layers of width 320 for images of 128 pixels in
patches of 16, 4 of width 256 for 32 tokens) on two ranks, float32, under our engine at every ZeRO
stage, with and without recomputation and gradient caching. Memory is the growth of a rank's
resident set to its highest mark, which the kernel keeps, from before the model is made to the end
of two steps; smaller trainings go before, so that libraries and their own buffers are there
already. malloc is told to give back at once what is freed; as it comes, glibc keeps much of it for
the next time, and the marks stand a quarter to nine tenths higher. What is sent is what the rank
writes to sockets in the second step.
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
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.context import Context
from pipeline.stage import Workers
from stages.contrastive.caption_tokenizer import add_special_tokens
from stages.contrastive.clip_cost_model import ClipCost
from stages.contrastive.clip_params import ClipTrain
from stages.contrastive.pair_dataset import Pair
from stages.models.clip.configuration_clip import CLIPConfig, TextConfig, ViTConfig
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.engine import Engine
from stages.training.objective import Batch, Loss, Objective, Trainable
from stages.training.planning.cost_model import CostModel
from stages.training.planning.device_layout import Layout
from stages.training.planning.language_model_cost import LanguageModelCost
from stages.training.ranks.rank import Rank
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.supervised import SupervisedObjective
from stages.training.trainer import Trainer
from stages.training.training_params import TrainSection

DENSE = GPTConfig(vocab_size=8192, context_length=256, num_layers=6, hidden_size=384, num_heads=6)
SWITCH = LlamaConfig(
    vocab_size=8192,
    context_length=256,
    num_layers=6,
    hidden_size=384,
    num_heads=6,
    num_kv_heads=6,
    intermediate_size=1024,
    head_size=64,
    experts=ExpertsConfig(num_experts=4, moe_every=2, capacity_factor=None),
)
CLIP = CLIPConfig(
    ViTConfig(image_size=128, patch_size=16, num_layers=6, hidden_size=320, num_heads=5),
    TextConfig(
        8192, context_length=32, num_layers=4, hidden_size=256, num_heads=4, eos=3, bos=2, pad=0
    ),
    embed_dim=256,
)
MIB = 2.0**20
MMAP_THRESHOLD, TRIM_THRESHOLD, PIECE = -3, -1, 1 << 16
"""Of mallopt: what is larger than a piece goes back to the kernel when it is freed."""


class Seen(NamedTuple):
    """Of one rank: bytes."""

    memory: float
    sent: float


def planned_of(cost: CostModel, layout: Layout) -> Seen:
    """Return what a plan expects of a model."""
    return Seen(cost.memory(layout).peak, cost.traffic(layout).total)


@dataclass(frozen=True)
class Case:
    """A training of two steps."""

    config: LanguageModelConfig
    zero: int
    micro: int = 4
    passes: int = 2
    activation_checkpointing: bool = False
    expert_parallel_size: int = 1

    @property
    def settings(self) -> TrainSection:
        """For two ranks."""
        said = {"steps": 9, "warmup_steps": 0, "checkpoint_interval": 0, "zero_stage": self.zero}
        said |= {"global_batch_size": 2 * self.micro * self.passes, "micro_batch_size": self.micro}
        return TrainSection.model_validate(
            said | {"expert_parallel_size": self.expert_parallel_size}
        )

    @property
    def layout(self) -> Layout:
        """The same, as a plan sees it."""
        return Layout.of(
            self.settings, 2, activation_checkpointing=self.activation_checkpointing, gpu=False
        )

    @property
    def objective(self) -> Objective:
        """What is trained."""
        return Language(self)

    @property
    def planned(self) -> Seen:
        """What `headwater plan` says of it."""
        return planned_of(LanguageModelCost(self.config), self.layout)

    def __str__(self) -> str:
        name = "Switch" if isinstance(self.config, LlamaConfig) else "GPT"
        spread = (
            f", experts over {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        )
        again = ", recomputed" if self.activation_checkpointing else ""
        return f"{name}, ZeRO-{self.zero}{spread}, {self.passes} x {self.micro} samples{again}"


@dataclass(frozen=True)
class ClipCase:
    """A training of a CLIP of two steps; several passes are gradient caching."""

    config: CLIPConfig
    zero: int
    micro: int = 32
    passes: int = 1
    activation_checkpointing: bool = False

    @property
    def settings(self) -> ClipTrain:
        """For two ranks."""
        said = {"steps": 9, "warmup_steps": 0, "checkpoint_interval": 0, "zero_stage": self.zero}
        said |= {"global_batch_size": 2 * self.micro * self.passes, "micro_batch_size": self.micro}
        return ClipTrain.model_validate(said)

    @property
    def objective(self) -> Objective:
        """What is trained."""
        return Pairs(
            Path(), Path(), self.config, activation_checkpointing=self.activation_checkpointing
        )

    @property
    def planned(self) -> Seen:
        """What `headwater plan` says of it."""
        layout = Layout.of(
            self.settings, 2, activation_checkpointing=self.activation_checkpointing, gpu=False
        )
        return planned_of(ClipCost(self.config, self.settings.global_batch_size), layout)

    def __str__(self) -> str:
        again = ", recomputed" if self.activation_checkpointing else ""
        return f"CLIP, ZeRO-{self.zero}, {self.passes} x {self.micro} pairs{again}"


class Pairs(ContrastiveObjective):
    """Random images with random captions."""

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        self.rank, self.settings, self._peak_flops = rank, settings, 1.0
        share, own = settings.rank_batch_size(rank.world), np.random.default_rng(rank.index)
        side, text = self.config.vision.image_size, self.config.text
        ids = own.integers(4, text.vocab_size, (share, text.context_length - 2)).tolist()
        views = [
            Pair(own.integers(0, 256, (side, side, 3), np.uint8), add_special_tokens(row, text))
            for row in ids
        ]
        self._batches = self._prefetch(views)
        self._model = self._build()
        return {"model": Trainable(self._model)}

    def _prefetch(self, views: Any) -> Any:
        return SimpleNamespace(get=lambda step: views)


@dataclass
class Language(SupervisedObjective):
    """Next-token prediction on random tokens."""

    case: Case

    def open(self, rank: Rank) -> dict[str, Trainable]:
        config = self.case.config
        model = GPT(config) if isinstance(config, GPTConfig) else Llama(config)
        model.activation_checkpointing = self.case.activation_checkpointing
        self.train_samples = self
        return {"model": Trainable(model)}

    def __getitem__(self, index: int) -> torch.Tensor:
        config, generator = self.case.config, torch.Generator().manual_seed(index)
        return torch.randint(config.vocab_size, (config.context_length + 1,), generator=generator)

    def collate(self, samples: Sequence[Any]) -> Batch:
        windows = torch.stack(list(samples))
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def loss(self, model: Callable[..., Any], batch: Batch) -> Loss:
        return Loss(model(batch["tokens"], targets_BT=batch["targets"]))

    def export(self, engines: Any, out: Path) -> None:
        """Nothing is kept."""


def measure(rank: Rank, cases: Sequence[Case | ClipCase]) -> list[Seen]:
    """What each training takes, rehearsals first."""
    malloc = ctypes.CDLL("libc.so.6")
    malloc.mallopt(MMAP_THRESHOLD, PIECE)
    malloc.mallopt(TRIM_THRESHOLD, PIECE)
    for case in REHEARSALS:
        _measured(rank, case)
    return [_measured(rank, case) for case in cases]


def _measured(rank: Rank, case: Case | ClipCase) -> Seen:
    before = _settle()
    objective, settings = case.objective, case.settings
    trainable = objective.setup(rank, settings, 0)["model"]
    engines = {"model": Engine("model", trainable, settings, rank)}
    fit = Trainer(rank, objective, settings, 0, "", engines, None)
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


REHEARSALS: list[Case | ClipCase] = [
    *(Case(replace(DENSE, num_layers=1), zero, micro=1) for zero in range(4)),
    Case(replace(SWITCH, num_layers=2), 1, micro=1, expert_parallel_size=2),
    ClipCase(replace(CLIP, text=replace(CLIP.text, num_layers=1)), 1, micro=1, passes=2),
]
CASES: list[Case | ClipCase] = [
    *(
        Case(DENSE, zero, activation_checkpointing=again)
        for again in (False, True)
        for zero in range(4)
    ),
    Case(DENSE, 1, micro=8, passes=1),
    *(Case(SWITCH, zero) for zero in (1, 3)),
    *(Case(SWITCH, zero, expert_parallel_size=2) for zero in (1, 3)),
    *(ClipCase(CLIP, zero) for zero in range(4)),
    *(ClipCase(CLIP, zero, micro=16, passes=4) for zero in (1, 3)),
    *(ClipCase(CLIP, zero, micro=64, activation_checkpointing=True) for zero in (0, 1)),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            found = group.run(measure, CASES)[0]
    for case, seen in zip(CASES, found, strict=True):
        plan = case.planned
        print(
            f"{case!s:48s} {seen.memory / MIB:6.0f} MiB, planned {plan.memory / MIB:6.0f}"
            f" ({plan.memory / seen.memory - 1:+5.0%})   sent {seen.sent / MIB:6.1f} MiB,"
            f" planned {plan.sent / MIB:6.1f}"
        )


if __name__ == "__main__":
    # The ranks import what they are to run by its module's name.
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_memory

    bench_memory.main()
