"""The memory of one device while a model is trained, by kind and at its peak.

Weights, gradients and optimizer are those of Rajbhandari et al. 2020 (arXiv 1910.02054), section 5,
except that 16-bit gradients are summed in float32; activations are counted operator by operator as
in Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, for the blocks here: fused attention
keeps no scores, and the fused head no logits. Buffers are DeepSpeed's, at the sizes that the engine
sets.

A step has three phases, and memory is needed for the largest:

    forward    all activations; gradients of earlier passes only (or where they have a place)
    backward   all gradients, and copies of them on their way; activations are used up
    update     the optimizer's own copies of its gradients

Imports no torch: `headwater plan` reads this module. Symbols as in
`stages.training.planning.cost_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.models.language_model_config import head_rows

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageModelConfig
    from stages.training.planning.device_layout import Layout

BUCKET, CPU_BUCKET = 50_000_000, 4_000_000
"""Numbers of a gradient that are reduced together at ZeRO 1 to 3, as the engine sets them: no more
than the cache of a CPU holds."""
PLAIN_BUCKET = 500_000_000
"""The same at ZeRO 0, which DeepSpeed fixes."""
LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered because they are used again soon (DeepSpeed's default)."""
SUBGROUP = 1_000_000_000
"""Weights that ZeRO 3 updates at a time (DeepSpeed's default)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Not all kinds are there in full at once, so `peak` is less than their
    sum."""

    weights: float
    gradients: float
    optimizer: float
    """The optimizer's states, and float32 master weights from ZeRO 1 on."""
    activations: float
    """Activations of one micro-batch, with the gradients at the start of its backward pass."""
    buffers: float
    """Buffers of collectives and the copies of an update: the most at one time."""
    initialization: float
    """Bytes before the first step: DeepSpeed moves all weights to the device before ZeRO 3 shards
    them."""
    peak: float

    @property
    def states(self) -> float:
        """Bytes of the model itself, whatever the batch."""
        return self.weights + self.gradients + self.optimizer


def language_model_memory(
    config: LanguageModelConfig, layout: Layout, trained_share: float = 1.0
) -> Memory:
    """Return what one device holds of a language model, of whose weights a share is trained."""
    experts = config.expert_parameters
    return device_memory(
        layout,
        config.parameters - experts + experts / layout.expert_parallel_size,
        config.parameters / layout.world,
        activations(config, layout),
        largest_module_weights=_largest_module(config),
        embedding=config.vocab_size * config.hidden_size,
        exchange=_exchange_bytes(config, layout),
        trained_share=trained_share,
    )


def device_memory(
    layout: Layout,
    num_weights: float,
    num_owned_weights: float,
    activations: float,
    *,
    largest_module_weights: float,
    embedding: float,
    exchange: float = 0.0,
    trained_share: float = 1.0,
) -> Memory:
    """Return what one device holds of any model.

    Args:
        layout: how a step is divided among devices.
        num_weights: weights that a device computes with.
        num_owned_weights: weights that it alone updates.
        activations: bytes of activations.
        largest_module_weights: weights of the largest module.
        embedding: weights of the token embedding.
        exchange: bytes on their way to other devices and from them.
        trained_share: share of the weights that have gradients and optimizer states.
    """
    size, zero, states = layout.bytes, layout.zero_stage, layout.optimizer.state_bytes
    trained, owned_trained = num_weights * trained_share, num_owned_weights * trained_share
    weights = size * (num_owned_weights if zero == 3 else num_weights)
    gradients = 4 * (owned_trained if zero >= 2 else trained)
    optimizer = (4 + states) * owned_trained if zero else states * trained
    if layout.offload:
        optimizer = 0.0
    gathered = size * min(num_weights, LIVE + largest_module_weights) if zero == 3 else 0.0
    preallocated = size * _preallocated_bucket_elements(layout, trained) + gathered + exchange
    elements = _reduction_bucket_elements(layout, trained, largest_module_weights)
    reduction = gathered + size * (elements + min(embedding, trained))
    update = _update_copy_bytes(layout, trained, owned_trained)
    kept = gradients if layout.gradient_accumulation_steps > 1 or zero == 3 else 0.0
    phases = (
        activations + kept + preallocated,
        gradients + reduction,
        (gradients if zero in (0, 3) else 0.0) + update,
    )
    initialization = size * num_weights if zero == 3 else weights + optimizer
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        buffers=max(preallocated, reduction, update),
        initialization=initialization,
        peak=max(initialization, weights + optimizer + max(phases)),
    )


def host_memory(
    parameters: float, layout: Layout, devices_per_node: int, load_overhead: float = 0.0
) -> float:
    """Return the bytes of host memory that the processes of one node take at once.

    Each draws all weights in float32, loads those of another model if it starts from one, and
    rounds them if it computes in 16 bits, before it releases what is not its own; then there is the
    offloaded optimizer with its gradients, a copy of what a save writes, and at the end the whole
    model in float32 once.

    Args:
        parameters: of the model.
        layout: how a step is divided among devices.
        devices_per_node: processes of a node.
        load_overhead: bytes that each holds next to its own weights while it loads another model's.
    """
    ranks, owned_weights = min(layout.world, devices_per_node), parameters / layout.world
    states = layout.optimizer.state_bytes
    model_bytes, save_bytes = 4.0 * parameters, (4 + states) * owned_weights
    offload_bytes = (8 + states + layout.bytes) * owned_weights if layout.offload else 0.0
    rounded_bytes = layout.bytes * parameters if layout.bytes < 4 else 0.0
    initialization = model_bytes + max(load_overhead, rounded_bytes)
    return max(
        ranks * max(initialization, model_bytes + offload_bytes),
        ranks * (offload_bytes + save_bytes) + model_bytes,
    )


def _preallocated_bucket_elements(layout: Layout, num_weights: float) -> float:
    """Return the elements of the bucket that ZeRO 3 allocates at the start (on a CPU, page by
    page)."""
    if layout.zero_stage < 3:
        return 0.0
    return BUCKET if layout.gpu else min(num_weights, CPU_BUCKET)


def _reduction_bucket_elements(
    layout: Layout, num_weights: float, largest_module_weights: float
) -> float:
    """Return the elements of the gradients that wait for a bucket to fill, and of their flat copy;
    a tensor that is larger than a bucket is a bucket of its own."""
    if layout.zero_stage == 0:
        return min(num_weights, PLAIN_BUCKET) if layout.world > 1 else 0.0
    flat = min(num_weights, max(largest_module_weights, BUCKET if layout.gpu else CPU_BUCKET))
    waiting = flat if layout.zero_stage == 2 else _preallocated_bucket_elements(layout, num_weights)
    return flat + waiting + _reduced_gradient_bytes(layout, num_weights) / layout.bytes


def _reduced_gradient_bytes(layout: Layout, num_weights: float) -> float:
    """Return the bytes of the reduced gradients of a device's own weights, which ZeRO 1 in 16 bits
    keeps next to the gradients of all weights."""
    return 4 * num_weights / layout.world if layout.zero_stage == 1 and layout.bytes < 4 else 0.0


def _update_copy_bytes(layout: Layout, num_weights: float, num_owned_weights: float) -> float:
    """Return the bytes of the copies that an update makes: ZeRO 1 and 2 flatten a device's
    gradients, and those that are float32 already a second time; the momentum of whole matrices is
    gathered where the optimizer needs it."""
    if layout.zero_stage == 0 or layout.offload:
        return 0.0
    if layout.zero_stage == 3:
        return 4 * min(num_owned_weights, SUBGROUP)
    copies = num_owned_weights * (8 if layout.bytes == 4 else 4)
    return copies + 4 * layout.optimizer.gathered_weights


def _exchange_bytes(config: LanguageModelConfig, layout: Layout) -> float:
    """Return the bytes of the tokens that go to experts elsewhere, and of those that come, with an
    even load."""
    if layout.expert_parallel_size == 1:
        return 0.0
    positions = layout.micro_batch_size * config.context_length
    return 2.0 * layout.bytes * config.hidden_size * config.experts_per_token * positions


def _largest_module(config: LanguageModelConfig) -> float:
    """Return the weights of the largest module: what ZeRO 3 gathers at once."""
    experts = 3 * config.experts.num_experts if config.experts else 1
    return float(config.hidden_size * max(config.vocab_size, config.intermediate_size * experts))


# --- activations -------------------------------------------------------------------------------


def activations(config: LanguageModelConfig, layout: Layout) -> float:
    """Return the bytes that one micro-batch keeps for its backward pass, at their most: the end of
    the forward pass, with what the head, and then the last block, work with."""
    positions = layout.micro_batch_size * config.context_length
    stream = layout.bytes * config.hidden_size
    moe_layers = len(config.moe_layers)
    dense, moe = (positions * _block(config, layout, moe=moe) for moe in (False, True))
    if layout.activation_checkpointing:
        kept = float(config.num_layers * stream * positions)
        again = (moe if moe_layers else dense) - stream * positions
    else:
        kept = (config.num_layers - moe_layers) * dense + moe_layers * moe
        again = 0.0
    ends = 2 * stream * positions  # what the last norm keeps, and the gradient that it will get
    head_weight = layout.bytes * config.vocab_size * config.hidden_size
    working = positions * _block_gradients(config, layout)
    return kept + ends + head_weight + max(again + working, _head(config, layout))


def _block(config: LanguageModelConfig, layout: Layout, *, moe: bool) -> float:
    return config.block_activation_bytes(
        layout.bytes, moe=moe, document_mask=layout.document_mask, gpu=layout.gpu
    )


def _block_gradients(config: LanguageModelConfig, layout: Layout) -> float:
    """Return the bytes per position of the gradients inside a block when its backward pass begins:
    of the stream, and of the hidden layer's sides."""
    times = max(1, config.experts_per_token)
    inner = config.intermediate_size * (2 if config.gated else 1) * times
    return float(layout.bytes * (2 * config.hidden_size + inner))


def _head(config: LanguageModelConfig, layout: Layout) -> float:
    """Return the bytes that the fused head works with: its input, some rows of logits, and the
    gradient of its weight in float32."""
    positions = layout.micro_batch_size * config.context_length
    low = layout.bytes < 4
    rows = head_rows(config.vocab_size, gpu=layout.gpu)
    logits = min(rows, positions) * config.vocab_size * (10 if low else 8)
    sums = 6 * config.vocab_size * config.hidden_size if low else 0
    return float(layout.bytes * config.hidden_size * positions + logits + sums)
