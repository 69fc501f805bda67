"""Supervised fine-tuning: the assistant's tokens of conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import InputError
from stages.alignment.sampled_scores import SampledScores, ScoringSettings, plain_model
from stages.chat.chat_format import ChatFormat
from stages.chat.encoded_chats import EncodedChats, reversed_conversation
from stages.chat.packed_chats import ChatRow, ChatRows, collate_chats, num_inputs
from stages.data.conversation_dataset import Conversation, Conversations
from stages.generation.sampling import SamplingParams, sample
from stages.models.fused_ops import IGNORED
from stages.models.language_model import ForwardOutputs, LanguageModel, router_aux_loss
from stages.models.lora import add_lora, merge
from stages.models.lora_adapter import load_adapter, save_adapter
from stages.models.model_io import load_language_model, save_language_model
from stages.objectives.pretraining_mix import (
    MARK,
    PRETRAINING,
    PretrainingMix,
    PretrainingWindows,
    named_losses,
    named_units,
)
from stages.training.data_order import Shuffled
from stages.training.objective import Batch, Loss, Losses, Metrics, MetricSum, Trainable
from stages.training.supervised import LanguageObjective, num_targets

if TYPE_CHECKING:
    from stages.models.lora_config import LoRAConfig
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank

NUM_EXAMPLES = 6
"""Held-out prompts that are answered before and after the training."""


@dataclass
class SFTObjective(LanguageObjective):
    """Prediction of the assistant's tokens; the prompt is input only.

    A sample is a row of one conversation, or of several if packed, whose tokens attend to
    their own conversation only. Rows are padded on the right, where no other position attends.
    """

    model_path: Path
    train_chats: EncodedChats
    held_out_chats: EncodedChats
    chat_template: str | None = None
    row_length: int | None = None
    """Positions of a packed row; None is one conversation per row."""
    reverse: bool = False
    dropout: float = 0.0
    residual_dropout: float | None = None
    """Dropout of the residual branches. Default: `dropout`."""
    lora: LoRAConfig | None = None
    """Adapters that are trained in place of the weights."""
    scoring: ScoringSettings | None = None
    """Scoring of sampled responses in evaluations. Default: none."""
    held_out_paths: tuple[Path, ...] = ()
    """Conversations whose held-out prompts are answered and scored."""
    mix: PretrainingMix | None = None
    """Pretraining tokens in each batch. Default: none."""
    length_grouped = True

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Load the model and map the encoded conversations."""
        model = self._model().train()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.setup_metrics = {"trained_parameters": float(trained)}
        self._experts = model.config.experts
        chat = ChatFormat.open(self.model_path, self.chat_template)
        self._pad_id = chat.pad_id
        self._windows = None
        if self.mix:
            self.coefficients = {PRETRAINING: self.mix.coefficient}
            inputs = float((self.train_chats.lengths - 1).sum()) / len(self.rows(self.train_chats))
            step = self.settings.global_batch_size * inputs
            self._windows = PretrainingWindows(self.mix, step, chat.tokenizer, self.seed)
        self._scores = None
        if self.scoring:
            held_out = _read(self.held_out_paths, "eval", self.reverse)
            context = model.config.context_length
            self._scores = SampledScores(self.scoring, held_out, chat, context, rank)
        self.flops_per_token = float(model.config.flops_per_token)
        self.train_samples = Shuffled(self.rows(self.train_chats), self.seed)
        self.eval_dataset = self.rows(self.held_out_chats)
        return {"model": Trainable(model)}

    def rows(self, chats: EncodedChats) -> ChatRows:
        """Return the samples of a split."""
        return ChatRows(chats, chats.lengths, self.row_length)

    def length(self, sample: ChatRow) -> int:
        """Return the number of positions of a sample."""
        return num_inputs(sample)

    def collate(self, samples: Sequence[ChatRow]) -> Batch:
        """Convert rows to right-padded tensors (B, T); see `collate_chats`."""
        return collate_chats(samples, self._pad_id)

    def further_batches(self, step: int) -> Sequence[Batch]:
        """Return the pretraining windows of a step."""
        if self._windows is None:
            return []
        micro = self.settings.rank_micro_batch_size(self.rank.world)
        return list(self._windows.batches(step, self.rank, micro))

    def units(self, batch: Batch) -> float | dict[str, float]:
        """Return the number of targets, with pretraining by the name of the loss."""
        return named_units(batch, num_targets(batch)) if self.mix else num_targets(batch)

    def loss(self, model: Any, batch: Batch) -> Losses:
        """Return the summed cross-entropy over the assistant's tokens, the only positions with
        logits, plus the router losses over all tokens; with pretraining the same of its tokens by
        name."""
        if self.mix is None:
            return self._chat_loss(model, batch)
        if batch.get(MARK):
            found = self._pretraining_loss(model, batch)
        else:
            found = self._chat_loss(model, batch)
        return named_losses(batch, found, Loss(found.total.new_zeros(())))

    def _pretraining_loss(self, model: Any, batch: Batch) -> Loss:
        outputs = ForwardOutputs()
        total = model(batch["tokens"], targets_BT=batch["targets"], outputs=outputs)
        if self._experts is None:
            return Loss(total)
        tokens = (batch["targets"] != IGNORED).sum()
        total = total + router_aux_loss(self._experts, outputs.routing) * tokens
        return Loss(total, reported=outputs.cross_entropy)

    def _chat_loss(self, model: Any, batch: Batch) -> Loss:
        outputs = ForwardOutputs()
        total = model(
            batch["tokens"],
            targets_BT=batch["targets"],
            token_mask_BT=batch["token_mask"],
            segments_BT=batch.get("segments"),
            positions_BT=batch.get("positions"),
            outputs=outputs,
        )
        if self._experts is None:
            return Loss(total)
        tokens, layers = batch["token_mask"].sum(), outputs.routing
        balance = torch.stack([layer.balance.detach() for layer in layers]).mean()
        total = total + router_aux_loss(self._experts, layers) * tokens
        metrics = {"balance_loss": MetricSum(balance * tokens, units=tokens)}
        return Loss(total, metrics, reported=outputs.cross_entropy)

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return the metrics of the base class, and with a scorer `eval_reward_score`, the mean
        score of responses to held-out prompts.

        Raises:
            Interrupted: the run is to stop.
        """
        found = super().evaluate(engines, step)
        if self._scores is None:
            return found
        with plain_model(engines["model"], self._model, self.rank) as model:
            return {**found, "eval_reward_score": self._scores.mean(model)}

    def _model(self) -> LanguageModel:
        """Return the model before training."""
        model = load_language_model(
            self.model_path, dropout=self.dropout, residual_dropout=self.residual_dropout
        )
        return add_lora(model, self.lora) if self.lora else model

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder; with adapters that of the merged weights, and the adapters."""
        model: Any = engines["model"].module
        if self.lora:
            save_adapter(model, out / "adapter")
            # The weights of the folder are float32, those of the engine may be rounded.
            model = merge(load_adapter(load_language_model(self.model_path), out / "adapter"))
        chat = ChatFormat.open(self.model_path, self.chat_template)
        card, ids = _card(self), chat.special_ids
        save_language_model(model, out, self.model_path, card=card, chat=True, ids=ids)
        chat.export(out)


def example_responses(
    rank: Rank, objective: SFTObjective, conversations: Sequence[Path], folder: Path, seed: int
) -> list[dict[str, str]]:
    """Return responses of the models before and after training to held-out prompts, or to training
    prompts if none are held out. Ranks other than 0 return nothing."""
    if not rank.is_main:
        return []
    shown = _first(_read(conversations, "eval", objective.reverse))
    shown = shown or _first(_read(conversations, "train", objective.reverse))
    template = objective.chat_template
    before = sample_responses(rank, objective.model_path, template, shown, seed)
    after = sample_responses(rank, folder, template, shown, seed)
    return [
        {
            "prompt": "\n".join(message.content for message in conversation.prompt),
            "before": old,
            "after": new,
            "wanted": conversation.response,
        }
        for conversation, old, new in zip(shown, before, after, strict=True)
    ]


def sample_responses(
    rank: Rank,
    folder: Path,
    chat_template: str | None,
    conversations: Sequence[Conversation],
    seed: int,
) -> list[str]:
    """Return one sampled response per conversation, empty where the prompt is too long or the chat
    template refuses it."""
    model = load_language_model(folder).to(rank.device)
    chat = ChatFormat.open(folder, chat_template)
    prompts = [_encoded_prompt(chat, conversation) for conversation in conversations]
    longest = model.config.context_length - 1
    fitting = [row for row, ids in enumerate(prompts) if 0 < len(ids) <= longest]
    responses = [""] * len(prompts)
    if fitting:
        room = model.config.context_length - max(len(prompts[row]) for row in fitting)
        drawn = sample(
            model,
            [prompts[row] for row in fitting],
            SamplingParams(min(64, room), temperature=0.7, top_p=0.95),
            end_ids=chat.end_ids,
            pad_id=chat.pad_id,
            seed=seed,
            device=rank.device,
        )
        for index, row in enumerate(fitting):
            responses[row] = chat.response_text(drawn.ids(index, eos=True))
    return responses


def _encoded_prompt(chat: ChatFormat, conversation: Conversation) -> list[int]:
    """Return the ids of a prompt, none if the chat template refuses it."""
    try:
        return chat.encode_prompt(conversation.prompt, conversation.tools)
    except InputError:
        return []


def _read(paths: Sequence[Path], split: str, reverse: bool) -> Iterator[Conversation]:
    """Yield the conversations of a split that have a question and an answer, from all inputs."""
    for path in paths:
        for conversation in Conversations(path, split):
            if conversation.prompt and conversation.response:
                yield reversed_conversation(conversation) if reverse else conversation


def _first(conversations: Iterable[Conversation]) -> list[Conversation]:
    return list(islice(conversations, NUM_EXAMPLES))


def _card(objective: SFTObjective) -> str:
    train, count = objective.settings, len(objective.train_chats)
    task = "the question from the answer" if objective.reverse else "to answer"
    adapters = (
        f" Trained were adapters of rank {objective.lora.rank}, which are merged into the weights\n"
        "and stand apart in `adapter`."
        if objective.lora
        else ""
    )
    return f"""# Fine-tuned language model

Trained on {count} conversations {task}, for {train.steps} steps of {train.global_batch_size}
(peak learning rate {train.lr:g}, {train.lr_schedule}). Prompts are given in the chat format of
`chat_template.jinja`.{adapters}
"""
