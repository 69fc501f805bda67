"""Kinds of parallelism, and keys of other frameworks, that are not supported.

A pipeline file with such a key is refused before anything starts, with the reason and the
alternative.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.stage import UnsupportedKeys

_ALTERNATIVES = (
    "train.zero_stage 0 to 3, train.offload_optimizer, train.expert_parallel_size and "
    "model.activation_checkpointing can be combined as far as `headwater plan` accepts it"
)
_SEQUENCE = (
    "sequence parallelism (Ulysses) is not supported: document masks, groups of experts and the "
    "loss need a whole sample on one worker",
    "for long samples set model.activation_checkpointing and a smaller train.micro_batch_size; "
    + _ALTERNATIVES,
)
_TENSOR = (
    "tensor parallelism (DeepSpeed's AutoTP) is not supported: it shards matrices by layer name, "
    "and its checkpoints load at no other size",
    f"for weights that do not fit set train.zero_stage: 3; {_ALTERNATIVES}",
)
_PIPELINE = (
    "pipeline parallelism is not supported: DeepSpeed's needs a list of layers instead of a model, "
    "and ZeRO at most at stage 1",
    f"for weights that do not fit set train.zero_stage: 3; {_ALTERNATIVES}",
)
_CONFIG = (
    "a DeepSpeed config is not read: the stage builds it, without sequence (Ulysses), tensor "
    "(AutoTP) or pipeline parallelism",
    _ALTERNATIVES,
)
_LAYOUT = (
    "a layout has no section of its own, and sequence (Ulysses), tensor (AutoTP) and pipeline "
    "parallelism are not supported",
    _ALTERNATIVES,
)


def _spellings(*names: str) -> Iterator[str]:
    for name in names:
        yield from (name, f"{name}_size", f"{name}_degree")


LAYOUTS: UnsupportedKeys = {
    **dict.fromkeys(
        _spellings("sequence_parallel", "context_parallel", "ulysses", "sp", "cp"), _SEQUENCE
    ),
    **dict.fromkeys(["ulysses_sequence_parallel_size", "sequence_parallelism"], _SEQUENCE),
    **dict.fromkeys(
        _spellings("tensor_parallel", "tensor_model_parallel", "model_parallel", "autotp", "tp"),
        _TENSOR,
    ),
    **dict.fromkeys(["tensor_parallelism", "auto_tp"], _TENSOR),
    **dict.fromkeys(
        _spellings("pipeline_parallel", "pipeline_model_parallel", "pipeline", "pp"), _PIPELINE
    ),
    **dict.fromkeys(["pipeline_parallelism", "pipeline_stages", "num_stages"], _PIPELINE),
    **dict.fromkeys(
        ["deepspeed", "deepspeed_config", "ds_config", "zero_optimization", "zero_stage"], _CONFIG
    ),
    **dict.fromkeys(["layout", "parallel", "parallelism"], _LAYOUT),
}
"""Reason and alternative by unsupported key."""
