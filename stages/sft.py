"""Fine-tune a language model on conversations: it learns the assistant's words.

    sft:
      uses: sft
      model: ${gpt}
      conversations: ${questions}       # or a list, which is mixed by size
      train: {steps: 200, global_batch_size: 16, lr: 3.0e-4}

`reverse: true` trains the speaker, p(question | answer): the fields of each conversation change
places. `steps` is fixed, not epochs, so that two data sets compare at equal training. A model with
experts keeps them busy as in pretraining, by the balance loss that its config has a coefficient
for (`balance_loss` in the series). All tokens are sent to experts, those of questions too: beside
the loss, which is a mean over learned tokens, the balance loss counts once for each token.
Figures: `loss`, `eval_loss` (nats a learned token), `perplexity`, `tokens`, `conversations`,
`too_long`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, UnsupportedKeys, stage
from stages.training.objective import Batch, LanguageObjective, Loss, Metrics, Trainable
from stages.training.training_params import TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.chat_template import Encoded
    from stages.data.conversation_dataset import Conversation
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import StepResult

SHOWN = 6
BALANCE, TOKENS = "balance_loss", "real_tokens"
"""Figures of experts, of which the second serves the first alone."""


class SftTrain(TrainSection):
    """A few passes over conversations; weights stay near those of the language model undecayed."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps."""
    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Conversations of one optimizer step, over all ranks and micro-batches."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of matrices."""


class SftParams(Params):
    """See the module."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS

    train: SftTrain = SftTrain()
    reverse: bool = False
    """Learn the question from the answer."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Longer conversations are left out (and counted); by default the model's context."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    seed: int = 0
    """Of the order of the samples; the pipeline's, if left out."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work in the batch and the lengths."""
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
    version=3,
)
def sft(params: SftParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Fine-tune a language model on conversations."""
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    objective = FineTuning(
        inputs.path("model"),
        tuple(inputs.paths("conversations")),
        reverse=params.reverse,
        max_length=params.max_length,
        dropout=params.dropout,
    )
    ctx.panel(panels.curve("Loss", ["loss", "eval_loss"], unit="nats a learned token"))
    ctx.panel(panels.curve("Learning rate", ["lr"]))
    ctx.panel(panels.curve("Gradient norm", ["grad_norm"], log_y=True))
    ctx.panel(panels.curve("Speed", ["tokens_per_second"], unit="tokens/s"))
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
        texts = group.run(answers, objective, out, params.seed)[0]
    ctx.panel(panels.samples("Before and after", texts))
    ctx.result(
        loss=final["loss"],
        eval_loss=final.get("eval_loss", float("nan")),
        perplexity=final.get("eval_perplexity", float("nan")),
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        conversations=final["conversations"],
        too_long=final["too_long"],
    )


@dataclass
class FineTuning(LanguageObjective):
    """Predict the assistant's tokens; the prompt is read, not learned.

    Conversations are padded on the right, where nothing real ever looks, so that batching leaks
    nothing from one into another.
    """

    model_path: Path
    conversation_paths: tuple[Path, ...]
    reverse: bool = False
    max_length: int | None = None
    dropout: float = 0.0
    ragged = True

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Load the model and encode the conversations.

        Raises:
            InputError: no conversation to train on fits into the context.
        """
        from stages.models.hf_export import load_language_model
        from stages.training.data_order import Shuffled

        model = load_language_model(self.model_path, dropout=self.dropout).train()
        self._experts: Any = getattr(model.config, "experts", None)
        self.flops_per_token = float(model.config.flops_per_token)
        limit = self.max_length or model.config.context_length
        data, too_long = self._encoded("train", limit)
        if not data:
            raise InputError(
                f"no conversation to train on has an answer and fits into {limit} tokens",
                where=", ".join(map(str, self.conversation_paths)),
                remedy="raise max_length, or train the model with a longer context",
            )
        self.facts = {"conversations": float(len(data)), "too_long": float(too_long)}
        self.train = Shuffled(data, self.seed)
        self.held_out = self._encoded("eval", limit)[0]
        return {"model": Trainable(model)}

    def read(self, split: str) -> Iterator[Conversation]:
        """The conversations of a split, from all inputs in turn."""
        from stages.data.conversation_dataset import Conversations

        for path in self.conversation_paths:
            for conversation in Conversations(path, split):
                if not self.reverse:
                    yield conversation
                elif conversation.prompt and conversation.response:
                    yield swapped(conversation)

    def _encoded(self, split: str, limit: int) -> tuple[list[Encoded], int]:
        """Those that fit, and how many did not."""
        from stages.data.chat_template import encode_conversation
        from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

        tokenizer = Tokenizer(self.model_path)
        every = [encode_conversation(tokenizer, c) for c in self.read(split)]
        fit = [e for e in every if len(e) <= limit + 1 and e.mask.any()]
        return fit, sum(len(e) > limit + 1 for e in every)

    def length(self, sample: Any) -> int:
        """Tokens of a conversation."""
        return len(sample)

    def collate(self, samples: Sequence[Encoded]) -> Batch:
        """Inputs and targets (B, T), padded on the right; targets are the assistant's."""
        return collate(samples)

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """One step; the balance loss is a mean over tokens."""
        result = super().step(engines, step)
        return replace(result, metrics=_of_tokens(result.metrics))

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Loss and perplexity; the balance loss is a mean over tokens."""
        return _of_tokens(super().evaluate(engines, step))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy over the learned positions, the only ones with logits; and what
        keeps experts busy, which all tokens are sent to."""
        import torch

        from stages.models.language_model import ForwardOutputs, router_aux_loss

        trace = ForwardOutputs()
        total = model(
            batch["tokens"], targets_BT=batch["targets"], padding_mask_BT=batch["real"], trace=trace
        )
        if not trace.routing:
            return Loss(total)
        tokens, layers = batch["real"].sum(), trace.routing
        balance = torch.stack([layer.balance.detach() for layer in layers]).mean()
        total = total + router_aux_loss(self._experts, layers) * tokens
        return Loss(total, {BALANCE: balance * tokens, TOKENS: tokens}, shown=trace.cross_entropy)

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model's folder."""
        from stages.models.hf_export import save_language_model

        model: Any = engines["model"].module
        save_language_model(model, out, self.model_path, card=_card(self), chat=True)


def collate(samples: Sequence[Encoded]) -> dict[str, Any]:
    """Encoded conversations as `tokens` and `targets` (B, T), -100 where nothing is learned, and
    what is `real`, not padding."""
    import torch

    from stages.data.tokenizers.sentencepiece_tokenizer import PAD
    from stages.models.fused_ops import IGNORED

    T = max(map(len, samples)) - 1
    tokens = torch.full((len(samples), T), PAD)
    targets = torch.full((len(samples), T), IGNORED)
    real = torch.zeros((len(samples), T), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids, mask = torch.from_numpy(sample.ids), torch.from_numpy(sample.mask)
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(mask[1:], ids[1:], IGNORED)
        real[row, : len(ids) - 1] = True
    return {"tokens": tokens, "targets": targets, "real": real}


def _of_tokens(figures: Metrics) -> dict[str, float]:
    """With balance losses a token that were sums over tokens, a learned token."""
    found = dict(figures)
    for prefix in ("", "eval_"):
        if tokens := found.pop(prefix + TOKENS, 0.0):
            found[prefix + BALANCE] /= tokens
    return found


def swapped(conversation: Conversation) -> Conversation:
    """The last question and its answer in each other's place; what comes before is left out."""
    from stages.data.conversation_dataset import Message

    question = conversation.prompt[-1].content
    turns = (Message("user", conversation.response), Message("assistant", question))
    return replace(conversation, messages=turns)


def answers(rank: Rank, objective: FineTuning, folder: Path, seed: int) -> list[dict[str, str]]:
    """What the models before and after say to held-out prompts (or to the first trained on)."""
    if not rank.first:
        return []
    asked = _first(objective.read("eval"), SHOWN) or _first(objective.read("train"), SHOWN)
    before = replies(rank, objective.model_path, asked, seed)
    after = replies(rank, folder, asked, seed)
    return [
        {
            "prompt": "\n".join(message.content for message in conversation.prompt),
            "before": old,
            "after": new,
            "wanted": conversation.response,
        }
        for conversation, old, new in zip(asked, before, after, strict=True)
    ]


def replies(
    rank: Rank, folder: Path, conversations: Sequence[Conversation], seed: int
) -> list[str]:
    """One sampled response to each conversation's prompt; empty where the prompt is too long."""
    from stages.data.chat_template import encode_prompt
    from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
    from stages.generation.sampling import Decoding, sample
    from stages.models.hf_export import load_language_model

    model, tokenizer = load_language_model(folder).to(rank.device), Tokenizer(folder)
    prompts = [encode_prompt(tokenizer, conversation.prompt) for conversation in conversations]
    fit = [row for row, ids in enumerate(prompts) if len(ids) < model.config.context_length]
    found = [""] * len(prompts)
    if fit:
        room = model.config.context_length - max(len(prompts[row]) for row in fit)
        drawn = sample(
            model,
            [prompts[row] for row in fit],
            Decoding(min(64, room), temperature=0.7, top_p=0.95),
            eos_id=EOS,
            pad_id=PAD,
            seed=seed,
            device=rank.device,
        )
        for place, row in enumerate(fit):
            found[row] = tokenizer.decode(drawn.ids(place))
    return found


def _first(conversations: Iterable[Conversation], count: int) -> list[Conversation]:
    from itertools import islice

    return list(islice(conversations, count))


def _card(objective: FineTuning) -> str:
    train = objective.settings
    task = "the question from the answer" if objective.reverse else "to answer"
    return f"""# Fine-tuned GPT

Trained on {objective.facts["conversations"]:.0f} conversations {task}, for {train.steps} steps of
{train.global_batch_size} (peak learning rate {train.lr:g}, {train.lr_schedule}). Prompts are given in the
chat format of `tokenizer_config.json`; responses end with `</s>`.
"""
