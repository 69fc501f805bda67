"""The `model:` section of a pipeline file for language models, free of torch.

A family derives its section from `LanguageModelSection` and registers it;
`AnyLanguageModelSection` in `stages.models.model_sections` is the union over all of them,
discriminated by `family`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Section
from stages.models.language_model_config import MuP
from stages.models.presets import PRESETS, ModelShape

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageModelConfig


class LanguageModelSection(Section):
    """The shape of a language model; what is missing comes from `preset`."""

    renamed: ClassVar[Mapping[str, str]] = {
        "layers": "num_layers",
        "width": "hidden_size",
        "heads": "num_heads",
        "context": "context_length",
        "inner": "intermediate_size",
        "recompute": "activation_checkpointing",
    }

    family: str
    """Architecture of the model."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Blocks. Default: the preset's."""
    hidden_size: Annotated[int | None, Field(ge=1)] = None
    """Width of the residual stream, a multiple of the heads. Default: the preset's."""
    num_heads: Annotated[int | None, Field(ge=1)] = None
    """Attention heads. Default: the preset's."""
    context_length: Annotated[int | None, Field(ge=2)] = None
    """Tokens of a training sample, the most that the model attends to. Default: the preset's."""
    intermediate_size: Annotated[int | None, Field(ge=1)] = None
    """Hidden size of the feed-forward layer and of each expert. Default: 4 hidden sizes (gpt2), or
    8/3 hidden sizes rounded up to a multiple of 64, which makes as many weights with a gate."""
    norm_eps: Annotated[float | None, Field(gt=0)] = None
    """Epsilon of the normalization layers. Default: 1e-5 (gpt2) or 1e-6."""
    mup: MuP | None = None
    """Maximal update parametrization, which transfers the learning rate from a narrow model to a
    wide one: tune it with `mup: {base_width: 256}` at hidden_size 256, then change `hidden_size`
    alone. Default: off."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate of the embeddings, the attention weights and the residual branches. Default:
    0."""
    mask_documents: bool = False
    """Attention within documents: a token attends to its own document alone, and positions count
    from its beginning. Default: off, a token attends to everything before it in its sample."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Recomputation of each block in the backward pass: a third more work for far less memory.
    Default: off."""
    compile: Annotated[bool, EXECUTION] = False
    """Compilation of each block by torch.compile at its first step, which takes seconds to minutes;
    for GPUs, because CPUs gain nothing. At ZeRO 0, 1 and 2; blocks with experts are not compiled.
    With dropout, other masks are drawn. Default: off."""

    def shape(self, preset: str) -> ModelShape:
        """Return the sizes of the preset with those of the section in their place.

        Raises:
            KeyError: there is no such preset.
        """
        given = {
            key: value
            for key in ("num_layers", "hidden_size", "num_heads", "context_length")
            if (value := getattr(self, key)) is not None
        }
        return PRESETS[preset]._replace(**given)

    @abstractmethod
    def config(self, preset: str, vocab_size: int) -> LanguageModelConfig:
        """Return the shape, completed by the preset.

        Raises:
            ValueError: sizes do not fit each other.
        """

    @property
    def fits_heads(self) -> bool:
        """True if the hidden size need not be a multiple of the heads."""
        return False

    def check(self, preset: str, vocab_size: int, expert_parallel_size: int) -> Iterator[Problem]:
        """Yield the problems of the shape."""
        if expert_parallel_size > 1:
            yield Problem("train.expert_parallel_size", "the model has no experts", "set it to 1")
        yield from self.check_shape(preset, vocab_size)

    def check_shape(self, preset: str, vocab_size: int) -> Iterator[Problem]:
        """Yield the problems of the sizes alone."""
        if preset not in PRESETS:
            yield Problem("preset", f"no preset {preset!r}", f"presets: {', '.join(PRESETS)}")
            return
        shape = self.shape(preset)
        width, heads = shape.hidden_size, shape.num_heads
        if width % heads and not self.fits_heads:
            near = max(1, round(width / heads)) * heads
            message = f"{width} is not a multiple of {heads} heads"
            yield Problem("model.hidden_size", message, f"{near} is")
            return
        try:
            self.config(preset, vocab_size)
        except ValueError as error:
            yield Problem("model", str(error), "see `headwater stages pretrain`")
