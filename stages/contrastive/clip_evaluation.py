"""What a trained CLIP is worth on pairs that training did not see: retrieval, zero-shot
classification, a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline import panels
from pipeline.errors import InputError
from stages.contrastive.caption_tokenizer import Words, encode, open_words
from stages.contrastive.linear_probe import probe
from stages.contrastive.pair_dataset import drawn, middle, to_pixels
from stages.contrastive.retrieval import recalls
from stages.contrastive.zero_shot import ZeroShot, read_classes, zero_shot
from stages.data.image_text_dataset import ImageTextStore, Sample
from stages.distributed.cancellation_point import CancellationPoint
from stages.models.clip.conversion_clip import load_clip
from stages.models.clip.modeling_clip import CLIP

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class Questions:
    """What is to be measured."""

    captions: str = "all"
    """`all` of an image's captions are asked for, or its `first`."""
    classes: Path | None = None
    label: str = ""
    """The field of the metadata that names an image's class."""
    limit: int = 0
    """Held-out pairs, drawn at random; 0 takes all."""
    probe_limit: int = 0
    """Training pairs of the linear probe, drawn at random; 0 takes all."""
    batch: int = 64
    seed: int = 0
    """Which pairs are drawn where there are limits."""
    ensemble: str = "embeddings"
    """A class's prompts are averaged as `embeddings`, or as `probabilities`."""


@dataclass
class Worth:
    """What was found."""

    figures: dict[str, float] = field(default_factory=dict)
    panels: list[panels.Panel] = field(default_factory=list)


@dataclass(frozen=True)
class Bench:
    """A model at work on one rank."""

    model: CLIP
    tokenizer: Words
    rank: Rank
    batch: int
    heartbeat: Callable[[], None]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, of norm 1."""
        made = []
        for at in range(0, len(texts), self.batch):
            tokens_BT = encode(self.tokenizer, texts[at : at + self.batch], self.model.config.text)
            made.append(self.model.encode_text(tokens_BT.to(self.rank.device)).cpu())
            self.heartbeat()
        return torch.cat(made)

    @torch.inference_mode()
    def images(self, store: ImageTextStore, rows: Sequence[int]) -> Tensor:
        """Embeddings of some images of a store, of norm 1; a batch of them is held at a time."""
        size, made = (
            self.model.config.vision.image_size,
            [torch.empty(0, self.model.config.embed_dim)],
        )
        for at in range(0, len(rows), self.batch):
            views = [middle(store[row], size) for row in rows[at : at + self.batch]]
            pixels = to_pixels(views, self.rank.device)
            made.append(self.model.encode_image(pixels).cpu())
            self.heartbeat()
        return torch.cat(made)

    def shared_images(self, store: ImageTextStore, rows: Sequence[int]) -> Tensor:
        """Embeddings of some images of a store, each made by one rank; on every rank."""
        rank = self.rank
        share = -(-len(rows) // rank.world)
        made = self.images(store, rows[rank.index * share : (rank.index + 1) * share])
        return torch.cat([torch.from_numpy(part) for part in rank.gather(made.numpy())])


def measure(
    rank: Rank, folder: Path, pairs: Path, asked: Questions, cancel_file: Path | None = None
) -> Worth | None:
    """Measure a CLIP folder; rank 0 says what was found, the others give None.

    Raises:
        InputError: there is nothing held out, or a label is missing.
        Interrupted: somebody asked the run to stop.
    """
    store = ImageTextStore(pairs, "eval")
    rows = drawn(len(store), asked.limit, asked.seed)
    if not rows:
        raise InputError("no pairs are held out", where=str(pairs), remedy="make an eval split")
    model = load_clip(folder).to(rank.device)
    bench = Bench(
        model, open_words(folder), rank, asked.batch, CancellationPoint(rank, cancel_file)
    )
    image_NE = bench.shared_images(store, rows)
    train = ImageTextStore(pairs)
    learnt = drawn(len(train), asked.probe_limit, asked.seed) if asked.label else []
    learnt_NE = bench.shared_images(train, learnt)
    if not rank.first:
        return None
    found = Worth()
    captions = [store[row].captions for row in rows]
    _retrieval(bench, image_NE, captions, asked, found)
    if asked.label:
        labels = [_label(store[row], asked.label) for row in rows]
        if asked.classes:
            _zero_shot(bench, image_NE, labels, asked, found)
        if learnt:
            seen = [_label(train[row], asked.label) for row in learnt]
            _probe(learnt_NE, seen, image_NE, labels, found)
    return found


def _retrieval(
    bench: Bench,
    image_NE: Tensor,
    captions: Sequence[Sequence[str]],
    asked: Questions,
    found: Worth,
) -> None:
    used = [own if asked.captions == "all" else own[:1] for own in captions]
    texts = list(dict.fromkeys(text for own in used for text in own))
    figures = recalls(image_NE, bench.texts(texts), used, texts)
    found.figures |= {**figures, "images": float(len(used)), "texts": float(len(texts))}
    found.panels.append(
        panels.bars(f"Recall among {len(used)} images, {len(texts)} texts", figures)
    )


def _zero_shot(
    bench: Bench, image_NE: Tensor, labels: Sequence[str], asked: Questions, found: Worth
) -> None:
    assert asked.classes is not None
    classes = read_classes(asked.classes, asked.label)
    scale = bench.model.scale().item() if asked.ensemble == "probabilities" else None
    ensemble, single = zero_shot(image_NE, labels, classes, bench.texts, scale=scale)
    first = single[classes.templates[0]]
    found.figures |= {
        "zero_shot": ensemble.accuracy,
        "zero_shot_balanced": ensemble.balanced,
        "zero_shot_single": first.accuracy,
        "zero_shot_single_mean": sum(s.accuracy for s in single.values()) / len(single),
        "chance": 1 / len(classes.names),
    }
    found.panels.append(_templates(ensemble, single))
    found.panels.append(panels.bars(f"Zero-shot accuracy by {asked.label}", ensemble.per_class))


def _templates(ensemble: ZeroShot, single: Mapping[str, ZeroShot]) -> panels.Panel:
    rows: list[list[str | float]] = [[t, round(s.accuracy, 4)] for t, s in single.items()]
    rows.append(["all of them", round(ensemble.accuracy, 4)])
    return panels.table("Zero-shot accuracy by prompt", ["prompt", "accuracy"], rows)


def _probe(
    learnt_NE: Tensor,
    seen: Sequence[str],
    image_NE: Tensor,
    labels: Sequence[str],
    found: Worth,
) -> None:
    accuracy, l2 = probe(learnt_NE, seen, image_NE, labels)
    found.figures |= {"linear_probe": accuracy, "linear_probe_l2": l2}


def _label(sample: Sample, field: str) -> str:
    value = sample.meta.get(field)
    if not isinstance(value, str):
        raise InputError(
            f"the metadata of {sample.key} has no text `{field}`",
            where="label",
            remedy=f"fields are {', '.join(sorted(sample.meta))}",
        )
    return value
