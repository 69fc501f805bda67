"""A model family: the decoder whose attention and feed-forward layer read the same input.

    tokens ─ embed ─┬─ norm ─┬─ attention ────┬─(+)─ … ─ norm ─ embed^T ─ logits
                    │        └─ feed-forward ─┘  │
                    └────────────────────────────┘
                              × layers

Parallel blocks are those of GPT-J and PaLM (Chowdhery et al. 2022, section 2). Without positions
(Kazemnejad et al. 2023), biases and dropout; the head is tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stages.models.language_model_config import LanguageModelConfig, Matrix
from stages.models.model_params import LanguageModelSection
from stages.models.registry import HFClasses, ModelFamily, register_family


@dataclass(frozen=True)
class ParallelConfig(LanguageModelConfig):
    """The shape of a parallel decoder."""

    intermediate_size: int
    norm_eps: float = 1e-5

    family = "parallel"
    tie_embeddings = True
    dropout = 0.0
    mup = None
    experts = None

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def parameters(self) -> int:
        attention, norms = 4 * self.hidden_size**2, (self.num_layers + 1) * self.hidden_size
        blocks = self.num_layers * (attention + self.feed_forward_parameters)
        return self.vocab_size * self.hidden_size + blocks + norms

    @property
    def active_parameters(self) -> int:
        return self.parameters

    @property
    def feed_forward_parameters(self) -> int:
        return 2 * self.hidden_size * self.intermediate_size

    @property
    def flops_per_token(self) -> int:
        return 6 * self.parameters + 12 * self.num_layers * self.hidden_size * self.context_length

    def block_matrices(self) -> Iterator[Matrix]:
        width, inner = self.hidden_size, self.intermediate_size
        yield Matrix(self.num_layers, 3 * width + inner, width)
        yield Matrix(self.num_layers, width, width + inner)

    def block_activation_bytes(
        self, itemsize: int, *, moe: bool, document_mask: bool, gpu: bool
    ) -> float:
        mask = itemsize * self.context_length if document_mask else 0
        kept = 7 * self.hidden_size + 2 * self.intermediate_size
        return itemsize * kept + 4 * self.num_heads + 8 + mask

    @property
    def merged_parameters(self) -> int:
        projections = 3 * self.hidden_size + self.intermediate_size
        return self.num_layers * self.hidden_size * projections

    @property
    def architecture_fields(self) -> dict[str, Any]:
        return {"family": self.family, **asdict(self)}


class ParallelSection(LanguageModelSection):
    """A parallel decoder."""

    family: Literal["parallel"] = "parallel"
    """`parallel`: attention and feed-forward layer read the same input; no positions."""

    def config(self, preset: str, vocab_size: int) -> ParallelConfig:
        if self.mup or self.dropout:
            raise ValueError("a parallel decoder has neither muP nor dropout")
        sizes = self.shape(preset)._replace(vocab_size=vocab_size)._asdict()
        inner = self.intermediate_size or 4 * sizes["hidden_size"]
        return ParallelConfig(**sizes, intermediate_size=inner, norm_eps=self.norm_eps or 1e-5)


def build(config: ParallelConfig) -> Any:
    """Return a model with fresh weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from stages.models.language_model import INIT_STD, LanguageModel

    class Block(nn.Module):
        def __init__(self, layer: int) -> None:
            super().__init__()
            width, inner = config.hidden_size, config.intermediate_size
            self.layer, self.sizes = layer, [width, width, width, inner]
            self.norm = nn.RMSNorm(width, eps=config.norm_eps)
            self.enter = nn.Linear(width, sum(self.sizes), bias=False)
            self.leave = nn.Linear(width + inner, width, bias=False)

        def forward(self, x_BTC, context):
            *qkv, hidden = self.enter(self.norm(x_BTC)).split(self.sizes, dim=-1)
            heads = (config.num_heads, config.head_size)
            q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in qkv)
            if context.cache is not None:
                k, v = context.cache.extend(self.layer, k, v)
            causal = context.mask is None and context.cache is None
            y_BHTD = F.scaled_dot_product_attention(
                q, k, v, attn_mask=context.mask, is_causal=causal
            )
            y_BTC = y_BHTD.transpose(1, 2).flatten(2)
            return x_BTC + self.leave(torch.cat([y_BTC, F.gelu(hidden)], dim=-1)), None

    class ParallelDecoder(LanguageModel):
        last_norm = "final_norm"
        query_weights = (".enter.weight",)

        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(Block(layer) for layer in range(config.num_layers))
            self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=INIT_STD)

        @property
        def blocks(self):
            return self.layers

        @property
        def lm_head_weight(self):
            return self.embedding.weight

        def embed(self, tokens_BT, positions_BT):
            return self.embedding(tokens_BT)

        def norm(self, x_BTC):
            return self.final_norm(x_BTC)

    return ParallelDecoder()


def conversion() -> Any:
    """Return the conversion from and to a folder."""
    from stages.models.weight_table import Concatenated, WeightEntry

    class ParallelConversion:
        body = "model."
        ignored = ()

        def config_json(self, config: ParallelConfig) -> dict[str, Any]:
            return {"model_type": "parallel_decoder", **asdict(config)}

        def read_config(self, raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> Any:
            return ParallelConfig(**{name: raw[name] for name in ParallelConfig.__match_args__})

        def weight_table(self, config: ParallelConfig) -> list[WeightEntry]:
            width, inner = config.hidden_size, config.intermediate_size
            rows = Concatenated((width, width, width, inner))
            table = [
                WeightEntry("embedding.weight", ("model.embedding.weight",)),
                WeightEntry("final_norm.weight", ("model.norm.weight",)),
            ]
            for layer in range(config.num_layers):
                ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
                parts = tuple(f"{theirs}.{name}_proj.weight" for name in ("q", "k", "v", "up"))
                table.append(WeightEntry(f"{ours}.norm.weight", (f"{theirs}.norm.weight",)))
                table.append(WeightEntry(f"{ours}.enter.weight", parts, rows))
                table.append(WeightEntry(f"{ours}.leave.weight", (f"{theirs}.out_proj.weight",)))
            return table

    return ParallelConversion()


register_family(
    ModelFamily(
        "parallel",
        frozenset({"causal", "kv_cache", "scalar_head"}),
        section=ParallelSection,
        build=build,
        conversion=conversion,
        hf_types={"parallel_decoder": HFClasses()},
    )
)
