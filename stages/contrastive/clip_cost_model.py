"""What training a CLIP costs, before any process starts: arithmetic, memory, traffic.

    run = Run(config, pairs=32768, local=True)
    work = arithmetic(run, layout, samples)
    held = memory(run, layout)
    sent = traffic(run, layout)

What is alike for all models (weights, gradients, optimizer, their traffic, time) is in
`stages.training.planning.cost_model` and `stages.training.planning.memory_model`; this is what is CLIP's own: two towers whose
activations meet in one loss, the logits of each image and each caption of the batch, features that
travel to all devices, and gradient caching, which embeds every pair twice.

Imports no torch: `headwater plan` reads this module. Symbols: n devices, B pairs of a device, G of
the step, E dimensions of an embedding, T tokens or patches of a sample, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from stages.training.planning.cost_model import Arithmetic, Traffic, of_weights
from stages.training.planning.memory_model import device_memory

if TYPE_CHECKING:
    from stages.training.planning.cost_model import Layout
    from stages.training.planning.memory_model import Memory

FLOAT = 4
"""Bytes of a number of an embedding or of a logit, whatever the model computes in."""


@dataclass(frozen=True)
class Run:
    """A CLIP and how it is trained."""

    config: CLIPConfig
    pairs: int
    """Of a step, over all devices."""
    kept: int | None = None
    """Patches of an image that are looked at; None is all of them."""
    local: bool = True
    """Whether each device computes its own rows and columns of the logits alone."""

    @property
    def sigmoid(self) -> bool:
        """Whether the loss is SigLIP's, for which captions alone travel."""
        return self.config.bias


# --- arithmetic --------------------------------------------------------------------------------


def image_flops(run: Run) -> float:
    """Of a forward and backward pass on an image."""
    return 3.0 * run.config.vision.flops(run.config.embed_dim, run.kept)


def text_flops(run: Run) -> float:
    """Of a forward and backward pass on a caption that fills the context."""
    return 3.0 * run.config.text.flops(run.config.embed_dim)


def similarity_flops(run: Run) -> float:
    """Of a pair's share of the logits of a step, forward and backward: it meets G others."""
    return 3 * 2.0 * run.config.embed_dim * run.pairs


def arithmetic(run: Run, layout: Layout, samples: float) -> Arithmetic:
    """FLOPs of a training on so many pairs, and the tokens of their captions at most."""
    # Of CLIP's logits each device computes its rows and its columns, or all of them.
    times = 1 if run.sigmoid or layout.world == 1 else 2 if run.local else layout.world
    image, text = _computed(run)
    again = (image + text) / 3 if layout.passes > 1 else 0.0
    if layout.activation_checkpointing:  # of transformer blocks alone
        again += (text + (0.0 if isinstance(run.config.vision, ResNetConfig) else image)) / 3
    return Arithmetic(
        tokens=float(samples) * run.config.text.context_length,
        flops=samples * (image_flops(run) + text_flops(run) + similarity_flops(run)),
        hardware_flops=samples * (image + text + again + times * similarity_flops(run)),
    )


def _computed(run: Run) -> tuple[float, float]:
    """`image_flops` and `text_flops`, but for what nobody reads."""
    config = run.config
    return (
        image_flops(run) - 3.0 * config.vision.unread_flops(run.kept),
        text_flops(run) - 3.0 * config.text.unread_flops(),
    )


# --- traffic -----------------------------------------------------------------------------------


def traffic(run: Run, layout: Layout) -> Traffic:
    """Bytes that one device sends in a step. `exchanged` are features: all devices get all of
    them, and each gradient is summed over all devices, which sends them twice."""
    around = (layout.world - 1) / layout.world
    ring = run.config.parameters * around * layout.bytes
    # Gradient caching embeds without a graph first.
    reduced, gathered = of_weights(ring, layout, forwards=2 if layout.passes > 1 else 1)
    sides = 1 if run.sigmoid else 2
    features = sides * around * run.pairs * run.config.embed_dim * FLOAT
    return Traffic(reduced, gathered, exchanged=3 * features)


# --- memory ------------------------------------------------------------------------------------


def memory(run: Run, layout: Layout) -> Memory:
    """What one device holds."""
    config = run.config
    return device_memory(
        layout,
        config.parameters,
        config.parameters / layout.world,
        activations(run, layout),
        largest=_largest(config),
        embedding=config.text.vocab_size * config.text.hidden_size,
    )


def load_overhead(config: CLIPConfig) -> float:
    """As `stages.training.planning.memory_model.load_overhead`, of a `base`: the blocks of a model with a ViT lie in the
    file in parts, and their queries, keys and values are put together."""
    joined = 0
    if isinstance(config.vision, ViTConfig):
        towers = (config.vision, config.text)
        joined = sum(
            3 * tower.num_layers * tower.hidden_size * (tower.hidden_size + 1) for tower in towers
        )
    return float(FLOAT * (config.parameters + joined))


def _largest(config: CLIPConfig) -> float:
    vision, text = config.vision, config.text
    widest = vision.features if isinstance(vision, ResNetConfig) else 2 * vision.hidden_size
    return float(max(widest**2, text.vocab_size * text.hidden_size))


def activations(run: Run, layout: Layout) -> float:
    """Bytes at their most: of both towers and the loss at the end of the forward pass, or of what
    is left with what a tower's last block works with. Gradient caching computes the loss without
    the towers' activations, which are those of one micro-batch."""
    image, text = image_bytes(run, layout), text_bytes(run, layout)
    image_working, text_working = _working(run, layout)
    towers = max(image + text + text_working, image + image_working)
    similarity = similarity_bytes(run, layout)
    if layout.passes > 1:
        share = layout.micro * layout.passes
        kept = 4.0 * FLOAT * share * run.config.embed_dim  # what was embedded, and its gradient
        return batch_bytes(run, layout) + kept + max(towers, similarity)
    return batch_bytes(run, layout) + max(towers, image + text + similarity)


def batch_bytes(run: Run, layout: Layout) -> float:
    """Of all the pairs of a device in a step: pixels in float32 and ids."""
    share = layout.micro * layout.passes
    return share * (
        FLOAT * 3.0 * run.config.vision.image_size**2 + 8 * run.config.text.context_length
    )


def similarity_bytes(run: Run, layout: Layout) -> float:
    """Of the loss: features of all devices with gradients, logits with what their softmax, or
    sigmoid, keeps and gives back."""
    B, G = layout.micro * layout.passes, run.pairs
    gathered = 0 if layout.world == 1 else 1 if run.sigmoid else 2
    features = gathered * 2.5 * G * run.config.embed_dim  # one at a time is copied on its way
    if run.sigmoid:
        logits = 5 * B * G
    elif run.local and layout.world > 1:
        logits = 4 * B * G
    else:
        logits = 5 * G * G
    return FLOAT * (features + logits)


def image_bytes(run: Run, layout: Layout) -> float:
    """What the image tower keeps of a micro-batch for its backward pass."""
    vision, size = run.config.vision, layout.bytes
    if isinstance(vision, ResNetConfig):
        # The pixels; what each convolution gives, and that after its norm and nonlinearity.
        numbers = sum(2.0 * c.out * c.side**2 for c in vision.convolutions())
        return layout.micro * size * (3 * vision.image_size**2 + numbers)
    patches = vision.patches if run.kept is None else run.kept
    ends = size * (3 * vision.patch_size**2 * patches + vision.hidden_size * (patches + 1))
    return layout.micro * (ends + _blocks(vision, layout, patches + 1))


def text_bytes(run: Run, layout: Layout) -> float:
    """What the text tower keeps of a micro-batch for its backward pass."""
    text = run.config.text
    return layout.micro * _blocks(text, layout, text.context_length)


def _blocks(tower: ViTConfig | TextConfig, layout: Layout, tokens: int) -> float:
    if layout.activation_checkpointing:
        return float(tokens * tower.num_layers * layout.bytes * tower.hidden_size)
    others = (tower.num_layers - 1) * block(tower, layout) + last_block(tower, layout)
    return tokens * others + block(tower, layout)


def block(tower: ViTConfig | TextConfig, layout: Layout) -> float:
    """Bytes that one block keeps a token: input and output of its norms, queries, keys and values,
    what they make, and the hidden layer before and after its activation; attention and norms keep
    float32s."""
    return layout.bytes * 16 * tower.hidden_size + 4 * tower.num_heads + 16


def last_block(tower: ViTConfig | TextConfig, layout: Layout) -> float:
    """The same of the last block, of a token that is not read: what makes its key and value."""
    return layout.bytes * 4 * tower.hidden_size + 8


def _working(run: Run, layout: Layout) -> tuple[float, float]:
    """Bytes that the towers work with, beyond all that they keep, when their backward passes are in
    a last block."""
    vision, text = run.config.vision, run.config.text
    if isinstance(vision, ResNetConfig):
        image = 2.0 * layout.bytes * max(c.out * c.side**2 for c in vision.convolutions())
    else:
        patches = vision.patches if run.kept is None else run.kept
        image = (patches + 1) * _block_working(vision, layout)
    return layout.micro * image, layout.micro * text.context_length * _block_working(text, layout)


def _block_working(tower: ViTConfig | TextConfig, layout: Layout) -> float:
    """Of a token, whichever is more: the gradients of keys, values, their input and the stream in
    the last block, or, with what that kept given back, those of the stream and of both sides of the
    hidden layer in the one before; and the block that is made again."""
    stream = layout.bytes * tower.hidden_size
    last, before = 4.0 * stream, 6.0 * stream
    kept = last_block(tower, layout)
    if layout.activation_checkpointing:
        last += kept - stream
        before += block(tower, layout) - stream
        kept = stream
    return max(last, before - kept) if tower.num_layers > 1 else last
