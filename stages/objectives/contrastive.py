"""Contrastive training of a CLIP: pairs, towers, a loss over all ranks, held-out retrieval.

A step compares the `global_batch_size` pairs of all ranks. Where a rank's part does not fit into
memory, `micro_batch_size` computes the same gradient in parts
(`stages.contrastive.gradient_cache`).

Next to weights, the only state is the running statistics of batch norms (ResNet towers), averaged
over ranks after every step.
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
from stages.contrastive.augmentation import Augmentation
from stages.contrastive.caption_tokenizer import CaptionTokenizer, open_caption_tokenizer
from stages.contrastive.gradient_cache import LossFunction, backward_cached, backward_whole
from stages.contrastive.losses import contrastive_loss, gather_features, sigmoid_loss
from stages.contrastive.pair_dataset import (
    Pair,
    PairDataset,
    collate,
    evaluation_pair,
    sample_indices,
)
from stages.contrastive.prefetch import Prefetcher
from stages.contrastive.retrieval import recall_at_k
from stages.data.image_text_dataset import ImageTextStore
from stages.data.tokenizers.huggingface_tokenizer import has_tokenizer
from stages.models.clip.configuration_clip import CLIPConfig
from stages.models.clip.conversion_clip import load_clip, save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.training.data_order import derive_seed
from stages.training.objective import Metrics, State, Trainable
from stages.training.ranks.rank import Rank
from stages.training.step_result import StepResult
from stages.training.throughput import measure_peak_flops

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.training_params import TrainSection


@dataclass
class ContrastiveObjective:
    """Matching of images with their captions."""

    pairs: Path
    tokenizer_folder: Path
    config: CLIPConfig
    augmentation: Augmentation = field(default_factory=Augmentation)
    random_caption: bool = True
    """Draw one of a sample's captions each time; else take the first."""
    sigmoid: bool = False
    """SigLIP's loss instead of CLIP's."""
    local_loss: bool = True
    patch_dropout: float = 0.0
    activation_checkpointing: bool = False
    loader_threads: int = 1
    """Threads per rank that decode and augment images."""
    init_from: Path | None = None
    """CLIP folder with the initial weights."""
    card: str = ""
    flops_per_token: float = 0.0
    """0, because this objective counts pairs and reports the MFU itself."""
    setup_metrics: Mapping[str, float] = field(default_factory=dict)

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open the pairs and build the towers.

        Raises:
            InputError: there are fewer pairs than a step needs, or the tokenizer does not fit the
                model or differs from that of the initial model.
        """
        self.rank, self.settings = rank, settings
        store = ImageTextStore(self.pairs)
        self.eval_store = ImageTextStore(self.pairs, "eval")
        self._eval_rows = sample_indices(
            len(self.eval_store), settings.eval_samples, derive_seed(seed, 3)
        )
        self.tokenizer = self._open_tokenizer()
        if len(store) < settings.global_batch_size:
            raise InputError(
                f"a step takes {settings.global_batch_size} pairs, "
                f"the train split has {len(store)}",
                where="train.global_batch_size",
                remedy=f"set at most {len(store)}",
            )
        patches, kept = self._patches()
        self._batches = self._prefetch(PairDataset(
            store, self.tokenizer, self.config.text, self.config.vision.image_size,
            self.augmentation, seed, settings.global_batch_size, self.random_caption, patches, kept,
        ))  # fmt: skip
        self.setup_metrics = {"pairs": float(len(store)), "eval_pairs": float(len(self.eval_store))}
        self._model = self._build()  # before anything else draws random numbers
        rank.barrier()
        self._peak_flops = rank.reduce_scalar(
            measure_peak_flops(rank.device, getattr(torch, settings.dtype))
        )
        return {"model": Trainable(self._model)}

    def _open_tokenizer(self) -> CaptionTokenizer:
        tokenizer = open_caption_tokenizer(self.tokenizer_folder)
        size = self.config.text.vocab_size
        if len(tokenizer) != size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the model {size}",
                where=str(self.tokenizer_folder),
                remedy="name the tokenizer that belongs to the model",
            )
        initial = self.init_from
        known = initial and has_tokenizer(initial) and open_caption_tokenizer(initial).digest
        if known and known != tokenizer.digest:
            raise InputError(
                f"the tokenizer differs from that of {initial} (same size, other vocabulary)",
                where=str(self.tokenizer_folder),
                remedy="remove `tokenizer`: the initial model brings its own",
            )
        return tokenizer

    def _patches(self) -> tuple[int, int]:
        """Return the patches of an image and those that patch dropout keeps; 0 for a ResNet."""
        vision = self.config.vision
        return vision.patches, vision.kept_patches(self.patch_dropout) or 0

    def _prefetch(self, dataset: PairDataset) -> Prefetcher[Pair]:
        """Return a prefetcher of this rank's part of every step."""
        G = self.settings.global_batch_size
        size = self.settings.rank_batch_size(self.rank.world)
        first = self.rank.index * size
        return Prefetcher(
            dataset.__getitem__,
            lambda step: range(step * G + first, step * G + first + size),
            threads=self.loader_threads,
        )

    def _build(self) -> CLIP:
        model = CLIP(self.config)
        if self.init_from is not None:
            model.load_state_dict(load_clip(self.init_from).state_dict(), strict=False)
        model.set_activation_checkpointing(self.activation_checkpointing)
        return model.train()

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Run forward and backward passes over this rank's pairs, then one update."""
        start = time.perf_counter()
        engine, rank, G = engines["model"], self.rank, self.settings.global_batch_size
        pairs = self._batches.get(step)
        waited = time.perf_counter() - start
        micro = self.settings.rank_micro_batch_size(rank.world)
        parts = [pairs[at : at + micro] for at in range(0, len(pairs), micro)]
        batches = [collate(part, self.config.text, rank.device) for part in parts]
        buffers = [(buffer, buffer.clone()) for buffer in engine.module.buffers()]
        loss_of = self._loss_function(rank)
        if len(batches) == 1:
            part, scale = backward_whole(engine, batches[0], loss_of)
        else:
            part, scale = backward_cached(engine, batches, loss_of)
        sums = torch.stack([part.loss.detach().double(), part.correct.double()])
        loss, correct = rank.all_reduce_sum(sums).tolist()
        update = engine.step(loss)
        if not update.applied:
            for buffer, before in buffers:
                buffer.copy_(before)
        clamp_logit_scale(engine)
        average_batch_norm_statistics(engine.module, rank)
        seconds = time.perf_counter() - start
        metrics = {
            "loss": loss,
            "accuracy": correct / G,
            "logit_scale": float(scale),
            "pairs_per_second": G / seconds,
            "data_share": waited / seconds,
            "mfu": self._flops(batches) * rank.world / seconds / self._peak_flops,
        }
        return StepResult(metrics, [update])

    def _loss_function(self, rank: Rank) -> LossFunction:
        """Return the loss over the batches of a group; `Rank()` is this process alone."""
        if self.sigmoid:
            return partial(sigmoid_loss, rank=rank)
        return lambda image_BE, text_BE, scale, bias: contrastive_loss(
            image_BE, text_BE, scale, rank, local=self.local_loss
        )

    def _flops(self, batches: Sequence[Mapping[str, Tensor]]) -> float:
        """Return the FLOPs of a forward and backward pass of this rank's pairs, for the MFU.

        They are those of the published model, with its whole last blocks; recomputation to save
        memory is not counted.
        """
        kept = self._patches()[1]
        return sum(
            float(self.config.flops_per_pair(kept=kept, tokens=batch["tokens"].shape[1]))
            * len(batch["tokens"])
            for batch in batches
        )

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return loss and recall of held-out pairs with their main captions.

        `eval_loss` is the mean over batches of `global_batch_size` pairs (or one batch of all, if
        there are fewer), so that it does not depend on the number of ranks.

        Raises:
            Interrupted: the run was cancelled.
        """
        count = len(self._eval_rows)
        if not count:
            return {}
        image_NE, text_NE, scale, bias = self._embed(engines["model"], self._eval_rows)
        texts = [self.eval_store[row].captions[0] for row in self._eval_rows]
        loss_of = self._loss_function(Rank())
        size = min(count, self.settings.global_batch_size)
        losses = [
            float(loss_of(image_NE[at : at + size], text_NE[at : at + size], scale, bias).loss)
            for at in range(0, count - size + 1, size)
        ]
        recall = recall_at_k(image_NE, text_NE, [[text] for text in texts], texts, depths=(1, 5))
        metrics = {"loss": sum(losses) / len(losses), **recall}
        return {f"eval_{name}": value for name, value in metrics.items()}

    @torch.no_grad()
    def _embed(self, engine: Engine, rows: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return embeddings of held-out pairs on every rank, with logit scale and bias.

        All ranks run the same number of forward passes, because each of them gathers weights that
        ZeRO partitions.
        """
        rank, text, size = self.rank, self.config.text, self.config.vision.image_size
        count = len(rows)
        share = -(-count // rank.world)
        own = [rows[min(rank.index * share + at, count - 1)] for at in range(share)]
        micro = self.settings.rank_micro_batch_size(rank.world)
        parts = []
        engine.eval()
        for at in range(0, share, micro):
            pairs = [
                evaluation_pair(self.eval_store[row], self.tokenizer, text, size)
                for row in own[at : at + micro]
            ]
            batch = collate(pairs, text, rank.device)
            parts.append(engine(batch["pixels"], batch["tokens"]))
            rank.heartbeat()
            if rank.stop_requested():
                raise Interrupted("cancelled during evaluation", where=rank.stage)
        engine.train()
        image_NE, text_NE = (
            gather_features(torch.cat([part[side] for part in parts]), rank)[:count]
            for side in (0, 1)
        )
        return image_NE, text_NE, parts[0][2], parts[0][3]

    def state_dict(self) -> State:
        """Return the running statistics of batch norms, if there are any."""
        buffers = dict(self._model.named_buffers())
        return {"statistics": {k: v.clone() for k, v in buffers.items()}} if buffers else {}

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned."""
        buffers = dict(self._model.named_buffers())
        for name, value in state.get("statistics", {}).items():
            buffers[name].copy_(value)

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder."""
        model: Any = engines["model"].module
        model.limit_scale()
        save_clip(model, out, self.tokenizer_folder, card=self.card)


def read_clip_config(rank: Rank, folder: Path) -> CLIPConfig:
    """Return the configuration of the model in a CLIP folder."""
    return load_clip(folder).config


@torch.no_grad()
def clamp_logit_scale(engine: Engine) -> None:
    """Clamp the float32 weight of the logit scale to its limit, on the rank that has it.

    The module's own copy follows with the next update; until then its forward pass clamps the value
    (`stages.models.clip.modeling_clip`), so that all ZeRO stages compute the same.
    """
    model: Any = engine.module
    for fragment in engine.state.local:
        if fragment.name == "logit_scale":
            fragment.views["fp32"].clamp_(max=model.log_scale_limit)


@torch.no_grad()
def average_batch_norm_statistics(module: nn.Module, rank: Rank) -> None:
    """Average the running statistics of batch norms over ranks."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if rank.world == 1 or not buffers:
        return
    flat = rank.all_reduce_sum(torch.cat([b.flatten().float() for b in buffers])) / rank.world
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
