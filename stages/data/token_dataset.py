"""Training samples of a language model from one token store or a mixture of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from stages.data.best_fit_packing import BestFitSamples
from stages.data.hashing import fold64
from stages.data.mixture import Interleaved, Mixture, temperature_weights
from stages.data.token_store import TokenStore, TokenWindows, Vocabulary

Packing = Literal["windows", "best_fit"]


@dataclass(frozen=True)
class TokenDataset:
    """Token stores of one vocabulary, read as samples of `length` inputs."""

    paths: tuple[Path, ...]
    length: int
    seed: int
    packing: Packing = "windows"
    weights: tuple[float, ...] = ()
    """One per store. Default: by size and `temperature`."""
    temperature: float = 1.0

    @cached_property
    def train(self) -> TokenWindows | BestFitSamples | Mixture:
        """Samples of the run, for any index."""
        if len(self.paths) == 1:
            return self._samples(TokenStore(self.paths[0]), self.seed)
        return self.mixture

    @cached_property
    def mixture(self) -> Mixture:
        """Samples of all stores in proportion to their weights.

        Raises:
            InputError: the number of weights is not that of the stores, or tokenizers differ.
        """
        stores = self.stores()
        sizes = [store.tokens for store in stores]
        weights = self.weights or temperature_weights(sizes, self.temperature)
        if len(weights) != len(stores):
            raise InputError(
                f"{len(weights)} weights for {len(stores)} token stores",
                where="mixture.weights",
                remedy="give one weight per store, in order",
            )
        sources = [
            self._samples(store, fold64(self.seed, number)) for number, store in enumerate(stores)
        ]
        return Mixture(sources, weights)

    @property
    def eval(self) -> TokenWindows | Interleaved:
        """Windows of the held-out tokens, of all stores that have enough for one window."""
        stores = self.stores("eval")
        enough = [store for store in stores if store.tokens > self.length] or stores[:1]
        parts = [store.samples(self.length) for store in enough]
        return parts[0] if len(parts) == 1 else Interleaved(parts)

    @property
    def packing_metrics(self) -> Mapping[str, float]:
        """Padding and split documents of best-fit packing, over one epoch of all stores."""
        train = self.train
        found = train.sources if isinstance(train, Mixture) else [train]
        packed = [source for source in found if isinstance(source, BestFitSamples)]
        if not packed:
            return {}
        positions = sum(len(source) * self.length for source in packed)
        return {
            "padding": 1 - sum(source.store.tokens for source in packed) / positions,
            "cut_documents": sum(source.plan.num_split for source in packed),
        }

    def stores(self, split: str = "train") -> list[TokenStore]:
        """Return the stores, in order.

        Raises:
            InputError: they were packed with different tokenizers.
        """
        stores = [TokenStore(path, split) for path in self.paths]
        first = stores[0]
        for other in stores[1:]:
            if _tokenizers_differ(first, other):
                raise InputError(
                    f"{first.path} was packed with {_describe_tokenizer(first)}, {other.path} with "
                    f"{_describe_tokenizer(other)}",
                    where="tokens",
                    remedy="pack all of them with one tokenizer",
                )
        return stores

    def require_tokenizer(self, tokenizer: Vocabulary) -> None:
        """Check that all stores were packed with this tokenizer.

        Raises:
            InputError: one was packed with another tokenizer.
        """
        for store in self.stores():
            store.require_tokenizer(tokenizer)

    def _samples(self, store: TokenStore, seed: int) -> TokenWindows | BestFitSamples:
        if self.packing == "best_fit":
            return BestFitSamples(store, self.length, seed)
        return store.samples(self.length, seed)


def _tokenizers_differ(one: TokenStore, other: TokenStore) -> bool:
    """Return whether two stores have different tokenizers, as far as known."""
    named = one.tokenizer and other.tokenizer
    return one.vocab_size != other.vocab_size or bool(named and one.tokenizer != other.tokenizer)


def _describe_tokenizer(store: TokenStore) -> str:
    return f"tokenizer {(store.tokenizer or 'unknown')[:12]} of {store.vocab_size} ids"
