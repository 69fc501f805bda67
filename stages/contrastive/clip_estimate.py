"""What a plan says of training a CLIP, and what it refuses: see `stages.training.planning.estimate`.

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.contrastive.clip_cost_model import (
    Run,
    arithmetic,
    batch_bytes,
    image_bytes,
    image_flops,
    load_overhead,
    memory,
    similarity_bytes,
    similarity_flops,
    text_bytes,
    text_flops,
    traffic,
)
from stages.models.clip.configuration_clip import CLIPConfig
from stages.training.planning.estimate import TrainingEstimate

if TYPE_CHECKING:
    from stages.training.planning.cost_model import Arithmetic, Layout, Traffic
    from stages.training.planning.memory_model import Memory


@dataclass(frozen=True)
class ClipEstimate(TrainingEstimate):
    """A training of a CLIP as a plan sees it."""

    config: CLIPConfig  # type: ignore[assignment]  # whatever asks of a language model is below
    kept: int | None = None
    """Patches of an image that are looked at; None is all of them."""
    local_loss: bool = True

    @property
    def run(self) -> Run:
        """The same for the formulas."""
        return Run(self.config, self.train.global_batch_size, self.kept, self.local_loss)

    def _work(self, layout: Layout) -> Arithmetic:
        return arithmetic(self.run, layout, self.train.total_samples)

    def _memory(self, layout: Layout) -> Memory:
        return memory(self.run, layout)

    def _traffic(self, layout: Layout) -> Traffic:
        return traffic(self.run, layout)

    def _reading(self) -> float:
        return load_overhead(self.config)

    def _size(self, layout: Layout) -> dict[str, float]:
        """Parameters, FLOPs and activations by tower, and those of the loss."""
        run, config, pairs = self.run, self.config, float(self.train.total_samples)
        return {
            "active_parameters": config.parameters,
            "image_parameters": config.vision.parameters(config.embed_dim),
            "text_parameters": config.text.parameters(config.embed_dim),
            "pairs": pairs,
            "image_flops": pairs * image_flops(run),
            "text_flops": pairs * text_flops(run),
            "similarity_flops": pairs * similarity_flops(run),
            "image_bytes": image_bytes(run, layout),
            "text_bytes": text_bytes(run, layout),
            "similarity_bytes": similarity_bytes(run, layout),
            "batch_bytes": batch_bytes(run, layout),
        }
