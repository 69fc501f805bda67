"""What a pipeline file says of the stages of CLIP, and what follows from it before any process
starts. Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Params, Section, UnsupportedKeys, Workers
from pipeline.storage.artifact import hash_file
from stages.contrastive.clip_estimate import ClipEstimate
from stages.models.clip.configuration_clip import (
    PRESETS,
    Activation,
    CLIPConfig,
    ResNetConfig,
    ViTConfig,
    preset,
)
from stages.training.planning.device_specs import HardwareSection
from stages.training.training_params import TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

MARKS = (0, 2, 3)
"""Ids of pad, bos and eos in every tokenizer of ours."""
Size = Annotated[int | None, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class VisionSection(Section):
    """The image tower; what is left out comes from the `preset`."""

    patch_size: Size = None
    """Pixels of a patch's side (ViT)."""
    num_layers: Size = None
    """Blocks (ViT)."""
    blocks: tuple[int, int, int, int] | None = None
    """Blocks of the four groups (ResNet)."""
    hidden_size: Size = None
    """Of the residual stream (ViT)."""
    width: Size = None
    """Channels after the stem (ResNet)."""
    num_heads: Size = None
    """Attention heads."""


class TextSection(Section):
    """The text tower; what is left out comes from the `preset`."""

    context_length: Size = None
    """Tokens of a caption with its two marks; longer ones lose their end."""
    num_layers: Size = None
    """Blocks."""
    hidden_size: Size = None
    """Of the residual stream; a multiple of the heads."""
    num_heads: Size = None
    """Attention heads."""


class ClipModelSection(Section):
    """The shape of the model; what is left out comes from the `preset`."""

    vision: VisionSection = VisionSection()
    text: TextSection = TextSection()
    embed_dim: Size = None
    """Dimensions of the space in which images and captions meet."""
    activation: Activation = "quick_gelu"
    """Between the feed-forward layers; the released models have `quick_gelu`."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Compute each transformer block again in the backward pass, for far less memory."""


class AugmentSection(Section):
    """How an image is changed each time that it is seen."""

    scale: tuple[float, float] = (0.9, 1.0)
    """The crop's share of the image's area, least and most."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """The crop's width over its height, least and most."""
    flip: Share = 0.0
    """How often it is mirrored; captions that name a side become wrong."""
    jitter: tuple[Share, Share, Share, Annotated[float, Field(ge=0, le=0.5)]] = (0, 0, 0, 0)
    """Most that brightness, contrast, saturation and hue are changed by."""
    gray: Share = 0.0
    """How often it loses its colours."""

    def check(self) -> Iterator[Problem]:
        """Yield bounds that are in the wrong order."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            yield Problem("augment.scale", f"{list(self.scale)} is no range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            yield Problem("augment.ratio", f"{list(self.ratio)} is no range above 0")


class ClipTrain(TrainSection):
    """As in the paper (appendix F): beta2 0.98, epsilon 1e-6, decay 0.2, cosine to 0."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Optimizer steps."""
    global_batch_size: Annotated[int, Field(ge=2)] = 256
    """Pairs of one optimizer step: each image is told from all the others' captions."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Steps of linear learning-rate warm-up; a value below 1 is a fraction of `steps`."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The last learning rate over the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Decoupled decay of matrices; gains, biases and the logit scale are spared."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Of Adam's average of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the root of Adam's second moment."""
    eval_samples: Annotated[int, Field(ge=0)] = 1024
    """Held-out pairs of one evaluation, the same in each, drawn at random; 0 takes all."""

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """Yield what does not add up, or is of other models."""
        yield from super().check(workers, key)
        if self.batch_size_rampup:
            told = "the loss of a CLIP is one of whole batches, all alike"
            yield Problem(f"{key}.batch_size_rampup", told, "leave it out")
        if self.expert_parallel_size > 1:
            yield Problem(f"{key}.expert_parallel_size", "a CLIP has no experts", "leave it out")


class ClipParams(Params):
    """See `stages.clip`."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS

    preset: str = "tiny"
    """A preset of `stages.models.clip.configuration_clip`: nano, tiny, small, RN-tiny, ViT-B/32, RN50…"""
    model: ClipModelSection = ClipModelSection()
    image_size: Size = None
    """Pixels of an image's side; the preset's, if left out."""
    loss: Literal["contrastive", "siglip"] = "contrastive"
    """CLIP's symmetric cross-entropy, or a sigmoid for each image and caption with a learned
    bias."""
    captions: Literal["any", "first"] = "any"
    """Which of an image's captions is read: one drawn anew each time, or its main one."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of an image's patches that training does not look at (ViT)."""
    augment: AugmentSection = AugmentSection()
    train: ClipTrain = ClipTrain()
    seed: int = 0
    """Of the weights, the order of the pairs and every view; the pipeline's, if left out."""
    export: Literal["transformers", "native"] = "transformers"
    """The layout of the folder; ResNet towers have only `native`, which `transformers` cannot
    load."""
    local_loss: Annotated[bool, EXECUTION] = True
    """Each rank computes its own rows and columns of the logits, not all: the same gradient for
    less."""
    threads: Annotated[int, Field(ge=1), EXECUTION] = 1
    """That read, decode and augment the pairs of coming steps, on each rank."""
    hardware: Annotated[HardwareSection, EXECUTION] = HardwareSection()
    """What it is to run on: for the plan alone."""

    def config(self, vocab_size: int) -> CLIPConfig:
        """The model's shape.

        Raises:
            ValueError: its parts do not go together.
        """
        own = self.model
        base = preset(
            self.preset, vocab_size=vocab_size, context_length=own.text.context_length, marks=MARKS
        )
        vision = _vision(base.vision, own.vision, self.image_size)
        text = replace(base.text, **_given(own.text, "num_layers", "hidden_size", "num_heads"))
        return CLIPConfig(
            vision,
            text,
            own.embed_dim or base.embed_dim,
            own.activation,
            bias=self.loss == "siglip",
        )

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work in the shape, the batch and the views."""
        if self.preset not in PRESETS:
            yield Problem("preset", f"no preset {self.preset!r}", f"presets: {', '.join(PRESETS)}")
            return
        wrong = list(self._check_towers(upstream))
        yield from wrong or self._outlook(upstream).infeasibilities()
        yield from self.augment.check()
        yield from self.train.check(self.workers)

    def _check_towers(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        shaped = self._shaped(upstream)
        resnet = isinstance(PRESETS[shaped.preset].vision, ResNetConfig)
        odd = ("patch_size", "num_layers", "hidden_size") if resnet else ("blocks", "width")
        for name in odd if shaped is self else ():
            if getattr(self.model.vision, name) is not None:
                tower = "a ResNet" if resnet else "a ViT"
                yield Problem(f"model.vision.{name}", f"{tower} has none", "leave it out")
        if resnet and self.patch_dropout:
            yield Problem("patch_dropout", "a ResNet looks at no patches", "leave it out")
        if resnet and self.export == "transformers":
            yield Problem(
                "export",
                "transformers has no class for ResNet towers",
                "set export: native (clip.evaluate and load_clip read it), or take a ViT",
            )
        # Without a size it may be a base that the plan does not know; see `stages.clip`.
        told = shaped is not self or "preset" in self.model_fields_set
        if not resnet and self.export == "native" and told:
            yield Problem("export", "a ViT is exported for transformers", "leave it out")
        try:
            self.config(_vocabulary(upstream))
        except ValueError as error:
            said = str(error)
            yield Problem(_place(said), said)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """See `stages.contrastive.clip_estimate`."""
        return self._outlook(upstream).estimate()

    def _shaped(self, upstream: Mapping[str, Params]) -> ClipParams:
        """Those that say the model's shape: the base's, where the plan knows it."""
        edge, found = "base", self
        while isinstance(base := upstream.get(edge), ClipParams):
            edge, found = f"{edge}.base", base
        try:
            found.config(_vocabulary(upstream))
        except (KeyError, ValueError):  # which the base's own check says
            return self
        return found

    def _outlook(self, upstream: Mapping[str, Params]) -> ClipEstimate:
        """What is planned: the base's shape, where the plan knows it."""
        shape = self._shaped(upstream).config(_vocabulary(upstream))
        config = replace(shape, bias=self.loss == "siglip")
        kept = None
        if isinstance(config.vision, ViTConfig):
            kept = config.vision.kept(self.patch_dropout)
        return ClipEstimate(
            config,
            self.train,
            self.workers,
            self.hardware,
            self.model.activation_checkpointing,
            start="base" in upstream,
            kept=kept,
            local_loss=self.local_loss,
        )


class ClipEvaluateParams(Params):
    """What is measured on the held-out pairs.

    Figures: `image_to_text_r1` (r5, r10) and `text_to_image_r1`…; with `label` and `classes`
    `zero_shot` (the ensemble of all prompts), `zero_shot_balanced` (mean over classes),
    `zero_shot_single` (the first template alone), `zero_shot_single_mean` (mean over templates) and
    `chance`; with `label` `linear_probe`.
    """

    captions: Literal["all", "first"] = "all"
    """Which of an image's captions are asked for; any of them is a right answer."""
    classes: Annotated[str | None, EXECUTION] = None
    """A JSON file of `templates` and `classes` for zero-shot classification. Its content counts,
    not where it lies."""
    label: str | None = None
    """The field of a pair's metadata that names its class."""
    ensemble: Literal["embeddings", "probabilities"] = "embeddings"
    """How a class's prompts are averaged: their embeddings, as published, or the probabilities they
    get among all prompts, which suits classes of many kinds of things and costs what all prompts
    cost."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Held-out pairs, drawn at random; 0 takes all."""
    probe_limit: Annotated[int, Field(ge=0)] = 20_000
    """Training pairs that the linear probe learns from, drawn at random; 0 takes all."""
    seed: int = 0
    """Which pairs are drawn; the pipeline's, if left out."""
    batch: Annotated[int, Field(ge=1), EXECUTION] = 64
    """Images or texts of a forward pass."""

    def externals(self) -> dict[str, str]:
        """The content of the file of classes.

        Raises:
            InputError: it cannot be read.
        """
        if not self.classes:
            return {}
        try:
            return {"classes": hash_file(Path(self.classes))}
        except OSError as error:
            raise InputError(f"cannot read the classes: {error}", where="classes") from error

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Classes say nothing without labels."""
        if self.classes and not self.label:
            yield Problem(
                "label", "classes without labels", "name the field that holds an image's class"
            )


def _vision(
    base: ViTConfig | ResNetConfig, own: VisionSection, image_size: int | None
) -> ViTConfig | ResNetConfig:
    size: dict[str, Any] = {"image_size": image_size} if image_size else {}
    if isinstance(base, ViTConfig):
        return replace(
            base, **size, **_given(own, "patch_size", "num_layers", "hidden_size", "num_heads")
        )
    given = _given(own, "blocks", "width", "num_heads")
    if own.width and not own.num_heads:  # heads of 64 channels, as all published sizes have
        given["num_heads"] = max(1, own.width // 2)
    return replace(base, **size, **given)


def _given(section: Section, *names: str) -> dict[str, Any]:
    return {n: getattr(section, n) for n in names if getattr(section, n) is not None}


def _place(said: str) -> str:
    """The key that a config's complaint is about."""
    if "image size" in said:
        return "image_size"
    if "context" in said:
        return "model.text.context_length"
    return "model.text.hidden_size" if said.startswith("text") else "model.vision.hidden_size"


def _vocabulary(upstream: Mapping[str, Params]) -> int:
    """The tokenizer's vocabulary, the nearest base's if none is named, where the plan knows it."""
    base = ""
    while True:
        size = getattr(upstream.get(f"{base}tokenizer"), "vocab_size", None)
        if isinstance(size, int):
            return size
        if f"{base}base" not in upstream:
            return 4096
        base += "base."
