"""What one device holds while a language model is trained, by kind, and at most at once.

Weights, gradients and optimizer are those of Rajbhandari et al. 2020 (arXiv 1910.02054), section
5, but that gradients of 16 bits are added up in float32; activations are counted operator by
operator as Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, do, for our blocks: fused
attention keeps no scores, and the fused head no logits. Buffers are DeepSpeed's, at the sizes that
our engine sets.

A step has three high phases, and memory is needed for the highest:

    forward    all activations; gradients only of passes before (or where they have a place)
    backward   all gradients, and copies of them on their way; activations are used up
    update     the optimizer's own copies of its gradients

Imports no torch: `headwater plan` reads this module. Symbols as in `stages.training.planning.cost_model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.models.language_model_config import LlamaConfig, head_rows
from stages.training.planning.cost_model import choices, expert_parameters, switch_layers

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageConfig
    from stages.training.planning.cost_model import Layout

BUCKET, CPU_BUCKET = 50_000_000, 4_000_000
"""Numbers of a gradient that are reduced together at ZeRO 1-3, the engine's settings: no more than
the cache of a processor holds."""
PLAIN_BUCKET = 500_000_000
"""The same at ZeRO 0, which DeepSpeed fixes."""
LIVE = 1_000_000_000
"""Weights that ZeRO 3 keeps gathered because they are used again soon (DeepSpeed's default)."""
SUBGROUP = 1_000_000_000
"""Weights that ZeRO 3 updates at a time (DeepSpeed's default)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The kinds are not all there in full at once, so `peak` is less than
    their sum."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's two moments, and float32 masters from ZeRO 1 on."""
    activations: float
    """Of one micro-batch, with what its backward pass works with first."""
    buffers: float
    """Of collectives, and the copies that the update makes: the most at one time."""
    starting: float
    """What the device holds before the first step: DeepSpeed brings all weights there before ZeRO 3
    cuts them up."""
    peak: float

    @property
    def states(self) -> float:
        """What the model itself takes, whatever the batch."""
        return self.weights + self.gradients + self.optimizer


def memory(config: LanguageConfig, layout: Layout) -> Memory:
    """What one device holds."""
    spread = expert_parameters(config)
    return device_memory(
        layout,
        config.parameters - spread + spread / layout.expert_parallel_size,
        config.parameters / layout.world,
        activations(config, layout),
        largest=_largest(config),
        embedding=config.vocab_size * config.hidden_size,
        sending=_sending(config, layout),
    )


def device_memory(
    layout: Layout,
    whole: float,
    part: float,
    active: float,
    *,
    largest: float,
    embedding: float,
    sending: float = 0.0,
) -> Memory:
    """What one device holds of any model.

    Args:
        layout: how a step falls on devices.
        whole: weights that a device works with.
        part: those that it alone updates.
        active: bytes of activations.
        largest: weights of the largest module.
        embedding: weights of the table of tokens.
        sending: bytes on their way to other devices and from them.
    """
    size, zero = layout.bytes, layout.zero
    weights = size * (part if zero == 3 else whole)
    gradients = 4 * (part if zero >= 2 else whole)
    optimizer = 12 * part if zero else 8 * whole
    if layout.offload:
        optimizer = 0.0
    gathered = size * min(whole, LIVE + largest) if zero == 3 else 0.0
    standing = size * _standing(layout, whole) + gathered + sending
    reducing = gathered + size * (_reducing(layout, whole, largest) + embedding)
    updating = _updating(layout, whole, part)
    kept = gradients if layout.passes > 1 or zero == 3 else 0.0
    phases = (
        active + kept + standing,
        gradients + reducing,
        (gradients if zero in (0, 3) else 0.0) + updating,
    )
    starting = size * whole if zero == 3 else weights + optimizer
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=active,
        buffers=max(standing, reducing, updating),
        starting=starting,
        peak=max(starting, weights + optimizer + max(phases)),
    )


def host_memory(parameters: float, layout: Layout, per_node: int, reading: float = 0.0) -> float:
    """Bytes of a host's memory that the processes of one node take at once.

    Each draws all weights in float32, takes those of another model if it is to start from one, and
    rounds them if it computes in 16 bits, before it gives up what is not its own; then there is the
    offloaded optimizer with its gradients, a copy of what a save writes, and at the end the whole
    model in float32 once.

    Args:
        parameters: of the model.
        layout: how a step falls on devices.
        per_node: processes of a node.
        reading: bytes that one holds beside its own weights while it takes another model's.
    """
    ranks, part = min(layout.world, per_node), parameters / layout.world
    whole, saved = 4.0 * parameters, 12 * part
    offloaded = (16 + layout.bytes) * part if layout.offload else 0.0
    rounded = layout.bytes * parameters if layout.bytes < 4 else 0.0
    drawn = whole + max(reading, rounded)
    return max(ranks * max(drawn, whole + offloaded), ranks * (offloaded + saved) + whole)


def load_overhead(config: LanguageConfig) -> float:
    """Bytes beside a model's own while `stages.models.initialization` fills it from a folder: a second
    one with the folder's weights, and matrices put together of the file's. The file itself is
    mapped, and takes no memory that the system could not have back.

    Of a folder whose weights are float32, and of the same shape: others take less, as do those of a
    dense model that become experts.
    """
    return 4.0 * (config.parameters + _joined(config))


def _joined(config: LanguageConfig) -> int:
    """Weights that are put together: queries, keys and values; the two inner sides of a
    feed-forward layer; the experts of a layer. A GPT-2's lie in the file as they are, but muP's
    factors take a copy of its first."""
    if not isinstance(config, LlamaConfig):
        return 3 * config.num_layers * config.hidden_size * config.hidden_size if config.mup else 0
    heads = config.num_heads + 2 * config.num_kv_heads
    attention = config.num_layers * config.hidden_size * heads * config.head_size
    dense = (
        (config.num_layers - config.switch_layers)
        * 2
        * config.hidden_size
        * config.intermediate_size
    )
    return attention + dense + expert_parameters(config)


def _standing(layout: Layout, whole: float) -> float:
    """Numbers of the bucket that ZeRO 3 allocates at the start (a processor, page by page)."""
    if layout.zero < 3:
        return 0.0
    return BUCKET if layout.gpu else min(whole, CPU_BUCKET)


def _reducing(layout: Layout, whole: float, largest: float) -> float:
    """Numbers of gradients that wait for a bucket to fill, and of their flat copy; a tensor that is
    larger than a bucket is one."""
    if layout.zero == 0:
        return min(whole, PLAIN_BUCKET) if layout.world > 1 else 0.0
    flat = min(whole, max(largest, BUCKET if layout.gpu else CPU_BUCKET))
    waiting = flat if layout.zero == 2 else _standing(layout, whole)
    return flat + waiting + _summed(layout, whole) / layout.bytes


def _summed(layout: Layout, whole: float) -> float:
    """Bytes of this device's share of reduced gradients beside the whole ones, at ZeRO 1 in 16
    bits."""
    return 4 * whole / layout.world if layout.zero == 1 and layout.bytes < 4 else 0.0


def _updating(layout: Layout, whole: float, part: float) -> float:
    """Bytes of the copies of a device's gradients that the update makes: ZeRO 1-2 flattens them,
    and what is float32 already a second time."""
    if layout.zero == 0 or layout.offload:
        return 0.0
    if layout.zero == 3:
        return 4 * min(part, SUBGROUP)
    return part * (8 if layout.bytes == 4 else 4)


def _sending(config: LanguageConfig, layout: Layout) -> float:
    """Bytes of the tokens that go to experts elsewhere, and of those that come: loads are taken
    for even."""
    if layout.expert_parallel_size == 1:
        return 0.0
    positions = layout.micro * config.context_length
    return 2.0 * layout.bytes * config.hidden_size * choices(config) * positions


def _largest(config: LanguageConfig) -> float:
    """Weights of the largest module: what ZeRO 3 gathers at once."""
    experts = getattr(config, "experts", None)
    inner = config.intermediate_size * (3 * experts.num_experts if experts else 1)
    return float(config.hidden_size * max(config.vocab_size, inner))


# --- activations -------------------------------------------------------------------------------


def activations(config: LanguageConfig, layout: Layout) -> float:
    """Bytes that one micro-batch keeps for its backward pass, at their most: the end of the
    forward pass, with what the head, and then the last block, work with."""
    positions = layout.micro * config.context_length
    stream = layout.bytes * config.hidden_size
    experts = switch_layers(config)
    plain, switch = (positions * block(config, layout, experts=x) for x in (False, True))
    largest = switch if experts else plain
    if layout.activation_checkpointing:
        kept = float(config.num_layers * stream * positions)
        again = largest - stream * positions
    else:
        kept = (config.num_layers - experts) * plain + experts * switch
        again = 0.0
    ends = 2 * stream * positions  # what the last norm keeps, and the gradient that it will get
    head_weight = layout.bytes * config.vocab_size * config.hidden_size
    working = positions * _working(config, layout)
    return kept + ends + head_weight + max(again + working, _head(config, layout))


def block(config: LanguageConfig, layout: Layout, *, experts: bool = False) -> float:
    """Bytes that one block keeps a position: attention keeps a float32 a head and, of a mask, a
    number for each position it may see."""
    size, width = layout.bytes, config.hidden_size
    softmax = 4 * config.num_heads + (size * config.context_length if layout.masked else 0)
    if not isinstance(config, LlamaConfig):
        # Each norm's input and output; queries, keys, values; what they make; GELU's two sides.
        masks = 2 * width if config.dropout else 0
        return size * (8 * width + 2 * config.intermediate_size) + softmax + 16 + masks
    # Each norm's input and output; projections; queries and keys turned; what they make.
    heads = 3 * (config.num_heads + config.num_kv_heads) * config.head_size
    kept = size * (4 * width + heads) + softmax + _norms(config, layout)
    if not (experts and config.experts):
        return kept + size * 3 * config.intermediate_size  # gate and up, and their product
    # The router's input in float32 and its two outputs; for each choice the hidden layer, the token
    # sent, its answer as it is and times its gate, and where they came from and go.
    router = 8 * config.experts.num_experts + (0 if size == 4 else 4 * width)
    chosen = config.experts.top_k * (size * (3 * config.intermediate_size + 3 * width) + 24)
    return kept + router + chosen


def _norms(config: LlamaConfig, layout: Layout) -> float:
    """Two RMSNorms: a number each where they are one kernel; on a processor they are several
    operators, which keep what they scaled in float32 too (and attention to normalised queries
    answers head by head, which is put in order in a copy)."""
    normed = config.num_heads + config.num_kv_heads if config.qk_norm else 0
    numbers = 2 + normed
    if not layout.gpu:
        numbers += 2 * config.hidden_size + normed * config.head_size
        numbers += config.num_heads * config.head_size if config.qk_norm else 0
    return 4.0 * numbers


def _working(config: LanguageConfig, layout: Layout) -> float:
    """Bytes a position of the gradients inside a block when its backward pass begins: of the
    stream, and of the hidden layer's sides."""
    gated = isinstance(config, LlamaConfig)
    times = max(1, choices(config))
    inner = config.intermediate_size * (2 if gated else 1) * times
    return float(layout.bytes * (2 * config.hidden_size + inner))


def _head(config: LanguageConfig, layout: Layout) -> float:
    """Bytes that the fused head works with: its input, some rows of logits, and the gradient of
    its weight in float32."""
    positions = layout.micro * config.context_length
    low = layout.bytes < 4
    rows = head_rows(config.vocab_size, gpu=layout.gpu)
    logits = min(rows, positions) * config.vocab_size * (10 if low else 8)
    sums = 6 * config.vocab_size * config.hidden_size if low else 0
    return float(layout.bytes * config.hidden_size * positions + logits + sums)
