"""What a pipeline file says of a language model's shape (`model:`), free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Section
from stages.models.language_model_config import (
    ExpertsConfig,
    GPTConfig,
    LanguageConfig,
    LlamaConfig,
    MuP,
)
from stages.models.presets import PRESETS, preset

Family = Literal["gpt2", "llama", "qwen3", "switch"]


class ModelSection(Section):
    """The shape of the model; what is left out comes from the `preset`."""

    family: Family = "gpt2"
    """`gpt2`: LayerNorm, learned positions, GELU, tied head. `llama`: RMSNorm, rotary positions,
    SwiGLU. `qwen3`: the same with normalised queries and keys. `switch`: that with experts."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Blocks."""
    hidden_size: Annotated[int | None, Field(ge=1)] = None
    """Of the residual stream; a multiple of the heads."""
    num_heads: Annotated[int | None, Field(ge=1)] = None
    """Attention heads."""
    context_length: Annotated[int | None, Field(ge=2)] = None
    """Tokens that the model sees at once: the length of its training samples."""
    intermediate_size: Annotated[int | None, Field(ge=1)] = None
    """Hidden width of the feed-forward layer and of each expert; left out: 4 widths (gpt2), or
    8/3 of one rounded up to a multiple of 64, which makes as many weights with a gate."""
    head_size: Annotated[int | None, Field(ge=2)] = None
    """Width of a head; left out: width over heads. Not gpt2."""
    num_kv_heads: Annotated[int | None, Field(ge=1)] = None
    """Heads of keys and values that the queries share; left out: as many as heads. Not gpt2."""
    tie_embeddings: bool = True
    """Whether the head is the embedding; always in gpt2."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary frequencies. Not gpt2."""
    norm_eps: Annotated[float | None, Field(gt=0)] = None
    """Added to the mean square before its root; left out: 1e-5 (gpt2), 1e-6."""
    experts: ExpertsConfig | None = None
    """The experts of family `switch`."""
    init_scale: Annotated[float | None, Field(gt=0)] = None
    """Variance of the first weights times the fan-in; left out: 0.1 with experts (Fedus et al.
    2021, section 2.4), else GPT-2's start. Not gpt2."""
    mup: MuP | None = None
    """Carries the learning rate from a narrow model to a wide one: tune it with `mup:
    {base_width: 256}` at width 256, then set `hidden_size` alone."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    mask_documents: bool = False
    """A token sees its own document alone, and positions count from its beginning; else all that
    stands before it in its sample."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Compute each block again in the backward pass: a third more work for far less memory."""
    compile: Annotated[bool, EXECUTION] = False
    """Have torch.compile make kernels of each block at its first step, which takes seconds to
    minutes; for GPUs: processors gain nothing. At ZeRO 0, 1 and 2; blocks with experts run as they
    are. With dropout, other masks are drawn."""

    def config(self, size: str, vocab_size: int) -> LanguageConfig:
        """The shape, with the preset's where nothing is said.

        Raises:
            ValueError: sizes do not fit each other.
        """
        base = preset(size, vocab_size=vocab_size)
        context, layers = (
            self.context_length or base.context_length,
            self.num_layers or base.num_layers,
        )
        width, heads = self.hidden_size or base.hidden_size, self.num_heads or base.num_heads
        if self.family == "gpt2":
            return GPTConfig(
                vocab_size,
                context,
                layers,
                width,
                heads,
                self.dropout,
                n_inner=self.intermediate_size,
                norm_eps=self.norm_eps or 1e-5,
                mup=self.mup,
            )
        if width % heads and not self.head_size:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        experts = self.experts if self.family == "switch" else None
        return LlamaConfig(
            vocab_size,
            context,
            layers,
            width,
            heads,
            num_kv_heads=self.num_kv_heads or heads,
            intermediate_size=self.intermediate_size or -(-8 * width // (3 * 64)) * 64,
            head_size=self.head_size or width // heads,
            qk_norm=self.family != "llama",
            tie_embeddings=self.tie_embeddings,
            dropout=self.dropout,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps or 1e-6,
            experts=experts,
            init_scale=self.init_scale or (0.1 if experts else None),
            mup=self.mup,
        )

    def check(self, size: str, vocab_size: int, expert_parallel_size: int) -> Iterator[Problem]:
        """Yield what cannot work in the shape."""
        if size not in PRESETS:
            yield Problem("preset", f"no preset {size!r}", f"presets: {', '.join(PRESETS)}")
            return
        width, heads = (
            self.hidden_size or PRESETS[size].hidden_size,
            self.num_heads or PRESETS[size].num_heads,
        )
        if width % heads and not self.head_size:
            near = max(1, round(width / heads)) * heads
            yield Problem(
                "model.hidden_size", f"{width} is not a multiple of {heads} heads", f"{near} is"
            )
            return
        yield from self._check_family(expert_parallel_size)
        try:
            config = self.config(size, vocab_size)
        except ValueError as error:
            yield Problem("model", str(error), "see `headwater stages pretrain`")
            return
        if isinstance(config, LlamaConfig) and config.experts:
            for key, value in (
                ("hidden_size", config.hidden_size),
                ("intermediate_size", config.intermediate_size),
            ):
                if value % 8:
                    near = -(-value // 8) * 8
                    yield Problem(
                        f"model.{key}",
                        f"{value} is not a multiple of 8, as experts need",
                        str(near),
                    )

    def _check_family(self, expert_parallel_size: int) -> Iterator[Problem]:
        if self.family == "switch" and self.experts is None:
            yield Problem(
                "model.experts", "family switch has experts", "say `experts: {num_experts: 8}`"
            )
        if self.family != "switch" and self.experts is not None:
            yield Problem("model.family", f"{self.family} has no experts", "say `family: switch`")
        if self.experts and self.experts.num_experts % expert_parallel_size:
            yield Problem(
                "model.experts.num_experts",
                f"{self.experts.num_experts} is not divisible by train.expert_parallel_size ({expert_parallel_size})",
                f"{max(1, round(self.experts.num_experts / expert_parallel_size)) * expert_parallel_size} is",
            )
        if expert_parallel_size > 1 and self.experts is None:
            yield Problem(
                "train.expert_parallel_size", "there are no experts to spread", "set it to 1"
            )
        if self.family == "gpt2":
            modern = ("head_size", "num_kv_heads", "experts", "init_scale")
            odd = [key for key in modern if getattr(self, key) is not None]
            odd += [] if self.tie_embeddings else ["tie_embeddings"]
            odd += ["rope_theta"] if self.rope_theta != 10_000.0 else []
            for key in odd:
                yield Problem(f"model.{key}", "gpt2 has no such choice", "set model.family: llama")
