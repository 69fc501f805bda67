"""Evaluation of a CLIP on held-out pairs: retrieval, zero-shot classification, a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline import panels
from pipeline.errors import InputError
from stages.contrastive.caption_tokenizer import (
    CaptionTokenizer,
    encode_captions,
    open_caption_tokenizer,
)
from stages.contrastive.linear_probe import evaluate_linear_probe
from stages.contrastive.pair_dataset import center_crop, normalize_pixels, sample_indices
from stages.contrastive.retrieval import recall_at_k
from stages.contrastive.zero_shot import ZeroShotResult, evaluate_zero_shot, read_classes
from stages.data.image_text_dataset import ImageTextStore, Sample
from stages.distributed.cancellation_point import CancellationPoint
from stages.models.clip.conversion_clip import load_clip
from stages.models.clip.modeling_clip import CLIP

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class ClipEvalConfig:
    """The measurements to make."""

    captions: str = "all"
    """Captions per image in retrieval: `all`, or the `first`."""
    classes: Path | None = None
    """File of classes for zero-shot classification."""
    label_field: str = ""
    """Metadata field that names an image's class."""
    limit: int = 0
    """Held-out pairs to evaluate, drawn at random; 0 takes all."""
    probe_limit: int = 0
    """Training pairs of the linear probe, drawn at random; 0 takes all."""
    batch_size: int = 64
    seed: int = 0
    """Seed of the draws."""
    prompt_ensemble: str = "embeddings"
    """Quantity averaged over the prompts of a class: `embeddings` or `probabilities`."""


@dataclass
class ClipEvalResult:
    """Metrics and report panels of an evaluation."""

    metrics: dict[str, float] = field(default_factory=dict)
    panels: list[panels.Panel] = field(default_factory=list)


@dataclass(frozen=True)
class ClipEncoder:
    """A model that embeds texts and images in batches on one rank."""

    model: CLIP
    tokenizer: CaptionTokenizer
    rank: Rank
    batch_size: int
    after_batch: Callable[[], None]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, of norm 1."""
        config, parts = self.model.config.text, []
        for at in range(0, len(texts), self.batch_size):
            tokens_BT = encode_captions(self.tokenizer, texts[at : at + self.batch_size], config)
            parts.append(self.model.encode_text(tokens_BT.to(self.rank.device)).cpu())
            self.after_batch()
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_images(self, store: ImageTextStore, rows: Sequence[int]) -> Tensor:
        """Return the embeddings of some images of a store, of norm 1."""
        config = self.model.config
        size, parts = config.vision.image_size, [torch.empty(0, config.embed_dim)]
        for at in range(0, len(rows), self.batch_size):
            crops = [center_crop(store[row], size) for row in rows[at : at + self.batch_size]]
            pixels_B3HW = normalize_pixels(crops, self.rank.device)
            parts.append(self.model.encode_image(pixels_B3HW).cpu())
            self.after_batch()
        return torch.cat(parts)

    def encode_images_on_all_ranks(self, store: ImageTextStore, rows: Sequence[int]) -> Tensor:
        """Return the embeddings of some images of a store on every rank; each encodes a part."""
        rank = self.rank
        share = -(-len(rows) // rank.world)
        own = self.encode_images(store, rows[rank.index * share : (rank.index + 1) * share])
        return torch.cat([torch.from_numpy(part) for part in rank.all_gather_object(own.numpy())])


def evaluate_clip(
    rank: Rank,
    folder: Path,
    pairs: Path,
    config: ClipEvalConfig,
    cancel_file: Path | None = None,
) -> ClipEvalResult | None:
    """Evaluate a CLIP folder on the held-out pairs; return the result on rank 0, else None.

    Raises:
        InputError: no pairs are held out, or a label is missing.
        Interrupted: the run was cancelled.
    """
    store = ImageTextStore(pairs, "eval")
    rows = sample_indices(len(store), config.limit, config.seed)
    if not rows:
        raise InputError(
            "the eval split is empty", where=str(pairs), remedy="hold out pairs in `image_text`"
        )
    model = load_clip(folder).to(rank.device)
    encoder = ClipEncoder(
        model,
        open_caption_tokenizer(folder),
        rank,
        config.batch_size,
        CancellationPoint(rank, cancel_file),
    )
    image_NE = encoder.encode_images_on_all_ranks(store, rows)
    train = ImageTextStore(pairs)
    probe_rows = list[int]()
    if config.label_field:
        probe_rows = sample_indices(len(train), config.probe_limit, config.seed)
    probe_NE = encoder.encode_images_on_all_ranks(train, probe_rows)
    if not rank.is_main:
        return None
    result = ClipEvalResult()
    captions = [store[row].captions for row in rows]
    _retrieval(encoder, image_NE, captions, config, result)
    if config.label_field:
        labels = [_label(store[row], config.label_field) for row in rows]
        if config.classes:
            _zero_shot(encoder, image_NE, labels, config, result)
        if probe_rows:
            probe_labels = [_label(train[row], config.label_field) for row in probe_rows]
            accuracy, l2 = evaluate_linear_probe(probe_NE, probe_labels, image_NE, labels)
            result.metrics |= {"linear_probe": accuracy, "linear_probe_l2": l2}
    return result


def _retrieval(
    encoder: ClipEncoder,
    image_NE: Tensor,
    captions: Sequence[Sequence[str]],
    config: ClipEvalConfig,
    result: ClipEvalResult,
) -> None:
    used = [own if config.captions == "all" else own[:1] for own in captions]
    texts = list(dict.fromkeys(text for own in used for text in own))
    recall = recall_at_k(image_NE, encoder.encode_texts(texts), used, texts)
    result.metrics |= {**recall, "images": float(len(used)), "texts": float(len(texts))}
    title = f"Recall among {len(used)} images, {len(texts)} texts"
    result.panels.append(panels.bars(title, recall))


def _zero_shot(
    encoder: ClipEncoder,
    image_NE: Tensor,
    labels: Sequence[str],
    config: ClipEvalConfig,
    result: ClipEvalResult,
) -> None:
    assert config.classes is not None
    classes = read_classes(config.classes, config.label_field)
    by_probability = config.prompt_ensemble == "probabilities"
    scale = encoder.model.scale().item() if by_probability else None
    ensemble, single = evaluate_zero_shot(
        image_NE, labels, classes, encoder.encode_texts, scale=scale
    )
    result.metrics |= {
        "zero_shot": ensemble.accuracy,
        "zero_shot_balanced": ensemble.balanced_accuracy,
        "zero_shot_single": single[classes.templates[0]].accuracy,
        "zero_shot_single_mean": sum(s.accuracy for s in single.values()) / len(single),
        "chance": 1 / len(classes.names),
    }
    title = f"Zero-shot accuracy by {config.label_field}"
    result.panels += [_prompt_table(ensemble, single), panels.bars(title, ensemble.per_class)]


def _prompt_table(ensemble: ZeroShotResult, single: Mapping[str, ZeroShotResult]) -> panels.Panel:
    rows: list[list[str | float]] = [[t, round(s.accuracy, 4)] for t, s in single.items()]
    rows.append(["ensemble of all", round(ensemble.accuracy, 4)])
    return panels.table("Zero-shot accuracy by prompt", ["prompt", "accuracy"], rows)


def _label(sample: Sample, name: str) -> str:
    value = sample.meta.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"the metadata of {sample.key} has no text field `{name}`",
            where="label_field",
            remedy=f"its fields are {', '.join(sorted(sample.meta))}",
        )
    return value
