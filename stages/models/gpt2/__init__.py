"""GPT-2 and GPT-3: the pre-LayerNorm decoder with learned positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.gpt2.configuration_gpt2 import GPT2Section, GPTConfig
from stages.models.registry import Conversion, HFClasses, ModelFamily, register_family

if TYPE_CHECKING:
    from stages.models.gpt2.modeling_gpt2 import GPT


def _build(config: GPTConfig) -> GPT:
    from stages.models.gpt2.modeling_gpt2 import GPT

    return GPT(config)


def _conversion() -> Conversion:
    from stages.models.gpt2.conversion_gpt2 import GPT2Conversion

    return GPT2Conversion()


register_family(
    ModelFamily(
        "gpt2",
        frozenset({"causal", "kv_cache", "scalar_head"}),
        section=GPT2Section,
        build=_build,
        conversion=_conversion,
        hf_types={"gpt2": HFClasses("GPT2LMHeadModel", "GPT2ForSequenceClassification")},
    )
)
