"""The modern decoder: Llama, Qwen3, and Switch with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.llama.configuration_llama import (
    LlamaConfig,
    LlamaSection,
    Qwen3Section,
    SwitchSection,
)
from stages.models.registry import Capability, Conversion, HFClasses, ModelFamily, register_family

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.llama.modeling_llama import Llama


def _build(config: LlamaConfig) -> Llama:
    from stages.models.llama.modeling_llama import Llama

    return Llama(config)


def _conversion() -> Conversion:
    from stages.models.llama.conversion_llama import LlamaConversion

    return LlamaConversion()


def _upcycle(weights: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    from stages.models.llama.moe_upcycling import upcycle

    return upcycle(weights, config)


_DENSE: frozenset[Capability] = frozenset({"causal", "kv_cache", "scalar_head"})
register_family(
    ModelFamily(
        "llama",
        _DENSE,
        section=LlamaSection,
        build=_build,
        conversion=_conversion,
        hf_types={"llama": HFClasses("LlamaForCausalLM", "LlamaForSequenceClassification")},
    )
)
register_family(
    ModelFamily(
        "qwen3",
        _DENSE,
        section=Qwen3Section,
        build=_build,
        conversion=_conversion,
        hf_types={"qwen3": HFClasses("Qwen3ForCausalLM", "Qwen3ForSequenceClassification")},
    )
)
register_family(
    ModelFamily(
        "switch",
        _DENSE | {"experts"},
        section=SwitchSection,
        build=_build,
        conversion=_conversion,
        hf_types={
            "qwen3_moe": HFClasses("Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification")
        },
        upcycle=_upcycle,
    )
)
