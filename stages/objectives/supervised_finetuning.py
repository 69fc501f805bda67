"""Supervised fine-tuning: the assistant's tokens of conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import InputError
from stages.data.conversation_dataset import Conversation, Conversations, Message
from stages.data.tokenizers.chat_template import (
    EncodedConversation,
    encode_conversation,
    encode_prompt,
)
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
from stages.generation.sampling import SamplingParams, sample
from stages.models.fused_ops import IGNORED
from stages.models.language_model import ForwardOutputs, router_aux_loss
from stages.models.model_io import load_language_model, save_language_model
from stages.training.data_order import Shuffled
from stages.training.objective import Batch, Loss, MetricSum, Trainable
from stages.training.supervised import LanguageObjective

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank

NUM_EXAMPLES = 6
"""Held-out prompts that are answered before and after the training."""


@dataclass
class SFTObjective(LanguageObjective):
    """Prediction of the assistant's tokens; the prompt is input only.

    Conversations are padded on the right, where no other position attends, so that the rows of a
    batch do not affect each other.
    """

    model_path: Path
    conversation_paths: tuple[Path, ...]
    reverse: bool = False
    max_length: int | None = None
    dropout: float = 0.0
    length_grouped = True

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Load the model and encode the conversations.

        Raises:
            InputError: no conversation to train on fits into the context.
        """
        model = load_language_model(self.model_path, dropout=self.dropout).train()
        self._experts = model.config.experts
        self.flops_per_token = float(model.config.flops_per_token)
        limit = self.max_length or model.config.context_length
        data, too_long = self._encoded("train", limit)
        if not data:
            raise InputError(
                f"no conversation to train on has an answer and fits into {limit} tokens",
                where=", ".join(map(str, self.conversation_paths)),
                remedy="raise max_length, or train the model with a longer context",
            )
        self.setup_metrics = {"conversations": float(len(data)), "too_long": float(too_long)}
        self.train_samples = Shuffled(data, self.seed)
        self.eval_dataset = self._encoded("eval", limit)[0]
        return {"model": Trainable(model)}

    def read(self, split: str) -> Iterator[Conversation]:
        """Yield the conversations of a split, from all inputs in turn."""
        for path in self.conversation_paths:
            for conversation in Conversations(path, split):
                if not self.reverse:
                    yield conversation
                elif conversation.prompt and conversation.response:
                    yield reversed_conversation(conversation)

    def _encoded(self, split: str, limit: int) -> tuple[list[EncodedConversation], int]:
        """Return the conversations that fit, and the number of those that do not."""
        tokenizer = Tokenizer(self.model_path)
        encoded = [encode_conversation(tokenizer, c) for c in self.read(split)]
        fitting = [e for e in encoded if len(e) <= limit + 1 and e.loss_mask.any()]
        return fitting, sum(len(e) > limit + 1 for e in encoded)

    def collate(self, samples: Sequence[EncodedConversation]) -> Batch:
        """Convert to right-padded inputs and targets (B, T); see `collate_conversations`."""
        return collate_conversations(samples)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Return the summed cross-entropy over the assistant's tokens, the only positions with
        logits, plus the router losses over all tokens."""
        outputs = ForwardOutputs()
        total = model(
            batch["tokens"],
            targets_BT=batch["targets"],
            token_mask_BT=batch["token_mask"],
            outputs=outputs,
        )
        if self._experts is None:
            return Loss(total)
        tokens, layers = batch["token_mask"].sum(), outputs.routing
        balance = torch.stack([layer.balance.detach() for layer in layers]).mean()
        total = total + router_aux_loss(self._experts, layers) * tokens
        metrics = {"balance_loss": MetricSum(balance * tokens, units=tokens)}
        return Loss(total, metrics, reported=outputs.cross_entropy)

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder."""
        model: Any = engines["model"].module
        save_language_model(model, out, self.model_path, card=_card(self), chat=True)


def collate_conversations(samples: Sequence[EncodedConversation]) -> dict[str, Any]:
    """Convert encoded conversations to `tokens` and `targets` (B, T), -100 where nothing is
    predicted, and `token_mask`, False at padding."""
    T = max(map(len, samples)) - 1
    tokens = torch.full((len(samples), T), PAD)
    targets = torch.full((len(samples), T), IGNORED)
    token_mask = torch.zeros((len(samples), T), dtype=torch.bool)
    for row, encoded in enumerate(samples):
        ids, mask = torch.from_numpy(encoded.ids), torch.from_numpy(encoded.loss_mask)
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(mask[1:], ids[1:], IGNORED)
        token_mask[row, : len(ids) - 1] = True
    return {"tokens": tokens, "targets": targets, "token_mask": token_mask}


def reversed_conversation(conversation: Conversation) -> Conversation:
    """Return the last question and its answer with their roles exchanged, without earlier turns."""
    question = conversation.prompt[-1].content
    turns = (Message("user", conversation.response), Message("assistant", question))
    return replace(conversation, messages=turns)


def example_responses(
    rank: Rank, objective: SFTObjective, folder: Path, seed: int
) -> list[dict[str, str]]:
    """Return responses of the models before and after training to held-out prompts, or to training
    prompts if none are held out. Ranks other than 0 return nothing."""
    if not rank.is_main:
        return []
    conversations = _first(objective.read("eval")) or _first(objective.read("train"))
    before = sample_responses(rank, objective.model_path, conversations, seed)
    after = sample_responses(rank, folder, conversations, seed)
    return [
        {
            "prompt": "\n".join(message.content for message in conversation.prompt),
            "before": old,
            "after": new,
            "wanted": conversation.response,
        }
        for conversation, old, new in zip(conversations, before, after, strict=True)
    ]


def sample_responses(
    rank: Rank, folder: Path, conversations: Sequence[Conversation], seed: int
) -> list[str]:
    """Return one sampled response per conversation, empty where the prompt is too long."""
    model, tokenizer = load_language_model(folder).to(rank.device), Tokenizer(folder)
    prompts = [encode_prompt(tokenizer, conversation.prompt) for conversation in conversations]
    fitting = [row for row, ids in enumerate(prompts) if len(ids) < model.config.context_length]
    responses = [""] * len(prompts)
    if fitting:
        room = model.config.context_length - max(len(prompts[row]) for row in fitting)
        drawn = sample(
            model,
            [prompts[row] for row in fitting],
            SamplingParams(min(64, room), temperature=0.7, top_p=0.95),
            eos_id=EOS,
            pad_id=PAD,
            seed=seed,
            device=rank.device,
        )
        for index, row in enumerate(fitting):
            responses[row] = tokenizer.decode(drawn.ids(index))
    return responses


def _first(conversations: Iterable[Conversation]) -> list[Conversation]:
    return list(islice(conversations, NUM_EXAMPLES))


def _card(objective: SFTObjective) -> str:
    train, count = objective.settings, objective.setup_metrics["conversations"]
    task = "the question from the answer" if objective.reverse else "to answer"
    return f"""# Fine-tuned language model

Trained on {count:.0f} conversations {task}, for {train.steps} steps of {train.global_batch_size}
(peak learning rate {train.lr:g}, {train.lr_schedule}). Prompts are given in the chat format of
`tokenizer_config.json`; responses end with `</s>`.
"""
