"""Loss and perplexity on held-out text: packed documents, and answers given their questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversations, Message
from stages.data.token_store import TokenStore
from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
from stages.generation.likelihood import Likelihood, likelihoods
from stages.models.language_model import LanguageModel


@torch.inference_mode()
def document_loss(
    model: LanguageModel,
    tokens: Path,
    tokenizer: AnyTokenizer,
    *,
    max_windows: int = 0,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measure loss (nats per token), perplexity and bits per byte on held-out documents.

    The documents are read in windows of the model's context length, each without memory of the one
    before; `max_windows` of 0 means all.

    Raises:
        InputError: the tokens were packed with a tokenizer other than the model's, or the tokenizer
            has more ids than the model.
    """
    store = TokenStore(tokens, "eval")
    store.require_tokenizer(tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} ids, the model only {model.config.vocab_size}",
            where=str(tokenizer.path),
            remedy="use a model folder with the tokenizer that the model was trained with",
        )
    samples = store.samples(model.config.context_length)
    count = min(max_windows or len(samples), len(samples))
    bytes_per_id = torch.tensor(tokenizer.byte_counts)
    nats, num_tokens, num_bytes = 0.0, 0, 0
    for start in range(0, count, batch_size):
        rows = np.stack([samples[i] for i in range(start, min(start + batch_size, count))])
        ids_BT = torch.from_numpy(rows).to(device)
        nats += model(ids_BT[:, :-1], targets_BT=ids_BT[:, 1:]).item()
        num_tokens += ids_BT[:, 1:].numel()
        num_bytes += int(bytes_per_id[ids_BT[:, 1:].cpu()].sum())
        heartbeat()
    loss = nats / num_tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(num_bytes, 1),
    }


def answer_likelihoods(
    model: LanguageModel,
    conversations: Path,
    chat: ChatFormat,
    *,
    limit: int = 0,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """Return the log-likelihood of each held-out answer given its question.

    Conversations longer than the context length are skipped, the same ones for all models of one
    context length. `limit` of 0 means all.

    Raises:
        InputError: no conversation fits.
    """
    prompts, answers = [], []
    for conversation in Conversations(conversations, "eval"):
        if not conversation.prompt or not conversation.response:
            continue
        whole = chat.encode(learned_last(conversation.messages), conversation.tools)
        if len(whole) <= model.config.context_length + 1:
            learned = whole.loss_mask.nonzero()[0]
            prompts.append(whole.ids[: learned[0]].tolist())
            answers.append(whole.ids[learned[0] : learned[-1] + 1].tolist())
    if not prompts:
        raise InputError(
            f"no held-out answer fits a context of {model.config.context_length} tokens",
            where=str(conversations),
            remedy="hold conversations out (split `eval`), or disconnect `conversations`",
        )
    end = limit or len(prompts)
    return likelihoods(
        model, prompts[:end], answers[:end], pad_id=chat.pad_id, device=device, heartbeat=heartbeat
    )


def learned_last(messages: Sequence[Message]) -> list[Message]:
    """Return messages where only the last has a weight in the loss."""
    return [*(replace(one, weight=0.0) for one in messages[:-1]), replace(messages[-1], weight=1.0)]


def mean_loss(found: Sequence[Likelihood]) -> float:
    """Return the loss per token, nats, over at least one answer."""
    return -sum(one.log_prob for one in found) / sum(one.num_tokens for one in found)


def paired_gain(first: Sequence[Likelihood], second: Sequence[Likelihood]) -> tuple[float, float]:
    """Return how much lower the second model's loss per token is, and the standard error of that
    over conversations (ratio estimator).

    Raises:
        InputError: the models scored different answers.
    """
    if [one.num_tokens for one in first] != [one.num_tokens for one in second]:
        raise InputError(
            "the two models scored different answers: their contexts or tokenizers differ",
            remedy="compare models that were trained from the same base model",
        )
    tokens = np.array([one.num_tokens for one in first], float)
    gains = np.array([b.log_prob - a.log_prob for a, b in zip(first, second, strict=True)])
    mean = gains.sum() / tokens.sum()
    residual = gains - mean * tokens
    error = math.sqrt((residual**2).sum()) / tokens.sum()
    return float(mean), error
