"""Fine-tune a language model on conversations: it learns the responses of the assistant.

    sft:
      uses: sft
      model: ${gpt}
      conversations: ${questions}       # or a list, whose conversations are pooled
      too_long: keep_end
      packing: true
      train: {epochs: 2, global_batch_size: 16, lr: 3.0e-4}

Ids and loss mask come from the model's chat template, or from the one that `chat_template` names.
Conversations are encoded once, on all cores, and kept in the cache of the store. With `packing` a
row of a batch holds several of them and none attends to another: loss and gradients are those
without packing. With experts, capacity and balance are counted over a row.

`reverse: true` trains the speaker, p(question | answer): the roles of each conversation are
exchanged. Two data sets compare at equal training if its length is given in steps, not epochs.

With `lora: {rank: 16}` low-rank adapters are trained in place of the weights (Hu et al. 2021), for
a small part of the memory: use a peak learning rate some ten times larger. The model that is
written holds the merged weights; its folder `adapter` holds the adapters in the layout of peft.

`checkpoint: validation_loss` exports the weights of the evaluation with the lowest loss, and
`reward_score` those whose responses to held-out prompts the reward model on the input `scorer`
rates highest. They are kept on disk, and are the same if the run is killed and resumed.

With tokens on the input `pretraining`, windows of them are mixed into each batch: the loss is that
of the assistant's tokens plus share / (1 - share) times that of pretraining tokens, each a mean
(`loss_assistant` and `loss_pretraining` in the series).

A model with experts keeps its load-balancing loss, with the coefficient of its config
(`balance_loss` in the series). It is computed over all tokens, prompts included, and added once per
token to a loss that is averaged over the assistant's tokens.

Metrics: `loss`, `eval_loss` (nats per token of the assistant), `perplexity`, `tokens`, `steps`,
`epochs`, `trained_parameters`, `conversations` to train on, `shortened` and `split` ones, `padding`
(share of the positions of packed rows), `kept_step` and `reward_score` (see `checkpoint`), and by
reason those that are left out: `left_out_too_long`, `left_out_no_answer`,
`left_out_refused_by_template`; with `eval_` those held out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, UnsupportedKeys, stage
from stages.chat.template_checks import (
    check_family,
    check_held_out,
    check_lora,
    check_max_length,
    check_template,
    template_externals,
)
from stages.curation.left_out import BOTH_SPLITS_METRICS
from stages.models.lora_config import LoRAConfig
from stages.training.planning.foreign_keys import SFT_KEYS
from stages.training.training_params import TrainSection

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.alignment.sampled_scores import ScoringSettings
    from stages.chat.encoded_chats import ConversationEncoder, EncodedChats


class SftTrain(TrainSection):
    """A few passes over conversations, without weight decay, which keeps weights near those of the
    language model."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps. Default: 200, unless `epochs` is given."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the conversations, in place of `steps`. Default: by `steps`."""
    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per optimizer step, over all ranks and micro-batches; with `packing` rows of
    several. Default: 16."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate. Default: 3e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices. Default: 0."""

    def require_lengths(self) -> None:
        """Check steps that are given; those of epochs are known when the data is."""
        if self.epochs is None:
            super().require_lengths()
        elif "steps" in self.model_fields_set:
            raise ValueError("set either steps or epochs")

    def for_samples(self, samples: int) -> SftTrain:
        """Return the section with the steps that `epochs` over so many samples take.

        Raises:
            InputError: they are fewer than another parameter needs.
        """
        if self.epochs is None:
            return self
        wanted, steps = math.ceil(self.epochs * samples), 1
        while self.first_sample(steps) < wanted:
            steps += 1
        found = self.model_copy(update={"steps": steps, "epochs": None})
        try:
            found.require_lengths()
        except ValueError as error:
            raise InputError(
                f"{self.epochs:g} epochs of {samples:,} samples are {steps} steps: {error}",
                where="train.epochs",
                remedy="raise train.epochs, or lower train.warmup_steps",
            ) from None
        return found

    def epochs_over(self, samples: int) -> float:
        """Return the passes over so many samples that the steps make."""
        return self.total_samples / samples


class SftParams(Params):
    """Parameters of supervised fine-tuning."""

    unsupported_keys: ClassVar[UnsupportedKeys] = SFT_KEYS
    renamed: ClassVar[Mapping[str, str]] = {"swap": "reverse"}

    train: SftTrain = SftTrain()
    reverse: bool = False
    """Predict the question from the answer. Default: false."""
    chat_template: str | None = None
    """Chat template: `headwater`, `chatml`, `llama3`, `plain`, or the path of a jinja file.
    Default: the model's own."""
    learn: Literal["all", "last"] = "all"
    """Messages of the assistant that are learned: `all` of a conversation, or the `last`.
    Default: all."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Longest conversation, tokens. Default: the context length of the model."""
    too_long: Literal["drop", "keep_end", "split_turns"] = "drop"
    """Treatment of longer conversations: `drop`; `keep_end`, which removes leading exchanges of
    question and answer until the rest fits; or `split_turns` into several conversations of
    consecutive exchanges. The system message stays. What still does not fit is dropped. Default:
    drop."""
    packing: bool = False
    """Several conversations per row of `max_length` tokens, by best fit, where none attends to
    another. Default: false, one per row."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of embeddings, attention weights and residual branches. Default: 0."""
    residual_dropout: Annotated[float | None, Field(ge=0, lt=1)] = None
    """Dropout probability of the residual branches alone (0.2 in Ouyang et al. 2022, appendix C.1).
    Default: `dropout`."""
    lora: LoRAConfig | None = None
    """Low-rank adapters that are trained in place of the weights. Default: none, all weights are
    trained."""
    pretraining_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of pretraining in the tokens of a batch, at least one window, and its weight in the
    loss, if the input `pretraining` is connected. Default: 0.1 (Ouyang et al. 2022, appendix
    C.3)."""
    checkpoint: Literal["last", "validation_loss", "reward_score"] = "last"
    """Weights that are exported: the `last`; those of the evaluation with the lowest
    `validation_loss`; or those whose responses to held-out prompts have the highest mean
    `reward_score` by the reward model `scorer` (Ouyang et al. 2022, section 3.5). Evaluations are
    those of `train.eval_interval`. Default: last."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest response that is sampled for `reward_score`, tokens. Default: 128."""
    seed: int = 0
    """Seed of the order of samples. Default: the seed of the pipeline."""

    def externals(self) -> dict[str, str]:
        """Return the digest of a chat template in a file."""
        return template_externals(self.chat_template)

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts of the batch with the workers, and of lengths and template with the
        model."""
        yield from self.train.check(self.workers)
        if self.learn == "last" and self.too_long == "split_turns":
            yield Problem(
                "too_long",
                "only the last piece of a split conversation has its last answer",
                "drop long conversations, or set learn: all",
            )
        yield from check_max_length(upstream, "model", self.max_length)
        yield from check_template(upstream, "model", self.chat_template)
        yield from check_lora(upstream, "model", self.lora)
        yield from self._check_checkpoint(upstream)
        if "pretraining_share" in self.model_fields_set and "pretraining" not in upstream:
            remedy = "connect tokens of the same tokenizer, or remove it"
            yield Problem("pretraining_share", "there is no input `pretraining`", remedy)

    def _check_checkpoint(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what a choice among evaluations lacks."""
        scored = self.checkpoint == "reward_score"
        if scored != ("scorer" in upstream):
            message = "needs the input `scorer`" if scored else "does not read the input `scorer`"
            remedy = (
                "connect a reward model"
                if scored
                else "disconnect it, or choose the score as the checkpoint"
            )
            yield Problem("checkpoint", f"{self.checkpoint} {message}", remedy)
        if scored and self.reverse:
            yield Problem("checkpoint", "a reward model scores answers, not questions", "set last")
        if scored and self.train.expert_parallel_size > 1:
            message = "responses are sampled by each rank alone, which needs all experts"
            yield Problem("train.expert_parallel_size", message, "set 1, or another checkpoint")
        yield from check_family(upstream, "scorer", "scalar_head")
        if self.checkpoint == "last":
            return
        if not self.train.eval_interval:
            message = "0 evaluates the last weights only, which leaves no choice"
            yield Problem("train.eval_interval", message, "set a fraction of train.steps")
        edges = [edge for edge in upstream if re.fullmatch(r"conversations(\[\d+\])?", edge)]
        empty = [list(check_held_out(upstream, edge, self.checkpoint)) for edge in edges]
        if empty and all(empty):
            yield from empty[0]


@stage(
    "sft",
    inputs={
        "model": "Model",
        "conversations": "Conversations*",
        "scorer": "RewardModel?",
        "pretraining": "Tokens?",
    },
    output="Model",
    version=8,
    metrics={
        "loss": "loss of the last step, nats per token of the assistant",
        "eval_loss": "the same on held-out conversations",
        "perplexity": "exponential of `eval_loss`",
        "tokens": "tokens of the training",
        "steps": "optimizer steps",
        "epochs": "passes over the conversations",
        "skipped_steps": "steps without an update",
        "trained_parameters": "parameters that are trained",
        "kept_step": "step of the exported weights, if they are chosen among evaluations",
        "reward_score": "mean score of sampled responses to held-out prompts, with a scorer",
        "conversations": "conversations to train on",
        "control_text": "conversations whose text spells a control token, which stays text",
        "shortened": "conversations without their first exchanges",
        "split": "conversations in several pieces",
        "padding": "share of the positions of packed rows that are padding",
        **BOTH_SPLITS_METRICS,
    },
)
def sft(params: SftParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Fine-tune a language model on conversations."""
    from stages.objectives.pretraining_mix import PretrainingMix
    from stages.objectives.supervised_finetuning import SFTObjective, example_responses
    from stages.training.best_weights import BestMetric
    from stages.training.run_training import run_training

    model, conversations = inputs.path("model"), inputs.paths("conversations")
    encoder = conversation_encoder(params, model)
    train, held_out = encoded_splits(encoder, conversations, params, ctx)
    scoring = scoring_settings(params, inputs, held_out)
    mix = None
    if tokens := inputs.get_path("pretraining"):
        mix = PretrainingMix(tokens, params.pretraining_share, encoder.limit - 1)
    objective = SFTObjective(
        model,
        train,
        held_out,
        chat_template=params.chat_template,
        row_length=encoder.limit - 1 if params.packing else None,
        reverse=params.reverse,
        dropout=params.dropout,
        residual_dropout=params.residual_dropout,
        lora=params.lora,
        scoring=scoring,
        held_out_paths=tuple(conversations),
        mix=mix,
    )
    rows = objective.rows(train)
    section = params.train.for_samples(len(rows))
    epochs = section.epochs_over(len(rows))
    packed = f", packed with {rows.padding:.1%} padding" if params.packing else ""
    ctx.log(
        f"{section.steps:,} steps of {section.global_batch_size} are {epochs:.3g} epochs of "
        f"{len(rows):,} rows with {len(train):,} conversations{packed}"
    )
    ctx.result(
        conversations=len(train), steps=section.steps, epochs=epochs,
        padding=rows.padding if params.packing else None,
    )  # fmt: skip
    for panel in (*CURVES, *([SCORES] if scoring else []), *([PARTS] if mix else [])):
        ctx.panel(panel)
    then = partial(
        example_responses, objective=objective, conversations=conversations, folder=out,
        seed=params.seed,
    )  # fmt: skip
    trained = params.model_copy(update={"train": section})
    keep = {
        "last": None,
        "validation_loss": BestMetric("eval_loss"),
        "reward_score": BestMetric("eval_reward_score", highest=True),
    }[params.checkpoint]
    final, examples = run_training(objective, trained, ctx, out, after_export=then, keep=keep)
    ctx.panel(panels.samples("Before and after", examples))
    ctx.result(
        loss=final["loss"],
        eval_loss=final.get("eval_loss"),
        perplexity=final.get("eval_perplexity"),
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        trained_parameters=final["trained_parameters"],
        kept_step=final.get("kept_step"),
        reward_score=final.get("eval_reward_score"),
    )


def scoring_settings(
    params: SftParams, inputs: Inputs, held_out: EncodedChats
) -> ScoringSettings | None:
    """Return how responses are scored, or None if they are not.

    Raises:
        InputError: weights are to be chosen by held-out conversations, and none is left.
    """
    from stages.alignment.sampled_scores import ScoringSettings

    if params.checkpoint != "last" and not len(held_out):
        raise InputError(
            f"{params.checkpoint} needs held-out conversations, and none is left",
            where="checkpoint",
            remedy="set eval_share in the stage that reads the conversations, or checkpoint: last",
        )
    if params.checkpoint != "reward_score":
        return None
    number = params.train.eval_samples
    return ScoringSettings(inputs.path("scorer"), params.max_new_tokens, number, params.seed)


def conversation_encoder(params: SftParams, model: Path) -> ConversationEncoder:
    """Return the encoder of conversations for a model."""
    from stages.chat.encoded_chats import ConversationEncoder
    from stages.models.model_io import read_model_config

    length = params.max_length or read_model_config(model).context_length
    return ConversationEncoder(
        model,
        length + 1,  # the last id is no input
        params.chat_template,
        too_long=params.too_long,
        learn=params.learn,
        reverse=params.reverse,
    )


def encoded_splits(
    encoder: ConversationEncoder, conversations: Sequence[Path], params: SftParams, ctx: Context
) -> tuple[EncodedChats, EncodedChats]:
    """Return the encoded conversations to train on and those held out, and report what became of
    them.

    Raises:
        InputError: none is left to train on.
    """
    from stages.chat.encoded_chats import (
        LEFT_OUT,
        EncodedChats,
        open_chat_format,
        require_chats,
    )
    from stages.chat.encoded_table import encode_split
    from stages.chat.spelled_controls import report_control_text
    from stages.curation.left_out import report_both_splits, warn

    train, held_out = (
        EncodedChats(encode_split(encoder, conversations, split, ctx, params.workers))
        for split in ("train", "eval")
    )
    report_both_splits(ctx, "conversations", (train.counts, held_out.counts), LEFT_OUT, KEYS)
    _report_shortened(train.counts, ctx)
    every = (one for path in conversations for one in encoder.records(path, "train"))
    chat_format = open_chat_format(encoder.folder, encoder.chat_template)
    report_control_text(ctx, chat_format, every, train.counts["control_text"])
    require_chats(train, encoder, conversations)
    if not chat_format.learns_end:
        message = "the chat template ends its generation block before the end token of an answer"
        remedy = "so no end is learned: put the token into the block, or set `chat_template`"
        warn(ctx, message, remedy)
    return train, held_out


def _report_shortened(counts: Mapping[str, int], ctx: Context) -> None:
    """Report the conversations that are learned in part, or in several parts."""
    from stages.curation.left_out import WARNING_SHARE, warn

    ctx.result(shortened=counts["shortened"], split=counts["split"])
    left_out, exchanges = counts["exchanges_left_out"], counts["exchanges"]
    if counts["shortened"] or counts["split"]:
        message = (
            f"{counts['shortened']:,} conversations are shortened and {counts['split']:,} split; "
            f"{left_out:,} of {exchanges:,} exchanges are left out by that"
        )
        if left_out > WARNING_SHARE * exchanges:
            warn(ctx, message, "`max_length` and `too_long` change it")
        else:
            ctx.log(message)


KEYS = {
    "too_long": "max_length, too_long",
    "refused_by_template": "chat_template",
}
"""The parameters that change how many conversations are left out, by reason."""

PARTS = panels.curve("Loss by part", ["loss_assistant", "loss_pretraining"], unit="nats per token")
SCORES = panels.curve("Score of responses", ["eval_reward_score"])
CURVES = (
    panels.curve("Loss", ["loss", "eval_loss"], unit="nats per token of the assistant"),
    panels.curve("Learning rate", ["lr"]),
    panels.curve("Gradient norm", ["grad_norm"], log_y=True),
    panels.curve("Throughput", ["tokens_per_second"], unit="tokens/s"),
)
