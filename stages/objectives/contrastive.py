"""Training a CLIP on pairs: views, towers, the loss over all ranks, held-out retrieval.

A step looks at `global_batch_size` pairs at once, on however many ranks. Where a rank's share does not
fit its memory, `micro_batch_size` computes the same gradient in parts (`stages.contrastive.gradient_cache`).

Parameters aside, two things are state: the statistics of batch norms (ResNet towers; averaged over
ranks after every step, so that they are alike), and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, Interrupted
from stages.contrastive.caption_tokenizer import Words, open_words
from stages.contrastive.gradient_cache import Judge, backward_cached, backward_whole
from stages.contrastive.losses import contrastive_loss, sigmoid_loss
from stages.contrastive.pair_dataset import (
    Ahead,
    Augmentation,
    View,
    Views,
    collate,
    drawn,
    plain_view,
)
from stages.contrastive.retrieval import recalls
from stages.data.image_text_dataset import ImageTextStore
from stages.data.tokenizers.huggingface_tokenizer import has_tokenizer
from stages.models.clip.configuration_clip import CLIPConfig, ViTConfig
from stages.models.clip.conversion_clip import load_clip, save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.training.data_order import mix
from stages.training.objective import Metrics, State, Trainable
from stages.training.ranks.rank import Rank
from stages.training.step_result import StepResult
from stages.training.throughput import gemm_peak

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.training_params import TrainSection


@dataclass
class Contrastive:
    """Match images with captions."""

    pairs: Path
    tokenizer_folder: Path
    config: CLIPConfig
    augmentation: Augmentation = field(default_factory=Augmentation)
    any_caption: bool = True
    sigmoid: bool = False
    """SigLIP's loss instead of CLIP's."""
    local_loss: bool = True
    patch_dropout: float = 0.0
    activation_checkpointing: bool = False
    threads: int = 1
    """That make views, on each rank."""
    base: Path | None = None
    """A CLIP folder whose weights training begins with."""
    card: str = ""
    flops_per_token: float = 0.0
    """Tokens are not what this counts in: it reports pairs and the MFU itself."""
    setup_metrics: Mapping[str, float] = field(default_factory=dict)

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open the pairs and build the towers.

        Raises:
            InputError: a step wants more pairs than there are, or the tokenizer is not the base's,
                or of another vocabulary than the model.
        """
        self.rank, self.settings = rank, settings
        store = ImageTextStore(self.pairs)
        self.held_out = ImageTextStore(self.pairs, "eval")
        self._asked = drawn(len(self.held_out), settings.eval_samples, mix(seed, 3))
        self.tokenizer = self._tokenizer()
        if len(store) < settings.global_batch_size:
            raise InputError(
                f"a step of {settings.global_batch_size} pairs, and only {len(store)} to train on",
                where="train.global_batch_size",
                remedy=f"set at most {len(store)}",
            )
        patches, kept = self._patches()
        self._ahead = self._views(Views(
            store, self.tokenizer, self.config.text, self.config.vision.image_size,
            self.augmentation, seed, settings.global_batch_size, self.any_caption, patches, kept,
        ))  # fmt: skip
        self.setup_metrics = {"pairs": float(len(store)), "eval_pairs": float(len(self.held_out))}
        self._model = self._build()  # before anything else draws random numbers
        rank.barrier()
        self._peak = rank.sum(gemm_peak(rank.device, getattr(torch, settings.dtype)))
        return {"model": Trainable(self._model)}

    def _tokenizer(self) -> Words:
        tokenizer, size = open_words(self.tokenizer_folder), self.config.text.vocab_size
        if len(tokenizer) != size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the model {size}",
                where=str(self.tokenizer_folder),
                remedy="name the tokenizer that belongs to the model",
            )
        base = self.base
        if base and has_tokenizer(base) and open_words(base).digest != tokenizer.digest:
            raise InputError(
                f"the tokenizer has the same number of ids as that of {base}, but others",
                where=str(self.tokenizer_folder),
                remedy="leave `tokenizer` out: the base brings its own",
            )
        return tokenizer

    def _patches(self) -> tuple[int, int]:
        """Of an image, and those that are looked at; none of a ResNet's."""
        vision = self.config.vision
        if not isinstance(vision, ViTConfig):
            return 0, 0
        return vision.patches, vision.kept(self.patch_dropout)

    def _views(self, views: Views) -> Ahead[View]:
        """This rank's part of every step."""
        G, share = self.settings.global_batch_size, self.settings.rank_batch_size(self.rank.world)
        first = self.rank.index * share
        return Ahead(
            views.__getitem__,
            lambda step: range(step * G + first, step * G + first + share),
            threads=self.threads,
        )

    def _build(self) -> CLIP:
        model = CLIP(self.config)
        if self.base is not None:
            model.load_state_dict(load_clip(self.base).state_dict(), strict=False)
        model.set_activation_checkpointing(self.activation_checkpointing)
        return model.train()

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Forward and backward over this rank's pairs, then one update."""
        start = time.perf_counter()
        engine, rank = engines["model"], self.rank
        views = self._ahead.take(step)
        waited = time.perf_counter() - start
        micro = self.settings.rank_micro_batch_size(rank.world)
        parts = [views[at : at + micro] for at in range(0, len(views), micro)]
        batches = [collate(part, self.config.text, rank.device) for part in parts]
        statistics = [(buffer, buffer.clone()) for buffer in engine.module.buffers()]
        if len(batches) == 1:
            share, scale = backward_whole(engine, batches[0], self._judge)
        else:
            share, scale = backward_cached(engine, batches, self._judge)
        totals = rank.total(torch.stack([share.loss.detach().double(), share.right.double()]))
        loss, right = totals.tolist()
        update = engine.step(loss)
        if not update.applied:
            for buffer, before in statistics:
                buffer.copy_(before)
        limit_scale(engine)
        average_statistics(engine.module, rank)
        seconds = time.perf_counter() - start
        metrics = {
            "loss": loss,
            "accuracy": right / self.settings.global_batch_size,
            "logit_scale": float(scale),
            "pairs_per_second": self.settings.global_batch_size / seconds,
            "data_share": waited / seconds,
            "mfu": self._flops(batches) * rank.world / seconds / self._peak,
        }
        return StepResult(metrics, [update])

    @property
    def _judge(self) -> Judge:
        if self.sigmoid:
            return partial(sigmoid_loss, rank=self.rank)

        def judge(image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor) -> Any:
            return contrastive_loss(image_BE, text_BE, scale, self.rank, local=self.local_loss)

        return judge

    def _flops(self, batches: Sequence[Mapping[str, Tensor]]) -> float:
        """What a forward and backward pass of this rank's pairs takes, for the MFU: of the model as
        published, whole last blocks among it; what is made again to save memory counts once."""
        kept = self._patches()[1]
        return sum(
            float(self.config.flops_per_pair(kept=kept, tokens=batch["tokens"].shape[1]))
            * len(batch["tokens"])
            for batch in batches
        )

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Loss and recalls on held-out pairs, their main captions.

        `eval_loss` is the mean over batches of `global_batch_size` pairs (or all, if they are fewer),
        of which each rank computes a part: the same at any layout.

        Raises:
            Interrupted: the run is to stop.
        """
        count = len(self._asked)
        if not count:
            return {}
        image_NE, text_NE, scale, bias = self._embed(engines["model"], self._asked)
        names = [self.held_out[row].captions[0] for row in self._asked]
        judge = self._alone
        batch = min(count, self.settings.global_batch_size)
        whole = range(0, count - batch + 1, batch)
        losses = [
            float(judge(image_NE[at : at + batch], text_NE[at : at + batch], scale, bias).loss)
            for at in whole
        ]
        found = recalls(image_NE, text_NE, [[name] for name in names], names, at=(1, 5))
        figures = {"loss": sum(losses) / len(losses), **found}
        return {f"eval_{name}": value for name, value in figures.items()}

    def _alone(self, image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor) -> Any:
        """The loss of pairs that every rank has all of."""
        if self.sigmoid:
            return sigmoid_loss(image_BE, text_BE, scale, bias, Rank())
        return contrastive_loss(image_BE, text_BE, scale, Rank())

    @torch.no_grad()
    def _embed(self, engine: Engine, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings of held-out pairs, on every rank, with scale and bias. All ranks make equally
        many passes: sharded weights are gathered by all together."""
        rank, text, size = self.rank, self.config.text, self.config.vision.image_size
        count = len(rows)
        share = -(-count // rank.world)
        mine = [rows[min(rank.index * share + at, count - 1)] for at in range(share)]
        micro = self.settings.rank_micro_batch_size(rank.world)
        made = []
        engine.eval()
        for at in range(0, share, micro):
            views = [
                plain_view(self.held_out[i], self.tokenizer, text, size)
                for i in mine[at : at + micro]
            ]
            batch = collate(views, text, rank.device)
            made.append(engine(batch["pixels"], batch["tokens"]))
            rank.beat()
            if rank.stopping():
                raise Interrupted("stopped while evaluating", where=rank.stage)
        engine.train()
        image_NE, text_NE = (self._collect(torch.cat([m[i] for m in made]))[:count] for i in (0, 1))
        return image_NE, text_NE, made[0][2], made[0][3]

    def _collect(self, rows: Tensor) -> Tensor:
        """Every rank's rows, by rank."""
        if self.rank.world == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.rank.world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def state_dict(self) -> State:
        """Statistics of batch norms, where there are any."""
        buffers = dict(self._model.named_buffers())
        return {"statistics": {k: v.clone() for k, v in buffers.items()}} if buffers else {}

    def load_state_dict(self, state: State) -> None:
        """Take up what `state_dict` gave."""
        buffers = dict(self._model.named_buffers())
        for name, value in state.get("statistics", {}).items():
            buffers[name].copy_(value)

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model's folder."""
        model: Any = engines["model"].module
        model.limit_scale()
        save_clip(model, out, self.tokenizer_folder, card=self.card)


def shape_of(rank: Rank, folder: Path) -> CLIPConfig:
    """The shape of the model in a CLIP folder."""
    return load_clip(folder).config


@torch.no_grad()
def limit_scale(engine: Engine) -> None:
    """Set the logit scale back to its limit, where this rank holds its float32 weight.

    The module's own copy follows with the next update; until then its forward pass takes the
    limit for it (`stages.models.clip.modeling_clip`), so that all ZeRO stages compute the same.
    """
    model: Any = engine.module
    for fragment in engine.shards.held:
        if fragment.name == "logit_scale":
            fragment.views["fp32"].clamp_(max=model.log_scale_limit)


@torch.no_grad()
def average_statistics(module: nn.Module, rank: Rank) -> None:
    """Make the running statistics of batch norms those of all ranks."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if rank.world == 1 or not buffers:
        return
    flat = rank.total(torch.cat([b.flatten().float() for b in buffers])) / rank.world
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
