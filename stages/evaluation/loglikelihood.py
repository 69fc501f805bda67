"""Log-likelihoods of continuations given their contexts: the scores of tasks.

    context ids c1 ... cn ─┬─ choice a1 a2        one forward pass over each distinct context, whose
                           ├─ choice b1           KV cache its choices share; a second one over the
                           └─ choice d1 d2 d3     tokens after the first of each choice

Context and continuation are encoded together, because token boundaries near the border depend on
both, and separated where the context's own tokens end (as in lm-eval). A token that crosses the
border belongs to the continuation, so no continuation is empty.

Shape suffixes: B contexts, R continuations, T tokens, V vocabulary, N tokens of continuations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.generation.likelihood import pad_right
from stages.generation.sampling import GenerativeModel, pad_left

CONTEXTS_PER_BATCH = 16
_MAX_CONTINUATIONS = 4  # per batch, as a multiple of the batch size


class BatchEncoder(Protocol):
    """A tokenizer, such as `stages.data.tokenizers.sentencepiece_tokenizer.Tokenizer`."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""


class LoglikelihoodRequest(NamedTuple):
    """Token ids of a context and of the continuation to score; at least one each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class LoglikelihoodResult(NamedTuple):
    """The log-probability of a continuation, nats, and whether it is the greedy one."""

    log_prob: float
    is_greedy: bool


def encode_requests(
    tokenizer: BatchEncoder,
    pairs: Sequence[tuple[str, str]],
    *,
    start_id: int,
    add_bos: bool = False,
) -> list[LoglikelihoodRequest]:
    """Encode pairs of context and continuation. White space at the end of a context is moved to its
    continuation, where tokenizers have it.

    Args:
        tokenizer: of the model.
        pairs: context and continuation; continuations are not empty.
        start_id: the token before a context that is empty or has no token of its own.
        add_bos: whether `start_id` is put before every context.
    """
    wholes = tokenizer.encode_batch([context + rest for context, rest in pairs])
    contexts = tokenizer.encode_batch([context.rstrip() for context, _ in pairs])
    requests = []
    for whole, context in zip(wholes, contexts, strict=True):
        border = common_prefix_length(whole, context)
        prefix = [start_id] if add_bos or not border else []
        requests.append(LoglikelihoodRequest((*prefix, *whole[:border]), tuple(whole[border:])))
    return requests


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of leading tokens that two sequences share, less than all of `a`."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return min(common, len(a) - 1)


def truncate_left(request: LoglikelihoodRequest, context_length: int) -> LoglikelihoodRequest:
    """Drop tokens from the beginning of the context until the request fits the model. The last
    token is predicted and not an input.

    Raises:
        InputError: the continuation alone is too long.
    """
    room = context_length + 1 - len(request.continuation)
    if room < 1:
        raise InputError(
            f"a continuation of {len(request.continuation)} tokens does not fit the context length "
            f"of the model, {context_length}",
            remedy="remove the item, or use a model with a longer context",
        )
    return request._replace(context=request.context[-room:])


@torch.inference_mode()
def score_requests(
    model: GenerativeModel,
    requests: Sequence[LoglikelihoodRequest],
    *,
    pad_id: int,
    batch_size: int = CONTEXTS_PER_BATCH,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[LoglikelihoodResult]:
    """Return log p(continuation | context) of each request, in the given order.

    Args:
        model: in evaluation mode.
        requests: they fit the context of the model.
        pad_id: padding token.
        batch_size: contexts per forward pass, and the most continuations that share one context.
        device: where the model is.
        heartbeat: called after each batch.
    """
    results: dict[int, LoglikelihoodResult] = {}
    for batch in _batches_by_context(requests, batch_size):
        contexts = [requests[indices[0]].context for indices in batch]
        rows = [(row, index) for row, indices in enumerate(batch) for index in indices]
        continuations = [(row, requests[index].continuation) for row, index in rows]
        scores = _score_batch(model, contexts, continuations, pad_id, device)
        results |= {index: score for (_, index), score in zip(rows, scores, strict=True)}
        heartbeat()
    return [results[index] for index in range(len(requests))]


def _batches_by_context(
    requests: Sequence[LoglikelihoodRequest], batch_size: int
) -> Iterator[list[list[int]]]:
    """Yield batches of groups of request indices; a group shares its context, a batch holds groups
    with contexts of similar length."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(range(len(requests)), key=lambda index: len(requests[index].continuation)):
        by_context.setdefault(requests[index].context, []).append(index)
    groups = [
        group[at : at + batch_size]
        for group in by_context.values()
        for at in range(0, len(group), batch_size)
    ]
    groups.sort(key=lambda group: len(requests[group[0]].context))
    batch: list[list[int]] = []
    for group in groups:
        rows = sum(map(len, batch)) + len(group)
        if batch and (len(batch) == batch_size or rows > _MAX_CONTINUATIONS * batch_size):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _score_batch(
    model: GenerativeModel,
    contexts: Sequence[tuple[int, ...]],
    continuations: Sequence[tuple[int, tuple[int, ...]]],
    pad_id: int,
    device: torch.device | str,
) -> list[LoglikelihoodResult]:
    """Score continuations, each given with the row of its context."""
    tokens_BT, mask_BT = pad_left(contexts, pad_id, device)
    longest = max(len(continuation) for _, continuation in continuations)
    cache = model.cache(len(contexts), tokens_BT.shape[1] + longest - 1)
    last_BT = torch.zeros_like(mask_BT)
    last_BT[:, -1] = True
    padding_BT = None if bool(mask_BT.all()) else mask_BT
    logits_BV = model(tokens_BT, mask_BT=padding_BT, cache=cache, position_mask_BT=last_BT)
    rows_R = torch.tensor([row for row, _ in continuations], device=device)
    firsts_R = torch.tensor([tokens[0] for _, tokens in continuations], device=device)
    scores = [[first] for first in _score_tokens(logits_BV[rows_R], firsts_R)]
    longer = [i for i, (_, tokens) in enumerate(continuations) if len(tokens) > 1]
    if longer:
        cache.select_rows(rows_R[torch.tensor(longer, device=device)])
        rest = [continuations[i][1] for i in longer]
        inputs_RT = pad_right([tokens[:-1] for tokens in rest], pad_id, device)
        lengths_R = torch.tensor([len(tokens) - 1 for tokens in rest], device=device)
        position_mask_RT = torch.arange(inputs_RT.shape[1], device=device) < lengths_R[:, None]
        logits_NV = model(
            inputs_RT, mask_BT=position_mask_RT, cache=cache, position_mask_BT=position_mask_RT
        )
        targets_N = torch.tensor([t for tokens in rest for t in tokens[1:]], device=device)
        following = iter(_score_tokens(logits_NV, targets_N))
        for i in longer:
            scores[i] += [next(following) for _ in continuations[i][1][1:]]
    return [
        LoglikelihoodResult(sum(s.log_prob for s in each), all(s.is_greedy for s in each))
        for each in scores
    ]


def _score_tokens(logits_NV: Tensor, targets_N: Tensor) -> list[LoglikelihoodResult]:
    """Score each token by itself."""
    log_probs_NV = logits_NV.float().log_softmax(-1)
    target_log_probs_N = log_probs_NV.gather(1, targets_N[:, None]).squeeze(1).double()
    greedy_N = logits_NV.argmax(-1) == targets_N
    pairs = zip(target_log_probs_N.tolist(), greedy_N.tolist(), strict=True)
    return [LoglikelihoodResult(*pair) for pair in pairs]
