"""The costs of training a CLIP: FLOPs, traffic, memory.

What all models have in common (weights, gradients, optimizer, their traffic, time) is in
`stages.training.planning`; this is CLIP's own part: two towers whose activations meet in one loss,
the logits of every image and caption of the batch, features that travel to all devices, and
gradient caching, which embeds every pair twice.

Imports no torch: `headwater plan` reads this module. Symbols: n devices, B pairs per device, G per
step, E dimensions of an embedding, T tokens or patches per sample, C width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.models.clip.configuration_clip import CLIPConfig
from stages.training.planning.cost_model import Arithmetic, Traffic, weight_traffic
from stages.training.planning.memory_model import Memory, device_memory

if TYPE_CHECKING:
    from stages.models.language_model_config import Matrix
    from stages.training.planning.device_layout import Layout

FLOAT = 4
"""Bytes of a number of an embedding or of a logit, whatever the model computes in."""


@dataclass(frozen=True)
class ClipCost:
    """The costs of training a CLIP."""

    config: CLIPConfig
    batch_size: int
    """Pairs per step, over all devices."""
    kept_patches: int | None = None
    """Patches per image that patch dropout keeps. Default: all."""
    local_loss: bool = True
    """True if each device computes only its own rows and columns of the logits."""

    num_experts = 0
    sample_unit = "pairs"
    exchange = "features"

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.config.parameters

    @property
    def matmul_width(self) -> int:
        """Typical width of the matrices."""
        return self.config.matmul_width

    @property
    def load_overhead(self) -> float:
        """Bytes that loading `init_from` takes next to the model's own weights."""
        return float(FLOAT * (self.config.parameters + self.config.merged_parameters))

    @property
    def sigmoid(self) -> bool:
        """True if the loss is SigLIP's, for which only captions travel."""
        return self.config.bias

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of the transformer blocks."""
        return self.config.block_matrices()

    # --- FLOPs -----------------------------------------------------------------------------

    @property
    def image_flops(self) -> float:
        """FLOPs of a forward and backward pass per image."""
        return 3.0 * self.config.vision.flops(self.config.embed_dim, self.kept_patches)

    @property
    def text_flops(self) -> float:
        """FLOPs of a forward and backward pass per caption that fills the context."""
        return 3.0 * self.config.text.flops(self.config.embed_dim)

    @property
    def similarity_flops(self) -> float:
        """FLOPs per pair of the logits of a step, forward and backward: it meets G others."""
        return 3 * 2.0 * self.config.embed_dim * self.batch_size

    def arithmetic(self, layout: Layout, samples: float) -> Arithmetic:
        """Return the FLOPs of a training on that many pairs, and the most tokens of captions."""
        # Of CLIP's logits each device computes its rows and its columns, or all of them.
        alone = self.sigmoid or layout.world == 1
        times = 1 if alone else 2 if self.local_loss else layout.world
        vision, text = self.config.vision, self.config.text
        image_flops = self.image_flops - 3.0 * vision.skipped_flops(self.kept_patches)
        text_flops = self.text_flops - 3.0 * text.skipped_flops()
        again = (image_flops + text_flops) / 3 if layout.gradient_accumulation_steps > 1 else 0.0
        if layout.activation_checkpointing:
            again += (text_flops + (image_flops if vision.checkpointed else 0.0)) / 3
        similarity = self.similarity_flops
        return Arithmetic(
            tokens=float(samples) * text.context_length,
            flops=samples * (self.image_flops + self.text_flops + similarity),
            hardware_flops=samples * (image_flops + text_flops + again + times * similarity),
        )

    def traffic(self, layout: Layout) -> Traffic:
        """Return what one device sends in a step: all devices get all features, and the gradient of
        each is summed over all devices, which sends them twice."""
        around = (layout.world - 1) / layout.world
        ring = self.config.parameters * around * layout.bytes
        # Gradient caching embeds without a graph first.
        forwards = 2 if layout.gradient_accumulation_steps > 1 else 1
        reduced, gathered = weight_traffic(ring, layout, forwards=forwards)
        sides = 1 if self.sigmoid else 2
        features = sides * around * self.batch_size * self.config.embed_dim * FLOAT
        return Traffic(reduced, gathered, exchanged=3 * features)

    # --- memory ----------------------------------------------------------------------------

    def memory(self, layout: Layout) -> Memory:
        """Return what one device holds."""
        config = self.config
        embedding = config.text.vocab_size * config.text.hidden_size
        return device_memory(
            layout,
            config.parameters,
            config.parameters / layout.world,
            self.activations(layout),
            largest_module_weights=float(max(config.vision.largest_matrix, embedding)),
            embedding=embedding,
        )

    def activations(self, layout: Layout) -> float:
        """Return the bytes of activations at their most: of both towers and the loss at the end of
        the forward pass, or of what remains with the gradients of a tower's last block. Gradient
        caching computes the loss without the towers' activations, which are those of one
        micro-batch."""
        image, text = self.image_bytes(layout), self.text_bytes(layout)
        image_gradients, text_gradients = self._gradient_bytes(layout)
        towers = max(image + text + text_gradients, image + image_gradients)
        similarity, batch = self.similarity_bytes(layout), self.batch_bytes(layout)
        if layout.gradient_accumulation_steps > 1:
            pairs = layout.micro_batch_size * layout.gradient_accumulation_steps
            kept = 4.0 * FLOAT * pairs * self.config.embed_dim  # embeddings and their gradients
            return batch + kept + max(towers, similarity)
        return batch + max(towers, image + text + similarity)

    def batch_bytes(self, layout: Layout) -> float:
        """Return the bytes of all pairs of a device in a step: pixels in float32 and ids."""
        vision, text = self.config.vision, self.config.text
        pair = FLOAT * 3.0 * vision.image_size**2 + 8 * text.context_length
        return layout.micro_batch_size * layout.gradient_accumulation_steps * pair

    def similarity_bytes(self, layout: Layout) -> float:
        """Return the bytes of the loss: features of all devices with gradients, logits with what
        their softmax, or sigmoid, keeps and returns."""
        B, G = layout.micro_batch_size * layout.gradient_accumulation_steps, self.batch_size
        gathered = 0 if layout.world == 1 else 1 if self.sigmoid else 2
        features = gathered * 2.5 * G * self.config.embed_dim  # one at a time is copied
        if self.sigmoid:
            logits = 5 * B * G
        elif self.local_loss and layout.world > 1:
            logits = 4 * B * G
        else:
            logits = 5 * G * G
        return FLOAT * (features + logits)

    def image_bytes(self, layout: Layout) -> float:
        """Return the bytes that the image tower keeps of a micro-batch for its backward pass."""
        return layout.micro_batch_size * self.config.vision.activation_bytes(
            layout.bytes, self.kept_patches, checkpointing=layout.activation_checkpointing
        )

    def text_bytes(self, layout: Layout) -> float:
        """Return the bytes that the text tower keeps of a micro-batch for its backward pass."""
        text = self.config.text
        return layout.micro_batch_size * text.kept_bytes(
            layout.bytes, text.context_length, checkpointing=layout.activation_checkpointing
        )

    def _gradient_bytes(self, layout: Layout) -> tuple[float, float]:
        """Return the bytes of gradients of each tower, in addition to all that they keep, when its
        backward pass is in a last block."""
        vision, text = self.config.vision, self.config.text
        size, checkpointing = layout.bytes, layout.activation_checkpointing
        image = vision.working_bytes(size, self.kept_patches, checkpointing=checkpointing)
        caption = text.context_length * text.gradient_bytes(size, checkpointing=checkpointing)
        return layout.micro_batch_size * image, layout.micro_batch_size * caption

    # --- plan ------------------------------------------------------------------------------

    def sizes(self, layout: Layout, samples: float) -> dict[str, float]:
        """Return parameters, FLOPs and activations by tower, and those of the loss."""
        config, pairs = self.config, float(samples)
        return {
            "active_parameters": config.parameters,
            "image_parameters": config.vision.parameters(config.embed_dim),
            "text_parameters": config.text.parameters(config.embed_dim),
            "pairs": pairs,
            "image_flops": pairs * self.image_flops,
            "text_flops": pairs * self.text_flops,
            "similarity_flops": pairs * self.similarity_flops,
            "image_bytes": self.image_bytes(layout),
            "text_bytes": self.text_bytes(layout),
            "similarity_bytes": self.similarity_bytes(layout),
            "batch_bytes": self.batch_bytes(layout),
        }

    def parts(self, layout: Layout, samples: float) -> Mapping[str, Mapping[str, float]]:
        """Return the parts of parameters, FLOPs and activations."""
        found = self.sizes(layout, samples)
        towers = {"image tower": "image", "text tower": "text"}
        flops = towers | {"similarity": "similarity"}
        held = towers | {"features and logits": "similarity", "pixels": "batch"}
        return {
            "parameters": {label: found[f"{key}_parameters"] for label, key in towers.items()},
            "flops": {label: found[f"{key}_flops"] for label, key in flops.items()},
            "activations": {label: found[f"{key}_bytes"] for label, key in held.items()},
        }
