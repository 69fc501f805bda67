"""Ways of spreading a training over devices that are known from elsewhere and not to be had here.

A pipeline file that asks for one is refused before anything starts, with the reason and with what
there is instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.stage import UnsupportedKeys

_INSTEAD = (
    "there is train.zero_stage 0 to 3, train.offload_optimizer, train.expert_parallel_size and model.activation_checkpointing, in any "
    "combination that `headwater plan` does not refuse"
)
_SEQUENCE = (
    "there is no sequence parallelism (Ulysses): a sample is computed whole on one worker, where "
    "document masks, experts' groups and the loss need it",
    f"for long samples set model.activation_checkpointing and a smaller train.micro_batch_size; {_INSTEAD}",
)
_TENSOR = (
    "there is no tensor parallelism (DeepSpeed's AutoTP): it cuts matrices by layer names, and "
    "what it saves loads at no other size",
    f"for weights that do not fit set train.zero_stage: 3; {_INSTEAD}",
)
_PIPELINE = (
    "there is no pipeline parallelism: DeepSpeed's takes a list of layers instead of a model, and "
    "ZeRO no further than stage 1",
    f"for weights that do not fit set train.zero_stage: 3; {_INSTEAD}",
)
_CONFIG = (
    "no DeepSpeed config is read: it is made of what the stage says, without sequence (Ulysses), "
    "tensor (AutoTP) or pipeline parallelism",
    _INSTEAD,
)
_LAYOUT = (
    "a layout has no section of its own, and there is no sequence (Ulysses), tensor (AutoTP) or "
    "pipeline parallelism",
    _INSTEAD,
)


def _spelled(*names: str) -> Iterator[str]:
    for name in names:
        yield from (name, f"{name}_size", f"{name}_degree")


LAYOUTS: UnsupportedKeys = {
    **dict.fromkeys(
        _spelled("sequence_parallel", "context_parallel", "ulysses", "sp", "cp"), _SEQUENCE
    ),
    **dict.fromkeys(["ulysses_sequence_parallel_size", "sequence_parallelism"], _SEQUENCE),
    **dict.fromkeys(
        _spelled("tensor_parallel", "tensor_model_parallel", "model_parallel", "autotp", "tp"),
        _TENSOR,
    ),
    **dict.fromkeys(["tensor_parallelism", "auto_tp"], _TENSOR),
    **dict.fromkeys(
        _spelled("pipeline_parallel", "pipeline_model_parallel", "pipeline", "pp"), _PIPELINE
    ),
    **dict.fromkeys(["pipeline_parallelism", "pipeline_stages", "num_stages"], _PIPELINE),
    **dict.fromkeys(
        ["deepspeed", "deepspeed_config", "ds_config", "zero_optimization", "zero_stage"], _CONFIG
    ),
    **dict.fromkeys(["layout", "parallel", "parallelism"], _LAYOUT),
}
"""By the key that asks for one: what is wrong, and what there is instead."""
