"""Train a CLIP on images with captions, and measure what it is worth.

    clip:
      uses: clip
      pairs: ${pairs}
      tokenizer: ${tokenizer}
      preset: tiny                      # a preset; or its parts under `model`
      image_size: 64
      train: {steps: 1000, global_batch_size: 256, lr: 1.0e-3, zero_stage: 1}
      workers: {num: 2, cpus: 1}
    worth:
      uses: clip.evaluate
      model: ${clip}
      pairs: ${pairs}
      classes: classes.json             # zero-shot classification by a field of the metadata
      label: category

Out of `clip` comes a folder that `transformers.CLIPModel` loads. `transformers` has no class for
ResNet towers: with these say `export: native`, and get a folder that `clip.evaluate` and
`stages.models.clip.conversion_clip.load_clip` read.

`base: ${other}` goes on with the weights, shape and tokenizer of a CLIP folder (with
`export: native`, if its image tower is a ResNet); `size` and `model` then say nothing.
`train.micro_batch_size` gives the gradient of the whole batch in parts, at a second forward pass.

Figures of `clip`: `loss` (last step, nats a pair), `eval_loss`, `eval_image_to_text_r1` and the
like, `pairs`, `parameters`. Figures of `clip.evaluate`: see there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.errors import InputError
from pipeline.stage import Inputs, stage
from stages.contrastive.clip_params import ClipEvaluateParams, ClipParams
from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, ViTConfig

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.contrastive.clip_evaluation import Worth
    from stages.objectives.contrastive import Contrastive


@stage(
    "clip",
    inputs={"pairs": "ImageText", "tokenizer": "Tokenizer?", "base": "Model?"},
    output="Model",
    version=3,
)
def clip(params: ClipParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a CLIP on images with captions."""
    from stages.objectives.contrastive import shape_of
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    base = inputs.get_path("base")
    words = _words(inputs.get_path("tokenizer"), base)
    _show(ctx)
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        known = group.run(shape_of, base)[0] if base else None
        objective = _objective(params, inputs.path("pairs"), words, _shape(params, words, known))
        objective.base = base
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
    ctx.result(
        loss=final["loss"],
        pairs=final["pairs"],
        skipped_steps=final["skipped_steps"],
        parameters=objective.config.parameters,
        **{name: value for name, value in final.items() if name.startswith("eval_")},
    )


def _words(tokenizer: Path | None, base: Path | None) -> Path:
    """Where the tokenizer is."""
    found = tokenizer or base
    if found is None:
        raise InputError(
            "nothing says how captions are read",
            where="tokenizer",
            remedy="give `tokenizer`, or a `base` to go on with",
        )
    return found


def _shape(params: ClipParams, words: Path, base: CLIPConfig | None) -> CLIPConfig:
    """The model's shape: the base's, if there is one.

    Raises:
        InputError: the base takes images of another size, or the tower is not of the kind that the
            other settings are for.
    """
    if base is None:
        from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

        shape = params.config(len(Tokenizer(words)))
    else:
        shape = replace(base, bias=params.loss == "siglip")
    size = shape.vision.image_size
    if params.image_size not in (None, size):
        raise InputError(
            f"the base takes images of {size} pixels, not {params.image_size}",
            where="image_size",
            remedy=f"leave it out, or set {size}",
        )
    resnet = isinstance(shape.vision, ResNetConfig)
    if resnet and (params.patch_dropout or params.export == "transformers"):
        raise InputError(
            "the base has a ResNet tower",
            where="base",
            remedy="set export: native, and no patch_dropout",
        )
    if not resnet and params.export == "native":
        raise InputError(
            "a ViT is exported for transformers", where="export", remedy="leave it out"
        )
    return shape


def _objective(params: ClipParams, pairs: Path, words: Path, config: CLIPConfig) -> Contrastive:
    from stages.contrastive.pair_dataset import Augmentation
    from stages.objectives.contrastive import Contrastive

    seen = params.augment
    return Contrastive(
        pairs,
        words,
        config,
        Augmentation(seen.scale, seen.ratio, seen.flip, seen.jitter, seen.gray),
        any_caption=params.captions == "any",
        sigmoid=params.loss == "siglip",
        local_loss=params.local_loss,
        patch_dropout=params.patch_dropout,
        activation_checkpointing=params.model.activation_checkpointing,
        threads=params.threads,
        card=_card(config, params),
    )


def _show(ctx: Context) -> None:
    ctx.panel(panels.curve("Loss", ["loss", "eval_loss"], unit="nats a pair"))
    ctx.panel(panels.curve("Right in the batch", ["accuracy"]))
    held_out = ["eval_image_to_text_r1", "eval_image_to_text_r5", "eval_text_to_image_r5"]
    ctx.panel(panels.curve("Held-out recall", held_out))
    ctx.panel(panels.curve("Logit scale", ["logit_scale"]))
    ctx.panel(panels.curve("Learning rate", ["lr"]))
    ctx.panel(panels.curve("Gradient norm", ["grad_norm"], log_y=True))
    ctx.panel(panels.curve("Speed", ["pairs_per_second"], unit="pairs/s"))
    ctx.panel(panels.curve("Waiting for data", ["data_share"], unit="of a step"))


def _card(config: CLIPConfig, params: ClipParams) -> str:
    vision, train = config.vision, params.train
    if isinstance(vision, ViTConfig):
        tower = f"A vision transformer of {vision.num_layers} layers, width {vision.hidden_size}, patches of "
        tower += f"{vision.patch_size} pixels"
    else:
        tower = f"A modified ResNet of {list(vision.blocks)} blocks, width {vision.width}"
    return f"""# CLIP, {config.parameters / 1e6:.1f} M parameters

{tower}, on images of {vision.image_size} pixels, and a text transformer of {config.text.num_layers}
layers, width {config.text.hidden_size}, context {config.text.context_length}, that meet in {config.embed_dim}
dimensions. Trained for {train.steps} steps of {train.global_batch_size} pairs with {train.optimizer}
(peak learning rate {train.lr:g}, {train.lr_schedule}) and the {params.loss} loss. Captions are read
between the ids {config.text.bos} and {config.text.eos}, and padded with {config.text.pad}.
"""


@stage(
    "clip.evaluate", inputs={"model": "Model", "pairs": "ImageText"}, output="Metrics", version=2
)
def evaluate(params: ClipEvaluateParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Measure a CLIP on held-out pairs: retrieval, zero-shot classification, linear probe."""
    from pipeline.atomic_io import write_atomic
    from stages.contrastive.clip_evaluation import Questions, measure
    from stages.training.ranks.worker_group import WorkerGroup

    asked = Questions(
        params.captions,
        Path(params.classes).resolve() if params.classes else None,
        params.label or "",
        params.limit,
        params.probe_limit,
        params.batch,
        params.seed,
        params.ensemble,
    )
    folders = inputs.path("model"), inputs.path("pairs")
    with WorkerGroup(params.workers, ctx) as group:
        found: Worth = group.run(measure, *folders, asked, ctx.cancel_file)[0]
    for panel in found.panels:
        ctx.panel(panel)
    shown = [(name, round(value, 4)) for name, value in found.figures.items()]
    ctx.panel(panels.table("Evaluation", ["figure", "value"], shown))
    ctx.result(**found.figures)
    write_atomic(out / "metrics.json", json.dumps(found.figures, indent=1, sort_keys=True) + "\n")
