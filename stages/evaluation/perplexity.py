"""How well a model predicts held-out text: documents as packed, and answers to questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.errors import InputError
from stages.data.conversation_dataset import Conversations
from stages.data.token_store import TokenStore
from stages.data.tokenizers.chat_template import encode_conversation, encode_prompt
from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
from stages.generation.likelihood import Likelihood, likelihoods
from stages.models.language_model import LanguageModel


@torch.inference_mode()
def document_loss(
    model: LanguageModel,
    tokens: Path,
    tokenizer: AnyTokenizer,
    *,
    windows: int = 0,
    batch: int = 16,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss (nats a token), perplexity and bits per byte on the held-out documents.

    Windows of the context's length, each from an empty memory; all of them if `windows` is 0.

    Raises:
        InputError: the tokens were packed with another tokenizer than the model's, or that has
            more ids than the model.
    """
    store = TokenStore(tokens, "eval")
    store.require_tokenizer(tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the model knows {model.config.vocab_size} ids, its tokenizer {len(tokenizer)}",
            where=str(tokenizer.path),
            remedy="give a model folder with the tokenizer that it was trained with",
        )
    samples = store.samples(model.config.context_length)
    count = min(windows or len(samples), len(samples))
    sizes = torch.tensor(tokenizer.byte_counts)
    nats, seen, size = 0.0, 0, 0
    for start in range(0, count, batch):
        rows = np.stack([samples[i] for i in range(start, min(start + batch, count))])
        ids_BT = torch.from_numpy(rows).to(device)
        nats += model(ids_BT[:, :-1], targets_BT=ids_BT[:, 1:]).item()
        seen += ids_BT[:, 1:].numel()
        size += int(sizes[ids_BT[:, 1:].cpu()].sum())
        heartbeat()
    loss = nats / seen
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
    }


def answer_likelihoods(
    model: LanguageModel,
    conversations: Path,
    tokenizer: Tokenizer,
    *,
    limit: int = 0,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """Log-likelihood of each held-out answer given its question; those that do not fit the
    context are left out, the same for every model of that context.

    Raises:
        InputError: none is left.
    """
    prompts, answers = [], []
    for conversation in Conversations(conversations, "eval"):
        whole = encode_conversation(tokenizer, conversation)
        if (
            len(whole) <= model.config.context_length + 1
            and conversation.prompt
            and conversation.response
        ):
            prompts.append(encode_prompt(tokenizer, conversation.prompt))
            answers.append([*tokenizer.encode(conversation.response), EOS])
    if not prompts:
        raise InputError(
            f"no held-out answer fits a context of {model.config.context_length} tokens",
            where=str(conversations),
            remedy="hold conversations out (split `eval`), or evaluate without `conversations`",
        )
    end = limit or len(prompts)
    return likelihoods(
        model, prompts[:end], answers[:end], pad_id=PAD, device=device, heartbeat=heartbeat
    )


def mean_loss(found: Sequence[Likelihood]) -> float:
    """Nats a token over all answers, of which there is at least one."""
    return -sum(one.log_prob for one in found) / sum(one.tokens for one in found)


def paired_gain(first: Sequence[Likelihood], second: Sequence[Likelihood]) -> tuple[float, float]:
    """How much less loss a token the second model has, and the standard error of that over
    conversations (ratio estimator).

    Raises:
        InputError: the models did not read the same answers.
    """
    if [one.tokens for one in first] != [one.tokens for one in second]:
        raise InputError(
            "the two models do not read the same answers: their contexts or tokenizers differ",
            remedy="compare models that were trained from the same one",
        )
    tokens = np.array([one.tokens for one in first], float)
    gains = np.array([b.log_prob - a.log_prob for a, b in zip(first, second, strict=True)])
    mean = gains.sum() / tokens.sum()
    residual = gains - mean * tokens
    error = math.sqrt((residual**2).sum()) / tokens.sum()
    return float(mean), error
