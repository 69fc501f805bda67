"""Parameters of `clip` and `clip.evaluate`, their checks and estimates.

Imports no torch, because `headwater plan` imports it.
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
from stages.contrastive.clip_cost_model import ClipCost
from stages.models.clip.clip_presets import PRESETS, clip_preset
from stages.models.clip.clip_sections import ClipModelSection, VisionSection
from stages.models.clip.configuration_clip import CLIPConfig
from stages.training.planning.device_specs import HardwareSection
from stages.training.planning.estimate import TrainingEstimate
from stages.training.planning.estimate_row import EstimateRow
from stages.training.planning.foreign_keys import FOREIGN_KEYS
from stages.training.training_params import TrainSection

SPECIAL_IDS = (0, 2, 3)
"""Ids of pad, bos and eos in tokenizers of `tokenize.train`."""
Size = Annotated[int | None, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentSection(Section):
    """Random augmentation of training images."""

    renamed: ClassVar[dict[str, str]] = {
        "flip": "flip_prob",
        "jitter": "color_jitter",
        "gray": "gray_scale_prob",
    }

    scale: tuple[float, float] = (0.9, 1.0)
    """Range of the crop's area as a fraction of the image's. Default: [0.9, 1]."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Range of the crop's aspect ratio, width over height. Default: [3/4, 4/3]."""
    flip_prob: Probability = 0.0
    """Probability of a horizontal flip; it makes captions that name a side wrong. Default: 0."""
    color_jitter: tuple[
        Probability, Probability, Probability, Annotated[float, Field(ge=0, le=0.5)]
    ] = (0, 0, 0, 0)
    """Largest changes of brightness, contrast, saturation and hue. Default: no change."""
    gray_scale_prob: Probability = 0.0
    """Probability of conversion to grey. Default: 0."""

    def check(self) -> Iterator[Problem]:
        """Yield ranges that hold no value."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            yield Problem("augment.scale", f"{list(self.scale)} is not a range within (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            yield Problem("augment.ratio", f"{list(self.ratio)} is not a range above 0")


class ClipTrain(TrainSection):
    """Training settings; defaults as in Radford et al. 2021, appendix F."""

    steps: Annotated[int, Field(ge=1)] = 1000
    """Number of optimizer steps. Default: 1000."""
    global_batch_size: Annotated[int, Field(ge=2)] = 256
    """Pairs per optimizer step; every image is compared with all their captions. Default: 256."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate. Default: 5e-4."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Steps of linear learning-rate warm-up; a value below 1 is a fraction of `steps`. Default:
    0.1."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Last learning rate over the peak. Default: 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Decoupled weight decay of matrices; gains, biases and the logit scale have none.
    Default: 0.2."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Decay of Adam's second moment. Default: 0.98."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Epsilon of Adam. Default: 1e-6."""
    eval_samples: Annotated[int, Field(ge=0)] = 1024
    """Held-out pairs per evaluation, drawn once at random; 0 takes all. Default: 1024."""

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """Yield settings that contradict each other or do not apply to a CLIP."""
        yield from super().check(workers, key)
        if self.batch_size_rampup:
            reason = "the contrastive loss depends on the batch size, which must be constant"
            yield Problem(f"{key}.batch_size_rampup", reason, "remove it")
        if self.expert_parallel_size > 1:
            yield Problem(f"{key}.expert_parallel_size", "a CLIP has no experts", "remove it")


class ClipParams(Params):
    """Parameters of `clip`."""

    unsupported_keys: ClassVar[UnsupportedKeys] = FOREIGN_KEYS
    renamed: ClassVar[dict[str, str]] = {
        "size": "preset",
        "base": "init_from",
        "threads": "loader_threads",
    }

    preset: str = "tiny"
    """Preset of the model's shape: nano, tiny, small, RN-tiny, ViT-B/32, RN50, ... (see
    `stages.models.clip.clip_presets`). Default: tiny."""
    model: ClipModelSection = ClipModelSection()
    image_size: Size = None
    """Side of an image, pixels. Default: the preset's."""
    loss: Literal["contrastive", "siglip"] = "contrastive"
    """CLIP's symmetric cross-entropy, or SigLIP's sigmoid loss with a learned bias. Default:
    contrastive."""
    captions: Literal["random", "first"] = "random"
    """Caption of an image in a step: one drawn anew each time, or the main one. Default: random."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of an image's patches that training drops (ViT). Default: 0."""
    augment: AugmentSection = AugmentSection()
    """Random augmentation of training images."""
    train: ClipTrain = ClipTrain()
    """Training settings."""
    seed: int = 0
    """Seed of weights, order of the pairs and augmentation. Default: the pipeline's."""
    export: Literal["transformers", "native"] = "transformers"
    """Format of the model folder; ResNet towers have only `native`, which `transformers` cannot
    load. Default: transformers."""
    local_loss: Annotated[bool, EXECUTION] = True
    """Restriction of each rank to its own rows and columns of the logits: the same gradient with
    less work. Default: true."""
    loader_threads: Annotated[int, Field(ge=1), EXECUTION] = 1
    """Threads per rank that read, decode and augment the pairs of coming steps. Default: 1."""
    hardware: Annotated[HardwareSection, EXECUTION] = HardwareSection()
    """Hardware that the plan assumes. Default: the CPU, or a GPU of unknown memory."""

    def config(self, vocab_size: int) -> CLIPConfig:
        """Return the model's configuration.

        Raises:
            ValueError: its parts do not fit together.
        """
        own = self.model
        base = clip_preset(
            self.preset,
            vocab_size=vocab_size,
            context_length=own.text.context_length,
            special_ids=SPECIAL_IDS,
        )
        size = {"image_size": self.image_size} if self.image_size else {}
        vision = base.vision.override(size | _given(own.vision, *base.vision.keys))
        text = replace(base.text, **_given(own.text, "num_layers", "hidden_size", "num_heads"))
        return CLIPConfig(
            vision,
            text,
            own.embed_dim or base.embed_dim,
            own.activation,
            bias=self.loss == "siglip",
        )

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work in the shape, the batch and the augmentation."""
        if self.preset not in PRESETS:
            yield Problem("preset", f"no preset {self.preset!r}", f"presets: {', '.join(PRESETS)}")
            return
        problems = list(self._check_towers(upstream))
        yield from problems or self._plan(upstream).infeasibilities()
        yield from self.augment.check()
        yield from self.train.check(self.workers)

    def _check_towers(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        shaped = self._initial(upstream)
        vision = PRESETS[shaped.preset].vision
        given = _given(self.model.vision, *VisionSection.model_fields)
        for name in given if shaped is self else ():
            if name not in vision.keys:
                message = f"does not apply to {vision.label}"
                yield Problem(f"model.vision.{name}", message, "remove it")
        if not vision.has_patches and self.patch_dropout:
            yield Problem("patch_dropout", f"does not apply to {vision.label}", "remove it")
        if not vision.in_transformers and self.export == "transformers":
            yield Problem(
                "export",
                f"transformers has no class for {vision.label}",
                "set export: native (clip.evaluate and load_clip read it), or choose a ViT",
            )
        # Without a preset, `init_from` may be an artifact that the plan cannot read: see `clip`.
        known = shaped is not self or "preset" in self.model_fields_set
        if vision.in_transformers and self.export == "native" and known:
            yield Problem("export", f"{vision.label} is exported for transformers", "remove it")
        try:
            self.config(_vocab_size(upstream))
        except ValueError as error:
            yield Problem(_key_of(str(error)), str(error))

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Return the estimate of time, memory and disk."""
        return self._plan(upstream).metrics()

    def estimate_rows(self, upstream: Mapping[str, Params]) -> list[EstimateRow]:
        """Return the rows of the estimate in a plan."""
        return self._plan(upstream).rows()

    def _initial(self, upstream: Mapping[str, Params]) -> ClipParams:
        """Return the parameters that set the model's shape: those of the initial model, if the plan
        has them, else these."""
        edge, found = "init_from", self
        while isinstance(initial := upstream.get(edge), ClipParams):
            edge, found = f"{edge}.init_from", initial
        try:
            found.config(_vocab_size(upstream))
        except (KeyError, ValueError):  # reported by the initial model's own check
            return self
        return found

    def _plan(self, upstream: Mapping[str, Params]) -> TrainingEstimate:
        """Return the estimate of the training, with the shape of the initial model if known."""
        shape = self._initial(upstream).config(_vocab_size(upstream))
        config = replace(shape, bias=self.loss == "siglip")
        kept = config.vision.kept_patches(self.patch_dropout)
        return TrainingEstimate(
            ClipCost(config, self.train.global_batch_size, kept, self.local_loss),
            self.train,
            self.workers,
            self.hardware,
            self.model.activation_checkpointing,
            initialized="init_from" in upstream,
        )


class ClipEvaluateParams(Params):
    """Parameters of `clip.evaluate`.

    Metrics: `image_to_text_r1`, `_r5`, `_r10` and `text_to_image_r1`, ...; with `label_field` and
    `classes` also `zero_shot` (ensemble of all prompts), `zero_shot_balanced` (mean over classes),
    `zero_shot_single` (first template alone), `zero_shot_single_mean` (mean over templates) and
    `chance`; with `label_field` also `linear_probe`.
    """

    renamed: ClassVar[dict[str, str]] = {
        "label": "label_field",
        "ensemble": "prompt_ensemble",
        "batch": "batch_size",
    }

    captions: Literal["all", "first"] = "all"
    """Captions per image in retrieval; any of them is a correct answer. Default: all."""
    classes: Annotated[str | None, EXECUTION] = None
    """JSON file of `templates` and `classes` for zero-shot classification; its content decides the
    artifact, not its location. Default: no classification."""
    label_field: str | None = None
    """Metadata field that names a pair's class. Default: no classification."""
    prompt_ensemble: Literal["embeddings", "probabilities"] = "embeddings"
    """Quantity averaged over a class's prompts: embeddings, as published, or probabilities among
    all prompts, for heterogeneous classes and at the cost of all prompts. Default: embeddings."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Held-out pairs to evaluate, drawn at random; 0 takes all. Default: 0."""
    probe_limit: Annotated[int, Field(ge=0)] = 20_000
    """Training pairs of the linear probe, drawn at random; 0 takes all. Default: 20000."""
    seed: int = 0
    """Seed of the draws. Default: the pipeline's."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 64
    """Images or texts per forward pass. Default: 64."""

    def externals(self) -> dict[str, str]:
        """Return the content digest of the file of classes.

        Raises:
            InputError: the file cannot be read.
        """
        if not self.classes:
            return {}
        try:
            return {"classes": hash_file(Path(self.classes))}
        except OSError as error:
            raise InputError(f"cannot read the classes: {error}", where="classes") from error

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield a problem if there are classes without labels."""
        if self.classes and not self.label_field:
            remedy = "name the metadata field that holds an image's class"
            yield Problem("label_field", "`classes` needs it", remedy)


def _given(section: Section, *names: str) -> dict[str, Any]:
    return {n: getattr(section, n) for n in names if getattr(section, n) is not None}


def _key_of(message: str) -> str:
    """Return the key that an error message of `CLIPConfig` is about."""
    if "image size" in message:
        return "image_size"
    if "context" in message:
        return "model.text.context_length"
    return "model.text.hidden_size" if message.startswith("text") else "model.vision.hidden_size"


def _vocab_size(upstream: Mapping[str, Params]) -> int:
    """Return the size of the tokenizer's vocabulary, else of the nearest initial model's; 4096 if
    the plan has neither."""
    edge = ""
    while True:
        size = getattr(upstream.get(f"{edge}tokenizer"), "vocab_size", None)
        if isinstance(size, int):
            return size
        if f"{edge}init_from" not in upstream:
            return 4096
        edge += "init_from."
