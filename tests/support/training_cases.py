"""Small objectives, and functions that ranks run: the tests of the loop share one process group."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.data.best_fit_packing import PackedSample
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig, MuP
from stages.models.llama.configuration_llama import LlamaConfig
from stages.objectives.causal_lm import CausalLMObjective
from stages.training.objective import Batch, Loss, Trainable
from stages.training.supervised import SupervisedObjective

VOCABULARY, CONTEXT, WIDTH = 101, 16, 101
"""Every matrix but the positions is above the size up to which ZeRO-3 leaves weights whole on all
ranks, and odd, so that two ranks share it with padding."""


@dataclass
class Toy(SupervisedObjective):
    """Learn the next token of short random sequences of unequal lengths."""

    poison_step: int = -1
    poison_rank: int = 0
    poison_steps: int = 1
    poison: float = float("nan")
    """What the loss is multiplied by, on that rank in those steps."""
    steep: float = 1.0
    """What the gradient is multiplied by there, and the loss is not."""
    dropout: float = 0.0
    length_grouped: bool = True
    samples: int = 96

    def open(self, rank: Any) -> dict[str, Trainable]:
        import torch

        from stages.models.gpt2.configuration_gpt2 import GPTConfig
        from stages.models.gpt2.modeling_gpt2 import GPT
        from stages.training.data_order import Shuffled

        generator = torch.Generator().manual_seed(7)
        data = []
        for i in range(self.samples + 16):
            start = int(torch.randint(0, VOCABULARY, (), generator=generator))
            length = 4 + i % (CONTEXT - 4)
            data.append(torch.tensor([(start + k * k) % VOCABULARY for k in range(length + 1)]))
        self.train_samples = Shuffled(data[16:], self.seed)
        self.eval_dataset = data[:16]
        shape = GPTConfig(
            VOCABULARY, CONTEXT, num_layers=1, hidden_size=WIDTH, num_heads=1, dropout=self.dropout
        )
        return {"model": Trainable(GPT(shape))}

    def collate(self, samples: Sequence[Any]) -> Batch:
        import torch

        longest = max(map(len, samples)) - 1
        tokens = torch.zeros(len(samples), longest, dtype=torch.long)
        targets = torch.full_like(tokens, -100)
        for row, sample in enumerate(samples):
            tokens[row, : len(sample) - 1] = sample[:-1]
            targets[row, : len(sample) - 1] = sample[1:]
        return {"tokens": tokens, "targets": targets}

    def loss(self, model: Any, batch: Batch) -> Loss:
        import torch
        from torch.nn import functional as F

        logits = model(batch["tokens"]).float()
        total = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        bad = self.poison_step <= self.step_now < self.poison_step + self.poison_steps
        if bad and self.rank.index == self.poison_rank and torch.is_grad_enabled():
            total = total * self.poison
            total = total.detach() + self.steep * (total - total.detach())
        return Loss(total)

    stop_at: int = -1
    """The step at which the run is requested to stop."""
    stop_in: int = -1
    """The step in whose evaluation, at its first batch, the run is requested to stop."""
    step_now: int = 0

    def step(self, engines: Any, step: int) -> Any:
        self.step_now = step
        if step == self.stop_at and self.rank.ctx:
            self.rank.ctx.cancel_file.touch()
        return super().step(engines, step)

    def evaluate(self, engines: Any, step: int) -> Any:
        if step == self.stop_in and self.rank.ctx:
            self.rank.ctx.cancel_file.touch()
        return super().evaluate(engines, step)

    def export(self, engines: Any, out: Path) -> None:
        import torch

        out.mkdir(parents=True, exist_ok=True)
        torch.save(engines["model"].module.state_dict(), out / "weights.pt")


@dataclass
class Half(Toy):
    """Trains in half precision on a processor."""

    def open(self, rank: Any) -> dict[str, Trainable]:
        from float16_on_cpu import allow_float16

        allow_float16()
        return super().open(rank)


@dataclass
class Adapted(Toy):
    """Trains adapters of a frozen model; B starts away from zero, so that A has a gradient."""

    def open(self, rank: Any) -> dict[str, Trainable]:
        import torch

        from stages.models.lora import add_lora
        from stages.models.lora_config import LoRAConfig

        model: Any = super().open(rank)["model"].module
        add_lora(model, LoRAConfig(rank=5, dropout=self.dropout))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    parameter.normal_(std=0.05)
        return {"model": Trainable(model)}


@dataclass
class Gathering(Toy):
    """Gathers the whole weights before each step, as a sampler or an average would."""

    def step(self, engines: Any, step: int) -> Any:
        engine = engines["model"]
        apart = [p for p in engine.module.parameters() if not p.numel()]
        with engine.gathered_weights() as whole:
            shapes = {name: tuple(p.shape) for name, p in whole.named_parameters()}
            assert shapes == engine.shapes
            assert all(float(p.detach().abs().sum()) > 0 for p in whole.parameters() if p.ndim > 1)
        result = super().step(engines, step)
        return replace(result, metrics={**result.metrics, "apart": float(len(apart))})


@dataclass
class Deaf(Toy):
    """Its evaluation does not check whether it is to stop."""

    def evaluate(self, engines: Any, step: int) -> Any:
        return {"eval_loss": 1.0}


@dataclass
class Infinite(Toy):
    """At one step the loss is infinite, though every gradient is well."""

    at: int = 3

    def step(self, engines: Any, step: int) -> Any:
        result = super().step(engines, step)
        if step != self.at:
            return result
        return replace(result, metrics={**result.metrics, "loss": float("inf")})


@dataclass
class Named(Toy):
    """Two losses: of targets below half of the vocabulary, and, ever more, of the others."""

    def open(self, rank: Any) -> dict[str, Trainable]:
        self.coefficients = {"high": lambda step: 0.1 * step}
        return super().open(rank)

    def units(self, batch: Batch) -> Any:
        low = (batch["targets"] >= 0) & (batch["targets"] < VOCABULARY // 2)
        return {"low": float(low.sum()), "high": float((batch["targets"] >= VOCABULARY // 2).sum())}

    def loss(self, model: Any, batch: Batch) -> Any:
        from torch.nn import functional as F

        logits, targets = model(batch["tokens"]).float().flatten(0, 1), batch["targets"].flatten()

        def total(targets: Any) -> Loss:
            return Loss(F.cross_entropy(logits, targets, reduction="sum"))

        high = targets >= VOCABULARY // 2
        return {
            "low": total(targets.masked_fill(high, -100)),
            "high": total(targets.where(high, -100)),
        }


@dataclass
class Two(Toy):
    """Trains a second module, which comes first in the alphabet, at five times the rate."""

    def open(self, rank: Any) -> dict[str, Trainable]:
        from torch import nn

        return {**super().open(rank), "aid": Trainable(nn.Linear(3, 1), lr_ratio=5)}

    def step(self, engines: Any, step: int) -> Any:
        import torch

        engines["aid"].backward(engines["aid"](torch.ones(2, 3)).sum())
        aid = engines["aid"].step()
        result = super().step({"model": engines["model"]}, step)
        return replace(result, updates=[aid, *result.updates])

    def evaluate(self, engines: Any, step: int) -> Any:
        return super().evaluate({"model": engines["model"]}, step)


@dataclass
class Compiled(Toy):
    """Sequences of one length through blocks that are compiled, or that are not."""

    compile: bool = True
    activation_checkpointing: bool = False

    def open(self, rank: Any) -> dict[str, Trainable]:
        from stages.training.torch_compile import compile_blocks

        trainables = super().open(rank)
        model: Any = trainables["model"].module
        model.activation_checkpointing = self.activation_checkpointing
        if self.compile:
            compile_blocks(model, rank.device)
        self.eval_dataset = None
        return trainables

    def collate(self, samples: Sequence[Any]) -> Batch:
        return super().collate([sample[:5] for sample in samples])


@dataclass
class Faulty(Toy):
    """Something happens to a rank at a step: it is killed, stopped, or raises."""

    at: int = 5
    whom: int = 1
    what: str = "kill"
    mark: str = ""
    """A file that exists once it has happened: it happens once."""
    after: tuple[str, str] | None = None
    """Folder and pattern of a file that is there before it happens, such as a checkpoint."""

    def step(self, engines: Any, step: int) -> Any:
        if step == self.at and self.rank.index == self.whom and not Path(self.mark).exists():
            while self.after and not any(Path(self.after[0]).glob(self.after[1])):
                time.sleep(0.01)
            Path(self.mark).write_text(json.dumps({"pid": os.getpid()}))
            happen(self.what)
        return super().step(engines, step)


@dataclass
class Rated(Faulty):
    """Its evaluations have the values that are given by step."""

    ratings: Mapping[int, float] = field(default_factory=dict)

    def evaluate(self, engines: Any, step: int) -> Any:
        return {**super().evaluate(engines, step), "eval_rating": self.ratings[step]}


@dataclass
class Doomed:
    """Any objective; one rank is killed once, `delay` seconds after the start of a step."""

    inner: Any
    at: int
    whom: int
    delay: float
    mark: str
    bomb: threading.Timer | None = None

    def step(self, engines: Any, step: int) -> Any:
        if step == self.at and self.inner.rank.index == self.whom and not Path(self.mark).exists():
            Path(self.mark).touch()
            self.bomb = threading.Timer(self.delay, happen, ["kill"])
            self.bomb.start()
        return self.inner.step(engines, step)

    def evaluate(self, engines: Any, step: int) -> Any:
        if self.bomb:
            self.bomb.join()
        return self.inner.evaluate(engines, step)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


def happen(what: str) -> None:
    from pipeline.errors import InputError

    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "user":
        raise InputError("the data is wrong", remedy="repair it")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    if what == "hang":
        time.sleep(3600)


def happen_to(rank: Any, whom: int, what: str) -> None:
    if rank.index == whom:
        happen(what)


def late(rank: Any, whom: int, seconds: float) -> int:
    """Let one rank work for long; the others wait at a barrier, then have nothing to do."""
    for wait in (rank.barrier, None):
        until = time.monotonic() + seconds
        while rank.index == whom and time.monotonic() < until:
            time.sleep(0.1)
            rank.heartbeat()
        if wait:
            wait()
    return os.getpid()


def norm_of_many(rank: Any, settings: Any, small: float, passes: int) -> float:
    """Return the norm of a gradient of 1 and many small ones, with one weight per rank."""
    import torch
    from deepspeed.accelerator import get_accelerator
    from torch import nn

    from stages.training.engine import Engine

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    engine = Engine("one", Trainable(nn.Linear(1, 1, bias=False)), settings, rank)
    try:
        for number in range(passes + 1):
            each = small if number else 1.0
            given = torch.full((1, 1), each / rank.world, dtype=getattr(torch, settings.dtype))
            engine.backward(engine(given).float().sum() / 8, last=number == passes)
        return 8 * engine.step().grad_norm
    finally:
        engine.close()
        del accelerator.is_fp16_supported


def fit_in_parts(rank: Any, *arguments: Any, numbers: int, **named: Any) -> Any:
    """Run `fit` with a bucket of so many numbers."""
    from stages.training import engine
    from stages.training.trainer import fit

    usual, engine.CPU_BUCKET = engine.CPU_BUCKET, numbers
    try:
        return fit(rank, *arguments, **named)
    finally:
        engine.CPU_BUCKET = usual


def odd_weights(rank: Any, settings: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the weights after a step of a module of a trained and a frozen matrix and a number."""
    import torch
    from torch import nn

    from stages.training.engine import Engine

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(120, 120), nn.Linear(120, 120).requires_grad_(False)
            self.scale = nn.Parameter(torch.full(shape, 2.0))

        def forward(self, x: Any) -> Any:
            return self.two(self.one(x)).square().sum() * self.scale.sum()

    torch.manual_seed(0)
    engine = Engine("odd", Trainable(Odd()), settings, rank)
    try:
        engine.set_lr_scale(1.0)
        engine.backward(engine(torch.ones(1, 120)) / rank.world)
        engine.step()
        with engine.fp32_master_weights() as module:
            return {name: value.clone() for name, value in module.state_dict().items()}
    finally:
        engine.close()


def pid(rank: Any) -> int:
    return os.getpid()


def plain_losses(settings: Any, seed: int, objective: Toy | None = None) -> list[float]:
    """Return the losses of a plain PyTorch loop: no engine, no shards, one process, one batch."""
    import torch

    from stages.training.data_order import derive_seed
    from stages.training.lr_schedule import lr_scale
    from stages.training.ranks.rank import Rank

    torch.manual_seed(derive_seed(seed))
    objective = objective or Toy()
    model = objective.setup(Rank(), settings, seed)["model"].module
    turned = [p for p in model.h.parameters() if p.ndim == 2 and settings.optimizer == "muon"]
    known = set(map(id, turned))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizers: list[Any] = [torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=settings.eps)]
    if settings.optimizer == "lion":
        optimizers = [PlainLion(groups, betas)]
    if turned:
        optimizers += [torch.optim.Muon(turned, 1.0, adjust_lr_fn="match_rms_adamw")]
    losses = []
    for step in range(settings.steps):
        samples = range(settings.first_sample(step), settings.first_sample(step + 1))
        batch = objective.collate([objective.train_samples[i] for i in samples])
        loss = objective.loss(model, batch).total / objective.units(batch)
        model.zero_grad()
        loss.backward()
        clip_plainly(model, settings)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * lr_scale(settings, step)
            optimizer.step()
        losses.append(loss.item())
    return losses


class PlainLion:
    """Algorithm 2 of Chen et al. 2023, written out."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        self.param_groups, self.betas = groups, betas
        self.momentum: dict[int, Any] = {}

    def step(self) -> None:
        import torch

        for group in self.param_groups:
            for p in group["params"]:
                m = self.momentum.get(id(p), torch.zeros_like(p))
                c = self.betas[0] * m + (1 - self.betas[0]) * p.grad
                p.data = p.data - group["lr"] * (c.sign() + group["weight_decay"] * p.data)
                self.momentum[id(p)] = self.betas[1] * m + (1 - self.betas[1]) * p.grad


def clip_plainly(model: Any, settings: Any) -> None:
    from torch.nn import utils

    if settings.grad_clip_mode == "norm":
        utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    elif settings.grad_clip_mode == "value":
        utils.clip_grad_value_(model.parameters(), settings.grad_clip)
    else:
        gradients = [p.grad for p in model.parameters()]
        norm = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        for gradient in gradients:
            gradient.mul_(settings.grad_clip / (norm + settings.grad_clip))


def little_world(folder: Path) -> Path:
    """Write an untrained language model, and rankings in its vocabulary."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    import toy_alignment

    from stages.data.preference_dataset import write_preferences
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.models.gpt2.configuration_gpt2 import GPTConfig
    from stages.models.gpt2.modeling_gpt2 import GPT
    from stages.models.model_io import save_language_model

    toy_alignment.write_tokenizer(folder / "tokenizer")
    rng = random.Random(2)
    sizes = {"train": 40, "eval": 12}
    write_preferences(
        folder / "preferences",
        [toy_alignment.preference(i, split, rng) for split, n in sizes.items() for i in range(n)],
    )
    torch.manual_seed(0)
    size = len(Tokenizer(folder / "tokenizer"))
    model = GPT(
        GPTConfig(size, toy_alignment.CONTEXT, num_layers=1, hidden_size=WIDTH, num_heads=1)
    )
    save_language_model(model.eval(), folder / "policy", folder / "tokenizer", chat=True)
    return folder


def routed_config(over: str = "sequence") -> LlamaConfig:
    """A dense block, then one of experts; large enough for ZeRO-3 to cut every matrix."""
    experts = ExpertsConfig(
        num_experts=4, moe_every=2, aux_loss_scope=over, router_z_loss_coef=1e-3
    )
    return LlamaConfig(
        VOCABULARY, CONTEXT, num_layers=2, hidden_size=104, num_heads=2, num_kv_heads=1,
        intermediate_size=56, head_size=52, qk_norm=True, experts=experts, init_scale=0.1,
        mup=MuP(base_width=52),
    )  # fmt: skip


@dataclass
class Routed(CausalLMObjective):
    """Pretraining of a model with experts on samples of two short documents, unequally padded."""

    config: LanguageModelConfig = field(default_factory=routed_config)
    corpus: Any = None
    tokenizer_folder: Path = Path()
    mask_documents: bool = True

    def open(self, rank: Any) -> dict[str, Trainable]:
        import torch

        from stages.models.llama.modeling_llama import Llama
        from stages.models.mup import lr_multipliers
        from stages.training.data_order import Shuffled

        samples = [packed(number) for number in range(100)]
        self.train_samples, self.eval_dataset = Shuffled(samples[4:], self.seed), samples[:4]
        self.bytes_per_token = torch.ones(VOCABULARY)
        model = Llama(self.config)
        model.activation_checkpointing = self.activation_checkpointing
        from stages.training.optim.optimizer_registry import find_optimizer

        paced = lr_multipliers(model, find_optimizer(self.settings.optimizer).mup_matrix_lr)
        return {"model": Trainable(model, lr_multipliers=paced)}

    def export(self, engines: Any, out: Path) -> None:
        import torch

        out.mkdir(parents=True, exist_ok=True)
        torch.save(engines["model"].module.state_dict(), out / "weights.pt")


@dataclass
class HalfRouted(Routed):
    """In half precision on a processor, as `Half`."""

    def open(self, rank: Any) -> dict[str, Trainable]:
        from float16_on_cpu import allow_float16

        allow_float16()
        return super().open(rank)


@dataclass
class Bucketed(Routed):
    """Reports how many numbers of a gradient DeepSpeed reduces together."""

    def step(self, engines: Any, step: int) -> Any:
        bucket = engines["model"]._deepspeed.optimizer.reduce_bucket_size
        result = super().step(engines, step)
        return replace(result, metrics={**result.metrics, "bucket": float(bucket)})


def packed(number: int) -> PackedSample:
    """Return a sample of two documents and 1 to 11 positions of padding."""
    import numpy as np

    lengths = (3 + number % 5, 2 + number % 7)
    rest = CONTEXT - sum(lengths)
    runs = [
        (number * 37 + 11 * k + np.arange(n + 1) ** 2) % VOCABULARY for k, n in enumerate(lengths)
    ]
    positions = np.concatenate([np.arange(n) for n in (*lengths, rest)])
    return PackedSample(
        tokens=np.pad(np.concatenate([run[:-1] for run in runs]), (0, rest)),
        targets=np.pad(np.concatenate([run[1:] for run in runs]), (0, rest), constant_values=-100),
        segments=np.repeat(np.arange(3), (*lengths, rest)),
        positions=positions,
    )
