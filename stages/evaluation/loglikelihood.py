"""Log-likelihoods of continuations as text, several of one context: what tasks are scored by.

    context ids c1 … cn ─┬─ choice a1 a2          one forward pass over each context, whose cache
                         ├─ choice b1             its choices share; a second one over the tokens
                         └─ choice d1 d2 d3       that follow the first of each

A context and its continuation are encoded together, for where the tokens between them are cut
depends on both, and parted where the context's own tokens end (as lm-eval does). A token that
reaches over the border belongs to the continuation, which so is never empty.

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

BATCH = 16  # contexts
SHARING = 4  # times as many continuations, at most


class BatchEncoder(Protocol):
    """What makes ids of text; `stages.data.tokenizers.sentencepiece_tokenizer.Tokenizer` is one."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""


class LoglikelihoodRequest(NamedTuple):
    """What is read, and what is scored after it: at least one token each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class LoglikelihoodResult(NamedTuple):
    """The log-probability of a continuation (nats), and whether each of its tokens is the
    likeliest."""

    log_prob: float
    greedy: bool


def encode_requests(
    tokenizer: BatchEncoder, pairs: Sequence[tuple[str, str]], *, start: int, document: bool = False
) -> list[LoglikelihoodRequest]:
    """The ids of pairs of context and continuation. Space at the end of a context is read as the
    beginning of its continuation, where tokenizers have it.

    Args:
        tokenizer: of the model.
        pairs: context and continuation, which is not empty.
        start: the token before a context that is empty, or of which no token is left.
        document: whether every context begins with `start`.
    """
    told = [context.rstrip() for context, _ in pairs]
    wholes = tokenizer.encode_batch([context + rest for context, rest in pairs])
    contexts = tokenizer.encode_batch(told)
    made = []
    for whole, context in zip(wholes, contexts, strict=True):
        border = common_prefix_length(whole, context)
        before = [start] if document or not border else []
        made.append(LoglikelihoodRequest((*before, *whole[:border]), tuple(whole[border:])))
    return made


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with together; never all of the first."""
    together = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return min(together, len(a) - 1)


def truncate_left(request: LoglikelihoodRequest, context: int) -> LoglikelihoodRequest:
    """A request cut from the left to what a model of that context reads: the last token is
    predicted and not read.

    Raises:
        InputError: the continuation alone is too long.
    """
    room = context + 1 - len(request.continuation)
    if room < 1:
        raise InputError(
            f"{len(request.continuation)} tokens are to be scored at once, and the model's context "
            f"is {context}",
            remedy="leave the item out, or give a model with a longer context",
        )
    return request._replace(context=request.context[-room:])


@torch.inference_mode()
def score_requests(
    model: GenerativeModel,
    asked: Sequence[LoglikelihoodRequest],
    *,
    pad_id: int,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[LoglikelihoodResult]:
    """log p(continuation | context) of each request, in the order given.

    Args:
        model: in evaluation mode.
        asked: requests that fit its context.
        pad_id: fills up.
        batch: contexts that are read at once; and the most continuations that share one.
        device: where the model is.
        heartbeat: called after each batch.
    """
    found: dict[int, LoglikelihoodResult] = {}
    for together in _shared(asked, batch):
        contexts = [asked[places[0]].context for places in together]
        rows = [(row, place) for row, places in enumerate(together) for place in places]
        tails = [(row, asked[place].continuation) for row, place in rows]
        scores = _read(model, contexts, tails, pad_id, device)
        found |= {place: made for (_, place), made in zip(rows, scores, strict=True)}
        heartbeat()
    return [found[place] for place in range(len(asked))]


def _shared(asked: Sequence[LoglikelihoodRequest], batch: int) -> Iterator[list[list[int]]]:
    """Places of requests of one context, at most `batch`; as many such groups of alike lengths."""
    sharing: dict[tuple[int, ...], list[int]] = {}
    for place in sorted(range(len(asked)), key=lambda place: len(asked[place].continuation)):
        sharing.setdefault(asked[place].context, []).append(place)
    groups = [g[at : at + batch] for g in sharing.values() for at in range(0, len(g), batch)]
    groups.sort(key=lambda group: len(asked[group[0]].context))
    together: list[list[int]] = []
    for group in groups:
        rows = sum(map(len, together)) + len(group)
        if together and (len(together) == batch or rows > SHARING * batch):
            yield together
            together = []
        together.append(group)
    if together:
        yield together


def _read(
    model: GenerativeModel,
    contexts: Sequence[tuple[int, ...]],
    tails: Sequence[tuple[int, tuple[int, ...]]],
    pad_id: int,
    device: torch.device | str,
) -> list[LoglikelihoodResult]:
    """Scores of continuations, each of the context in its row."""
    tokens_BT, mask_BT = pad_left(contexts, pad_id, device)
    longest = max(len(tail) for _, tail in tails)
    cache = model.cache(len(contexts), tokens_BT.shape[1] + longest - 1)
    last_BT = torch.zeros_like(mask_BT)
    last_BT[:, -1] = True
    padding_mask_BT = None if bool(mask_BT.all()) else mask_BT
    logits_BV = model(tokens_BT, mask_BT=padding_mask_BT, cache=cache, at_BT=last_BT)
    rows_R = torch.tensor([row for row, _ in tails], device=device)
    firsts_R = torch.tensor([tail[0] for _, tail in tails], device=device)
    found = [[made] for made in _judged(logits_BV[rows_R], firsts_R)]
    more = [place for place, (_, tail) in enumerate(tails) if len(tail) > 1]
    if more:
        cache.select_rows(rows_R[torch.tensor(more, device=device)])
        rest = [tails[place][1] for place in more]
        inputs_RT = pad_right([tail[:-1] for tail in rest], pad_id, device)
        lengths_R = torch.tensor([len(tail) - 1 for tail in rest], device=device)
        at_RT = torch.arange(inputs_RT.shape[1], device=device) < lengths_R[:, None]
        logits_NV = model(inputs_RT, mask_BT=at_RT, cache=cache, at_BT=at_RT)
        targets_N = torch.tensor([token for tail in rest for token in tail[1:]], device=device)
        judged = iter(_judged(logits_NV, targets_N))
        for place in more:
            found[place] += [next(judged) for _ in tails[place][1][1:]]
    return [
        LoglikelihoodResult(sum(s.log_prob for s in each), all(s.greedy for s in each))
        for each in found
    ]


def _judged(logits_NV: Tensor, targets_N: Tensor) -> list[LoglikelihoodResult]:
    """Each token by itself."""
    log_probs_NV = logits_NV.float().log_softmax(-1)
    own_N = log_probs_NV.gather(1, targets_N[:, None]).squeeze(1).double()
    greedy_N = logits_NV.argmax(-1) == targets_N
    return [
        LoglikelihoodResult(*made) for made in zip(own_N.tolist(), greedy_N.tolist(), strict=True)
    ]
