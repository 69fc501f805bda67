"""Batched sampling with a static KV cache and the log-probabilities of the sampled tokens.

    prompts, padded on the left     <pad> <pad> a b c | x y </s>
                                      d     e   f g h | z ...

Every row samples by inverse transform from its own uniform numbers (`counter_rng`), so a response
depends on the seed, its index and its prompt, and not on the rest of the batch. Finished rows are
removed from the cache as soon as half of it is idle.

Shape suffixes: B rows, A active rows, T steps, V vocabulary, E end tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.generation.counter_rng import uniforms


class SamplingCache(Protocol):
    """The KV cache of a model, as sampling uses it."""

    def select_rows(self, rows: Tensor) -> None:
        """Remove all rows except these."""


class GenerativeModel(Protocol):
    """A model to sample from, such as `stages.models.gpt2.modeling_gpt2.GPT`."""

    def cache(self, batch: int, capacity: int) -> SamplingCache:
        """Return an empty cache."""

    def __call__(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        cache: SamplingCache | None = None,
        position_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Return logits."""


@dataclass(frozen=True)
class SamplingParams:
    """Options of sampling. Tokens are sampled from softmax(logits / temperature), restricted to the
    `top_k` most likely tokens, then to the smallest set of mass `top_p`, and renormalized.

    Raises:
        ValueError: a value is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0 means greedy decoding."""
    top_k: int = 0
    """0 means all tokens."""
    top_p: float = 1.0
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never sampled (probability 0 before renormalization)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.top_k < 0:
            raise ValueError(f"sampling parameters out of range: {self}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass
class Responses:
    """Sampled responses, padded on the right."""

    tokens: Tensor
    """(B, T) token ids, end token included."""
    mask: Tensor
    """(B, T) True where a token was sampled."""
    log_probs: Tensor
    """(B, T) log-probability under the sampling distribution; 0 in the padding."""
    finished: Tensor
    """(B) True if an end token was sampled, False if the limit was reached."""

    def ids(self, row: int, *, eos: bool = False) -> list[int]:
        """Return the ids of one response, with or without its end token."""
        length = int(self.mask[row].sum())
        ids: list[int] = self.tokens[row, :length].tolist()
        return ids if eos or not self.finished[row] else ids[:-1]


def sampling_log_probs(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    """Return the float32 log-probabilities_BV of the distribution that `params` describe.

    At temperature 0 all mass is on the most likely token.
    """
    logits_BV = _suppress(logits_BV.float(), params.suppress_tokens)
    if params.temperature == 0:
        best_B = logits_BV.argmax(-1, keepdim=True)
        return torch.full_like(logits_BV, -torch.inf).scatter(-1, best_B, 0.0)
    logits_BV = logits_BV / params.temperature
    if 0 < params.top_k < logits_BV.shape[-1]:
        floor_B = logits_BV.topk(params.top_k).values[..., -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < floor_B, -torch.inf)
    if params.top_p < 1:
        logits_BV = _apply_top_p(logits_BV, params.top_p)
    return logits_BV.log_softmax(-1)


def _suppress(logits_BV: Tensor, suppress_tokens: tuple[int, ...]) -> Tensor:
    """Return logits in which these tokens have probability 0."""
    if not suppress_tokens:
        return logits_BV
    return logits_BV.index_fill(
        -1, torch.tensor(suppress_tokens, device=logits_BV.device), -torch.inf
    )


def _apply_top_p(logits_BV: Tensor, mass: float) -> Tensor:
    """Keep the most likely tokens until their mass reaches `mass` (Holtzman et al. 2020)."""
    sorted_BV, order_BV = logits_BV.sort(-1, descending=True)
    probs_BV = sorted_BV.softmax(-1)
    beyond_BV = probs_BV.cumsum(-1) - probs_BV >= mass
    return logits_BV.masked_fill(
        torch.zeros_like(beyond_BV).scatter(-1, order_BV, beyond_BV), -torch.inf
    )


def draw_tokens(log_probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Sample token_B by inverse transform: the first whose cumulative probability exceeds the
    uniform number.

    Sums are float64, because in float32 the tail of a large vocabulary would lose its order.
    """
    cumulative_BV = log_probs_BV.double().exp().cumsum(-1)
    target_B = uniforms_B.to(cumulative_BV)[:, None] * cumulative_BV[:, -1:]
    # A product that rounds up to the total would select past the last possible token.
    target_B = target_B.minimum(cumulative_BV[:, -1:].nextafter(target_B.new_zeros(())))
    return torch.searchsorted(cumulative_BV, target_B, right=True).squeeze(-1)


@torch.inference_mode()
def sample(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Responses:
    """Sample one response to each prompt, all in one batch.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one each.
        params: sampling options.
        end_ids: tokens that end a response, each of them.
        pad_id: padding token.
        seed: random seed; seed and index of a row determine its random numbers.
        indices: index of each row. Default: its position.
        device: where the model is.
    """
    tokens_BT, mask_BT = pad_left(prompts, pad_id, device)
    B, P = tokens_BT.shape
    T = params.max_new_tokens
    uniforms_BT = torch.from_numpy(uniforms(seed, indices or range(B), T)).to(device)
    out = Responses(
        tokens_BT.new_full((B, T), pad_id),
        torch.zeros((B, T), dtype=torch.bool, device=device),
        torch.zeros((B, T), device=device),
        torch.zeros(B, dtype=torch.bool, device=device),
    )
    ends_E = torch.tensor(list(end_ids), dtype=torch.long, device=device)
    cache = model.cache(B, P + T)
    active_A = torch.arange(B, device=device)
    last_BT = torch.zeros_like(mask_BT)
    last_BT[:, -1] = True
    padded = not bool(mask_BT.all())
    logits_AV = model(
        tokens_BT, mask_BT=mask_BT if padded else None, cache=cache, position_mask_BT=last_BT
    )
    for t in range(T):
        tokens_A, log_probs_A = select_tokens(logits_AV, params, uniforms_BT[active_A, t])
        _write_step(out, active_A, t, tokens_A, log_probs_A, ends_E)
        running = (~out.finished[active_A]).nonzero().squeeze(1)
        if t + 1 == T or not len(running):
            break
        if 2 * len(running) <= len(active_A):
            cache.select_rows(running)
            active_A, tokens_A = active_A[running], tokens_A[running]
        logits_AV = model(tokens_A[:, None], cache=cache)[:, -1]
    longest = int(out.mask.sum(1).max())
    return Responses(
        out.tokens[:, :longest], out.mask[:, :longest], out.log_probs[:, :longest], out.finished
    )


def select_tokens(
    logits_BV: Tensor, params: SamplingParams, uniforms_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one token per row and its log-probability under the sampling distribution."""
    if params.temperature == 0:
        tokens_B = _suppress(logits_BV, params.suppress_tokens).argmax(-1)
        return tokens_B, torch.zeros(tokens_B.shape, device=tokens_B.device)
    log_probs_BV = sampling_log_probs(logits_BV, params)
    tokens_B = draw_tokens(log_probs_BV, uniforms_B)
    return tokens_B, log_probs_BV.gather(1, tokens_B[:, None]).squeeze(1)


def _write_step(
    out: Responses, rows_A: Tensor, t: int, tokens_A: Tensor, log_probs_A: Tensor, ends_E: Tensor
) -> None:
    """Write step `t` of the rows that had not finished before."""
    running_A = ~out.finished[rows_A]
    rows, tokens = rows_A[running_A], tokens_A[running_A]
    out.tokens[rows, t] = tokens
    out.mask[rows, t] = True
    out.log_probs[rows, t] = log_probs_A[running_A]
    out.finished[rows] = torch.isin(tokens, ends_E)


def length_sorted_batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield indices of the prompts in batches of similar length, to save padding."""
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return rows of ids, padded on the left: tokens_BT and mask_BT (False at padding)."""
    longest = max(len(row) for row in rows)
    padded = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    starts_B = torch.tensor([longest - len(row) for row in rows])
    mask_BT = torch.arange(longest)[None] >= starts_B[:, None]
    return torch.tensor(padded).to(device), mask_BT.to(device)
