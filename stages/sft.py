"""Fine-tune a language model on conversations: it learns the responses of the assistant.

    sft:
      uses: sft
      model: ${gpt}
      conversations: ${questions}       # or a list, whose conversations are pooled
      train: {steps: 200, global_batch_size: 16, lr: 3.0e-4}

`reverse: true` trains the speaker, p(question | answer): the roles of each conversation are
exchanged. The length of a training is given in steps, not epochs, so that two data sets compare at
equal training.

A model with experts keeps its load-balancing loss, with the coefficient of its config
(`balance_loss` in the series). It is computed over all tokens, prompts included, and added once per
token to a loss that is averaged over the assistant's tokens.

Metrics: `loss`, `eval_loss` (nats per token of the assistant), `perplexity`, `tokens`,
`conversations`, `too_long`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.errors import Problem
from pipeline.stage import Inputs, Params, UnsupportedKeys, stage
from stages.training.training_params import TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
    from pipeline.context import Context


class SftTrain(TrainSection):
    """A few passes over conversations, without weight decay, which keeps weights near those of the
    language model."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps. Default: 200."""
    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations per optimizer step, over all ranks and micro-batches. Default: 16."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate. Default: 3e-4."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices. Default: 0."""


class SftParams(Params):
    """Parameters of supervised fine-tuning."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS
    renamed: ClassVar[Mapping[str, str]] = {"swap": "reverse"}

    train: SftTrain = SftTrain()
    reverse: bool = False
    """Predict the question from the answer. Default: false."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Longest conversation, tokens; longer ones are dropped and counted. Default: the context
    length of the model."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of embeddings, attention weights and residual branches. Default: 0."""
    seed: int = 0
    """Seed of the order of samples. Default: the seed of the pipeline."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts of the batch with the workers, and of the lengths with the model."""
        yield from self.train.check(self.workers)
        context = getattr(getattr(upstream.get("model"), "model", None), "context_length", None)
        if context and self.max_length and self.max_length > context:
            yield Problem(
                "max_length",
                f"{self.max_length} is longer than the model's context of {context}",
                f"set at most {context}",
            )


@stage(
    "sft",
    inputs={"model": "Model", "conversations": "Conversations*"},
    output="Model",
    version=4,
)
def sft(params: SftParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Fine-tune a language model on conversations."""
    from stages.curation.left_out import report_left_out
    from stages.objectives.supervised_finetuning import SFTObjective, example_responses
    from stages.training.run_training import run_training

    objective = SFTObjective(
        inputs.path("model"),
        tuple(inputs.paths("conversations")),
        reverse=params.reverse,
        max_length=params.max_length,
        dropout=params.dropout,
    )
    for panel in CURVES:
        ctx.panel(panel)
    then = partial(example_responses, objective=objective, folder=out, seed=params.seed)
    final, examples = run_training(objective, params, ctx, out, after_export=then)
    ctx.panel(panels.samples("Before and after", examples))
    ctx.result(
        loss=final["loss"],
        eval_loss=final.get("eval_loss"),
        perplexity=final.get("eval_perplexity"),
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        conversations=final["conversations"],
        too_long=final["too_long"],
    )
    too_long = int(final["too_long"])
    read = int(final["conversations"]) + too_long
    keys = {"too_long": "max_length"}
    report_left_out(ctx, "conversations", read, {"too_long": too_long}, keys)


CURVES = (
    panels.curve("Loss", ["loss", "eval_loss"], unit="nats per token of the assistant"),
    panels.curve("Learning rate", ["lr"]),
    panels.curve("Gradient norm", ["grad_norm"], log_y=True),
    panels.curve("Throughput", ["tokens_per_second"], unit="tokens/s"),
)
