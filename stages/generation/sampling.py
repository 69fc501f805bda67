"""Batched sampling with a static cache, with the probability of what was drawn.

    prompts, padded on the left     <pad> <pad> a b c | x y </s>
                                      d     e   f g h | z …

Every row draws by inverse transform from its own uniforms (see `randomness`), so that a response
depends on the seed, its index and its prompt, and on nothing else in the batch. Rows that ended
leave the cache as soon as half of it is idle.

Shape suffixes: B rows, A rows still alive, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.generation.counter_rng import uniforms


class SamplingCache(Protocol):
    """The cache of a model, as far as sampling knows it."""

    def select_rows(self, rows: Tensor) -> None:
        """Forget all rows but these."""


class GenerativeModel(Protocol):
    """What can be sampled from; `stages.models.gpt2.modeling_gpt2.GPT` is one."""

    def cache(self, batch: int, capacity: int) -> SamplingCache:
        """An empty cache."""

    def __call__(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        cache: SamplingCache | None = None,
        at_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. The distribution drawn from is softmax(logits / temperature), cut to
    the `top_k` likeliest tokens and then to the smallest set of mass `top_p`, and renormalised.

    Raises:
        ValueError: a value is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0 takes the likeliest token always."""
    top_k: int = 0
    """0 keeps all tokens."""
    top_p: float = 1.0
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never drawn (their probability is 0 before renormalising)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.top_k < 0:
            raise ValueError(f"not a way of decoding: {self}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")

    @property
    def is_untruncated(self) -> bool:
        """Whether the distribution is softmax(logits / temperature) itself, nothing cut off."""
        return (
            self.temperature > 0 and not self.top_k and self.top_p == 1 and not self.suppress_tokens
        )


@dataclass
class Responses:
    """What was drawn, padded on the right."""

    tokens: Tensor
    """(B, T) token ids; the end token is included."""
    mask: Tensor
    """(B, T) True where a token was drawn."""
    log_probs: Tensor
    """(B, T) log-probability under the distribution drawn from; 0 where nothing was."""
    finished: Tensor
    """(B) whether the end token was drawn (False: cut off at the limit)."""

    def ids(self, row: int, *, eos: bool = False) -> list[int]:
        """The ids of one response, with or without its end token."""
        length = int(self.mask[row].sum())
        drawn: list[int] = self.tokens[row, :length].tolist()
        return drawn if eos or not self.finished[row] else drawn[:-1]


def sampling_log_probs(logits_BV: Tensor, decoding: SamplingParams) -> Tensor:
    """Log-probabilities_BV of the distribution that `decoding` draws from, in float32.

    At temperature 0 all mass is on the likeliest token.
    """
    logits_BV = _without(logits_BV.float(), decoding.suppress_tokens)
    if decoding.temperature == 0:
        best_B = logits_BV.argmax(-1, keepdim=True)
        return torch.full_like(logits_BV, -torch.inf).scatter(-1, best_B, 0.0)
    logits_BV = logits_BV / decoding.temperature
    if 0 < decoding.top_k < logits_BV.shape[-1]:
        floor_B = logits_BV.topk(decoding.top_k).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B, -torch.inf)
    if decoding.top_p < 1:
        logits_BV = _nucleus(logits_BV, decoding.top_p)
    return logits_BV.log_softmax(-1)


def _without(logits_BV: Tensor, suppress_tokens: tuple[int, ...]) -> Tensor:
    """Logits in which some tokens cannot be drawn."""
    if not suppress_tokens:
        return logits_BV
    return logits_BV.index_fill(
        -1, torch.tensor(suppress_tokens, device=logits_BV.device), -torch.inf
    )


def _nucleus(logits_BV: Tensor, mass: float) -> Tensor:
    """Keep the likeliest tokens until their mass reaches `mass` (Holtzman et al. 2020)."""
    sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
    probs_BV = sorted_BV.softmax(-1)
    beyond_BV = probs_BV.cumsum(-1) - probs_BV >= mass
    return logits_BV.masked_fill(
        torch.zeros_like(beyond_BV).scatter(-1, order_BV, beyond_BV), -torch.inf
    )


def draw_tokens(log_probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Token_B by inverse transform: the first whose cumulative probability exceeds the uniform.

    Sums in float64: in float32 the tail of a large vocabulary would lose its order.
    """
    cumulative_BV = log_probs_BV.double().exp().cumsum(-1)
    target_B = uniforms_B.to(cumulative_BV)[:, None] * cumulative_BV[:, -1:]
    # A product that rounds up to the total would fall past the last token that can be drawn.
    target_B = target_B.minimum(cumulative_BV[:, -1:].nextafter(target_B.new_zeros(())))
    return torch.searchsorted(cumulative_BV, target_B, right=True).squeeze(-1)


@torch.inference_mode()
def sample(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    decoding: SamplingParams,
    *,
    eos_id: int,
    pad_id: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Responses:
    """Draw one response to each prompt, all in one batch.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        decoding: how to draw.
        eos_id: ends a response.
        pad_id: fills up.
        seed: with a row's index, fixes what it draws.
        indices: each row's index; by default its place.
        device: where the model is.
    """
    tokens_BT, mask_BT = pad_left(prompts, pad_id, device)
    B, P = tokens_BT.shape
    T = decoding.max_new_tokens
    uniforms_BT = torch.from_numpy(uniforms(seed, indices or range(B), T)).to(device)
    out = Responses(
        tokens_BT.new_full((B, T), pad_id),
        torch.zeros((B, T), dtype=torch.bool, device=device),
        torch.zeros((B, T), device=device),
        torch.zeros(B, dtype=torch.bool, device=device),
    )
    cache = model.cache(B, P + T)
    alive_A = torch.arange(B, device=device)
    last_BT = torch.zeros_like(mask_BT)
    last_BT[:, -1] = True
    padded = not bool(mask_BT.all())
    logits_AV = model(tokens_BT, mask_BT=mask_BT if padded else None, cache=cache, at_BT=last_BT)
    for t in range(T):
        tokens_A, log_probs_A = select_tokens(logits_AV, decoding, uniforms_BT[alive_A, t])
        _record(out, alive_A, t, tokens_A, log_probs_A, eos_id)
        running = (~out.finished[alive_A]).nonzero().squeeze(1)
        if t + 1 == T or not len(running):
            break
        if 2 * len(running) <= len(alive_A):
            cache.select_rows(running)
            alive_A, tokens_A = alive_A[running], tokens_A[running]
        logits_AV = model(tokens_A[:, None], cache=cache)[:, -1]
    return _trimmed(out)


def select_tokens(
    logits_BV: Tensor, decoding: SamplingParams, uniforms_B: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability under the distribution that it is drawn from."""
    if decoding.temperature == 0:
        tokens_B = _without(logits_BV, decoding.suppress_tokens).argmax(-1)
        return tokens_B, torch.zeros(tokens_B.shape, device=tokens_B.device)
    log_probs_BV = sampling_log_probs(logits_BV, decoding)
    tokens_B = draw_tokens(log_probs_BV, uniforms_B)
    return tokens_B, log_probs_BV.gather(1, tokens_B[:, None]).squeeze(1)


def _record(
    out: Responses, rows_A: Tensor, t: int, tokens_A: Tensor, log_probs_A: Tensor, eos_id: int
) -> None:
    """Write step `t` of the rows that had not ended before it."""
    open_A = ~out.finished[rows_A]
    rows, tokens = rows_A[open_A], tokens_A[open_A]
    out.tokens[rows, t] = tokens
    out.mask[rows, t] = True
    out.log_probs[rows, t] = log_probs_A[open_A]
    out.finished[rows] = tokens == eos_id


def _trimmed(out: Responses) -> Responses:
    longest = int(out.mask.sum(1).max())
    return Responses(
        out.tokens[:, :longest],
        out.mask[:, :longest],
        out.log_probs[:, :longest],
        out.finished,
    )


def length_sorted_batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of the prompts in batches of alike lengths, so that little is padded."""
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Rows of ids flush to the right: tokens_BT and mask_BT."""
    longest = max(len(row) for row in rows)
    padded = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    starts_B = torch.tensor([longest - len(row) for row in rows])
    mask_BT = torch.arange(longest)[None] >= starts_B[:, None]
    return torch.tensor(padded).to(device), mask_BT.to(device)
