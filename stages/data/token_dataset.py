"""What a model is trained on: one store of tokens or a mixture of several, as samples."""

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
    """Stores of tokens of one vocabulary, and how samples of T inputs are made of them."""

    paths: tuple[Path, ...]
    length: int
    seed: int
    packing: Packing = "windows"
    weights: tuple[float, ...] = ()
    """One a store; none goes by the sizes, evened out by the temperature."""
    temperature: float = 1.0

    @cached_property
    def train(self) -> TokenWindows | BestFitSamples | Mixture:
        """Sample i of the run, for any i."""
        if len(self.paths) == 1:
            return self._samples(TokenStore(self.paths[0]), self.seed)
        return self.mixture

    @cached_property
    def mixture(self) -> Mixture:
        """The samples of all stores in the proportion of their weights.

        Raises:
            InputError: there are more or fewer weights than stores, or vocabularies differ.
        """
        stores = self.stores()
        sizes = [store.tokens for store in stores]
        weights = self.weights or temperature_weights(sizes, self.temperature)
        if len(weights) != len(stores):
            raise InputError(
                f"{len(weights)} weights for {len(stores)} stores of tokens",
                where="mixture.weights",
                remedy="give one for each, in order",
            )
        sources = [
            self._samples(store, fold64(self.seed, number)) for number, store in enumerate(stores)
        ]
        return Mixture(sources, weights)

    @property
    def held_out(self) -> TokenWindows | Interleaved:
        """Windows of what the stores hold out, of all those that hold out enough."""
        stores = self.stores("eval")
        enough = [store for store in stores if store.tokens > self.length] or stores[:1]
        parts = [store.samples(self.length) for store in enough]
        return parts[0] if len(parts) == 1 else Interleaved(parts)

    @property
    def facts(self) -> Mapping[str, float]:
        """What best-fit packing pads and cuts, over all stores once."""
        train = self.train
        found = train.sources if isinstance(train, Mixture) else [train]
        packed = [source for source in found if isinstance(source, BestFitSamples)]
        if not packed:
            return {}
        positions = sum(len(source) * self.length for source in packed)
        return {
            "padding": 1 - sum(source.store.tokens for source in packed) / positions,
            "cut_documents": sum(source.plan.cut for source in packed),
        }

    def stores(self, split: str = "train") -> list[TokenStore]:
        """The stores in order.

        Raises:
            InputError: they were packed with different tokenizers.
        """
        stores = [TokenStore(path, split) for path in self.paths]
        first = stores[0]
        for other in stores[1:]:
            if _differ(first, other):
                raise InputError(
                    f"{first.path} was packed with {_maker(first)}, {other.path} with "
                    f"{_maker(other)}",
                    where="tokens",
                    remedy="pack all of them with one tokenizer",
                )
        return stores

    def require_tokenizer(self, tokenizer: Vocabulary) -> None:
        """See that all tokens are a tokenizer's own.

        Raises:
            InputError: some are another's.
        """
        for store in self.stores():
            store.require_tokenizer(tokenizer)

    def _samples(self, store: TokenStore, seed: int) -> TokenWindows | BestFitSamples:
        if self.packing == "best_fit":
            return BestFitSamples(store, self.length, seed)
        return store.samples(self.length, seed)


def _differ(one: TokenStore, other: TokenStore) -> bool:
    """Whether two stores are of different tokenizers, as far as they say."""
    named = one.tokenizer and other.tokenizer
    return one.vocab_size != other.vocab_size or bool(named and one.tokenizer != other.tokenizer)


def _maker(store: TokenStore) -> str:
    return f"tokenizer {(store.tokenizer or 'unknown')[:12]} of {store.vocab_size} ids"
