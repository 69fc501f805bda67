"""Train a CLIP on images with captions, and evaluate it.

    clip:
      uses: clip
      pairs: ${pairs}
      tokenizer: ${tokenizer}
      preset: tiny                      # or the parts of the shape under `model`
      image_size: 64
      train: {steps: 1000, global_batch_size: 256, lr: 1.0e-3, zero_stage: 1}
      workers: {num: 2, cpus: 1}
    clip-metrics:
      uses: clip.evaluate
      model: ${clip}
      pairs: ${pairs}
      classes: classes.json             # zero-shot classification by a metadata field
      label_field: category

The output of `clip` is a folder that `transformers.CLIPModel` loads. `transformers` has no class
for ResNet towers: `export: native` writes a folder that `clip.evaluate` and
`stages.models.clip.conversion_clip.load_clip` read.

`init_from: ${other}` takes weights, shape and tokenizer from a CLIP folder (with `export: native`,
if its image tower is a ResNet); then `preset` and `model` have no effect. `train.micro_batch_size`
computes the gradient of the whole batch in parts, at the cost of a second forward pass.

Metrics of `clip`: `loss` (last step, nats per pair), `eval_loss`, `eval_image_to_text_r1` and other
recalls, `pairs`, `parameters`. Metrics of `clip.evaluate`: see `ClipEvaluateParams`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.errors import InputError
from pipeline.plain_data import to_json
from pipeline.stage import Inputs, stage
from stages.contrastive.clip_params import ClipEvaluateParams, ClipParams
from stages.models.clip.configuration_clip import CLIPConfig

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.contrastive.clip_evaluation import ClipEvalResult
    from stages.objectives.contrastive import ContrastiveObjective


@stage(
    "clip",
    inputs={"pairs": "ImageText", "tokenizer": "Tokenizer?", "init_from": "Model?"},
    output="Model",
    version=4,
    metrics={
        "loss": "loss of the last step",
        "pairs": "pairs of the training split",
        "skipped_steps": "steps that were skipped because of a spike",
        "parameters": "parameters of the model",
        "eval_pairs": "held-out pairs",
        "eval_loss": "loss on held-out pairs",
        "eval_*": "other metrics on held-out pairs",
    },
)
def clip(params: ClipParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a CLIP on images with captions."""
    from stages.objectives.contrastive import read_clip_config
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    initial = inputs.get_path("init_from")
    tokenizer = inputs.get_path("tokenizer") or initial
    if tokenizer is None:
        raise InputError(
            "no tokenizer given",
            where="tokenizer",
            remedy="give `tokenizer`, or `init_from`, whose tokenizer is used",
        )
    _show_panels(ctx)
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        known = group.run(read_clip_config, initial)[0] if initial else None
        config = _config(params, tokenizer, known)
        objective = _objective(params, inputs.path("pairs"), tokenizer, config)
        objective.init_from = initial
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
    ctx.result(
        loss=final["loss"],
        pairs=final["pairs"],
        skipped_steps=final["skipped_steps"],
        parameters=config.parameters,
        **{name: value for name, value in final.items() if name.startswith("eval_")},
    )


def _config(params: ClipParams, tokenizer: Path, initial: CLIPConfig | None) -> CLIPConfig:
    """Return the model's configuration: that of the initial model, if there is one.

    Raises:
        InputError: the initial model has another image size, or a tower that other parameters do
            not apply to.
    """
    if initial is None:
        from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

        config = params.config(len(Tokenizer(tokenizer)))
    else:
        config = replace(initial, bias=params.loss == "siglip")
    size = config.vision.image_size
    if params.image_size not in (None, size):
        raise InputError(
            f"the initial model takes images of {size} pixels, not {params.image_size}",
            where="image_size",
            remedy=f"remove it, or set {size}",
        )
    native = not config.vision.in_transformers
    if native and (params.patch_dropout or params.export == "transformers"):
        raise InputError(
            f"the initial model has {config.vision.label} as its image tower",
            where="init_from",
            remedy="set export: native, and no patch_dropout",
        )
    if not native and params.export == "native":
        message = f"{config.vision.label} is exported for transformers"
        raise InputError(message, where="export", remedy="remove it")
    return config


def _objective(
    params: ClipParams, pairs: Path, tokenizer: Path, config: CLIPConfig
) -> ContrastiveObjective:
    from stages.contrastive.augmentation import Augmentation
    from stages.objectives.contrastive import ContrastiveObjective

    augment = params.augment
    return ContrastiveObjective(
        pairs,
        tokenizer,
        config,
        Augmentation(
            augment.scale,
            augment.ratio,
            augment.flip_prob,
            augment.color_jitter,
            augment.gray_scale_prob,
        ),
        random_caption=params.captions == "random",
        sigmoid=params.loss == "siglip",
        local_loss=params.local_loss,
        patch_dropout=params.patch_dropout,
        activation_checkpointing=params.model.activation_checkpointing,
        loader_threads=params.loader_threads,
        card=_model_card(config, params),
    )


def _show_panels(ctx: Context) -> None:
    ctx.panel(panels.curve("Loss", ["loss", "eval_loss"], unit="nats per pair"))
    ctx.panel(panels.curve("Accuracy within the batch", ["accuracy"]))
    recall = ["eval_image_to_text_r1", "eval_image_to_text_r5", "eval_text_to_image_r5"]
    ctx.panel(panels.curve("Recall on held-out pairs", recall))
    ctx.panel(panels.curve("Logit scale", ["logit_scale"]))
    ctx.panel(panels.curve("Learning rate", ["lr"]))
    ctx.panel(panels.curve("Gradient norm", ["grad_norm"], log_y=True))
    ctx.panel(panels.curve("Speed", ["pairs_per_second"], unit="pairs/s"))
    ctx.panel(panels.curve("Waiting for data", ["data_share"], unit="of a step"))


def _model_card(config: CLIPConfig, params: ClipParams) -> str:
    vision, text, train = config.vision, config.text, params.train
    return f"""# CLIP, {config.parameters / 1e6:.1f} M parameters

{vision.description}, on images of {vision.image_size} pixels, and a text transformer of
{text.num_layers} layers, width {text.hidden_size}, context {text.context_length}, with a joint
embedding of {config.embed_dim} dimensions. Trained for {train.steps} steps of
{train.global_batch_size} pairs with {train.optimizer} (peak learning rate {train.lr:g},
{train.lr_schedule}) and the {params.loss} loss. Captions are encoded between the ids {text.bos} and
{text.eos}, and padded with {text.pad}.
"""


@stage(
    "clip.evaluate",
    inputs={"model": "Model", "pairs": "ImageText"},
    output="Metrics",
    version=3,
    metrics={
        "image_to_text_*": "recall of captions by image, at a depth",
        "text_to_image_*": "recall of images by caption, at a depth",
        "images": "images of the retrieval",
        "texts": "texts of the retrieval",
        "zero_shot": "accuracy of zero-shot classification, all prompts together",
        "zero_shot_balanced": "mean over classes of that accuracy",
        "zero_shot_single": "accuracy with the first prompt",
        "zero_shot_single_mean": "mean accuracy of single prompts",
        "chance": "accuracy of a random class",
        "linear_probe": "accuracy of a linear classifier on image features",
        "linear_probe_l2": "its weight decay, chosen on a part of the training pairs",
    },
)
def evaluate_clip_stage(
    params: ClipEvaluateParams, inputs: Inputs, out: Path, ctx: Context
) -> None:
    """Evaluate a CLIP on held-out pairs: retrieval, zero-shot classification, linear probe."""
    from pipeline.atomic_io import write_atomic
    from stages.contrastive.clip_evaluation import ClipEvalConfig, evaluate_clip
    from stages.training.ranks.worker_group import WorkerGroup

    config = ClipEvalConfig(
        captions=params.captions,
        classes=Path(params.classes).resolve() if params.classes else None,
        label_field=params.label_field or "",
        limit=params.limit,
        probe_limit=params.probe_limit,
        batch_size=params.batch_size,
        seed=params.seed,
        prompt_ensemble=params.prompt_ensemble,
    )
    folders = inputs.path("model"), inputs.path("pairs")
    with WorkerGroup(params.workers, ctx) as group:
        result: ClipEvalResult = group.run(evaluate_clip, *folders, config, ctx.cancel_file)[0]
    for panel in result.panels:
        ctx.panel(panel)
    rows = [(name, round(value, 4)) for name, value in result.metrics.items()]
    ctx.panel(panels.table("Evaluation", ["metric", "value"], rows))
    ctx.result(**result.metrics)
    write_atomic(out / "metrics.json", to_json(result.metrics, indent=1, sort_keys=True) + "\n")
