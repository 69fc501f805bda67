"""Train a language model from nothing on packed tokens.

    gpt:
      uses: pretrain
      tokens: ${tokens}
      size: tiny                        # a preset; or each of layers, width, heads under `model`
      model: {context: 256}
      train: {steps: 300, global_batch: 32, lr: 1.0e-3, zero: 1}
      workers: {num: 2, cpus: 1}

Several stores of tokens, of one tokenizer, make a mixture. Its weights belong to this stage, so a
change of them packs nothing again:

      tokens: ["${web}", "${books}", "${code}"]
      mixture: {weights: [60, 22, 18]}  # of what is trained on; or {temperature: 3}

`packing: best_fit` trains on samples of whole documents instead of windows of the stream: none is
cut that fits the context. The tokens stay as they are.

Out comes a folder that `transformers` loads. Figures: `loss` (last step, nats a token),
`eval_loss`, `perplexity` and `bits_per_byte` on the held-out documents, `tokens`, `parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, Section, stage
from stages.models.config import GPTConfig
from stages.models.presets import PRESETS, preset
from stages.training.objective import Batch, LanguageObjective, Loss, Metrics, Trainable
from stages.training.settings import MixtureSection, TrainSection

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.context import Context
    from stages.data.corpus import Corpus
    from stages.data.tokenizer import Tokenizer
    from stages.training.engine import Engine
    from stages.training.rank import Rank

CPU_FLOPS, GPU_FLOPS = 4e10, 2e14
"""What a core, and a GPU, may be expected to do in a second; for estimates only."""
PROMPTS = ("The", "This function returns", "class ", "To install", "Example::", "")


class ModelSection(Section):
    """The shape of the model; what is left out comes from the preset `size`."""

    family: Literal["gpt2"] = "gpt2"
    """`gpt2`: LayerNorm, learned positions, GELU, tied head."""
    layers: Annotated[int | None, Field(ge=1)] = None
    """Blocks."""
    width: Annotated[int | None, Field(ge=1)] = None
    """Of the residual stream; a multiple of the heads."""
    heads: Annotated[int | None, Field(ge=1)] = None
    """Attention heads."""
    context: Annotated[int | None, Field(ge=2)] = None
    """Tokens that the model sees at once: the length of its training samples."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    recompute: Annotated[bool, EXECUTION] = False
    """Compute each block again in the backward pass: a third more work for far less memory."""


class PretrainParams(Params):
    """See the module."""

    size: str = "tiny"
    """A preset of `stages.models.presets`: tiny, small, gpt2, gpt3-125m…"""
    model: ModelSection = ModelSection()
    packing: Literal["windows", "best_fit"] = "windows"
    """What a sample is: a window of all documents in a row, or whole documents side by side, with
    padding where none fits; those longer than the context are cut to full samples first."""
    mixture: MixtureSection = MixtureSection()
    train: TrainSection = TrainSection()
    seed: int = 0
    """Of the weights and the order of the samples; the pipeline's, if left out."""

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's shape.

        Raises:
            ValueError: the width is not a multiple of the heads.
        """
        base = preset(self.size, vocab_size=vocab_size)
        own = self.model
        return GPTConfig(
            vocab_size,
            context=own.context or base.context,
            layers=own.layers or base.layers,
            width=own.width or base.width,
            heads=own.heads or base.heads,
            dropout=own.dropout,
        )

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work in the shape and the batch."""
        if self.size not in PRESETS:
            yield Problem("size", f"no preset {self.size!r}", f"presets: {', '.join(PRESETS)}")
            return
        try:
            self.config(_vocabulary(upstream))
        except ValueError:
            width = self.model.width or PRESETS[self.size].width
            heads = self.model.heads or PRESETS[self.size].heads
            near = max(1, round(width / heads)) * heads
            yield Problem(
                "model.width", f"{width} is not a multiple of {heads} heads", f"{near} is"
            )
        yield from self.train.check(self.workers)
        yield from self.mixture.check(upstream)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Parameters, tokens, FLOPs, bytes a device, seconds."""
        config = self.config(_vocabulary(upstream))
        tokens = float(self.train.steps * self.train.global_batch * config.context)
        flops = tokens * config.flops_per_token
        return {
            "parameters": config.parameters,
            "tokens": tokens,
            "flops": flops,
            "memory_bytes": memory_bytes(
                config, self.train, self.workers.num, recompute=self.model.recompute
            ),
            "disk_bytes": 4.0 * config.parameters * (1 + 3 * self.train.keep),
            "seconds": flops / _speed(self),
        }


def memory_bytes(
    config: GPTConfig, train: TrainSection, world: int, *, recompute: bool = False
) -> float:
    """Bytes on one device: weights, gradients, Adam's state (Rajbhandari et al. 2020, section 5)
    and the activations of one micro-batch, logits and their gradient among them."""
    low = 2 if train.dtype == "bfloat16" else 4
    share = [world if train.zero >= stage else 1 for stage in (1, 2, 3)]
    masters = 12 if low == 2 or train.zero else 8
    state = config.parameters * (low / share[2] + low / share[1] + masters / share[0])
    positions = train.micro(world) * config.context
    block = 16 * config.width + 2 * config.heads
    kept = block + config.layers * config.width if recompute else config.layers * block
    return state + positions * (low * kept + 8 * config.vocab_size)


@stage(
    "pretrain", inputs={"tokens": "Tokens*", "tokenizer": "Tokenizer?"}, output="Model", version=1
)
def pretrain(params: PretrainParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a language model from nothing on packed tokens."""
    from stages.training.group import WorkerGroup
    from stages.training.loop import fit

    objective = Pretraining(params, tuple(inputs.paths("tokens")), inputs.get_path("tokenizer"))
    _show(ctx)
    if len(objective.tokens_paths) > 1:
        _show_mixture(objective, inputs["tokens"], ctx)
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
        texts = group.run(continuations, out, PROMPTS, params.seed)[0]
    ctx.panel(panels.samples("What the model writes", texts))
    ctx.result(
        loss=final["loss"],
        eval_loss=final["eval_loss"],
        perplexity=final["eval_perplexity"],
        bits_per_byte=final["eval_bits_per_byte"],
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        parameters=objective.config.parameters,
        **{name: final[name] for name in ("padding", "cut_documents") if name in final},
    )


@dataclass
class Pretraining(LanguageObjective):
    """Predict the next token in windows of packed documents."""

    params: PretrainParams
    tokens_paths: tuple[Path, ...]
    tokenizer_path: Path | None

    @cached_property
    def config(self) -> GPTConfig:
        """The model's shape, for the tokens' vocabulary."""
        from stages.data.tokens import TokenStore

        return self.params.config(TokenStore(self.tokens_paths[0]).vocab_size)

    @property
    def corpus(self) -> Corpus:
        """What it is trained on."""
        from stages.data.corpus import Corpus

        return Corpus(
            self.tokens_paths,
            self.config.context,
            self.params.seed,
            self.params.packing,
            self.params.mixture.weights,
            self.params.mixture.temperature,
        )

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files are."""
        return self.tokenizer_path or self.tokens_paths[0]

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Map the tokens and draw the initial weights.

        Raises:
            InputError: the tokenizer is not the one that made the tokens.
        """
        import torch

        from stages.models.gpt import GPT

        corpus = self.corpus
        self.train, self.held_out, self.facts = corpus.train, corpus.held_out, corpus.facts
        self.flops_per_token = float(self.config.flops_per_token)
        self._bytes = torch.tensor(self._tokenizer().byte_counts, device=rank.device)
        model = GPT(self.config)
        model.recompute = self.params.model.recompute
        return {"model": Trainable(model)}

    def _tokenizer(self) -> Tokenizer:
        from stages.data.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.tokenizer_folder)
        if len(tokenizer) != self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the tokens were made with "
                f"{self.config.vocab_size}",
                where=str(self.tokenizer_folder),
                remedy="name the tokenizer that the tokens were packed with",
            )
        return tokenizer

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Windows of T + 1 ids, or packed samples -> (B, T) of inputs, targets, and for masks the
        segments (the documents of a sample, counted from 0) and the positions within them."""
        import numpy as np
        import torch

        from stages.data.bestfit import Packed
        from stages.data.tokenizer import EOS
        from stages.data.tokens import boundaries

        if isinstance(samples[0], Packed):
            names = ("tokens", "targets", "segments", "positions")
            return {n: torch.from_numpy(np.stack([getattr(s, n) for s in samples])) for n in names}
        windows = np.stack(samples)
        segments, positions = boundaries(windows[:, :-1], EOS)
        return {
            "tokens": torch.from_numpy(windows)[:, :-1],
            "targets": torch.from_numpy(windows)[:, 1:],
            "segments": torch.from_numpy(segments),
            "positions": torch.from_numpy(positions),
        }

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy, in float32; without a gradient the targets' bytes too."""
        import torch

        total = model(batch["tokens"], targets_BT=batch["targets"])
        if torch.is_grad_enabled():
            return Loss(total)
        # What is ignored counts as <pad>, which stands for no bytes.
        return Loss(total, {"bytes": self._bytes[batch["targets"].clamp(min=0)].sum()})

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Loss, perplexity, and bits per byte, which compare across tokenizers."""
        found = dict(super().evaluate(engines, step))
        per_token = found.pop("eval_bytes")
        bits = found["eval_loss"] / math.log(2) / per_token if per_token else math.nan
        return {**found, "eval_bits_per_byte": bits}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model's folder."""
        from stages.models.huggingface import save_language_model

        model: Any = engines["model"].module
        save_language_model(model, out, self.tokenizer_folder, card=_card(self))


def continuations(
    rank: Rank, folder: Path, prompts: Sequence[str], seed: int
) -> list[dict[str, str]]:
    """What the exported model writes after each prompt, at the beginning of a document."""
    if not rank.first:
        return []
    from stages.data.tokenizer import EOS, PAD, Tokenizer
    from stages.generation.sampling import Decoding, sample
    from stages.models.huggingface import load_language_model

    model, tokenizer = load_language_model(folder).to(rank.device), Tokenizer(folder)
    ids = [[EOS, *tokenizer.encode(prompt)] for prompt in prompts]
    room = model.config.context - max(map(len, ids))
    if room < 1:
        return []
    decoding = Decoding(min(80, room), temperature=0.8, top_p=0.95)
    drawn = sample(model, ids, decoding, eos_id=EOS, pad_id=PAD, seed=seed, device=rank.device)
    return [
        {"prompt": prompt or "(nothing)", "text": tokenizer.decode(drawn.ids(row))}
        for row, prompt in enumerate(prompts)
    ]


def _show(ctx: Context) -> None:
    ctx.panel(panels.curve("Loss", ["loss", "eval_loss"], unit="nats a token"))
    ctx.panel(panels.curve("Learning rate", ["lr"]))
    ctx.panel(panels.curve("Gradient norm", ["grad_norm"], log_y=True))
    ctx.panel(panels.curve("Speed", ["tokens_per_second"], unit="tokens/s"))


def _show_mixture(objective: Pretraining, tokens: Sequence[Artifact], ctx: Context) -> None:
    """What is drawn of each store in the whole run, and how often that goes through it.

    Raises:
        InputError: the stores were packed with different tokenizers.
    """
    references = [artifact.manifest["inputs"].get("tokenizer", ()) for artifact in tokens]
    made_by = {reference["digest"] for found in references for reference in found}
    if len(made_by) > 1:
        raise InputError(
            "the stores of tokens were packed with different tokenizers",
            where="tokens",
            remedy="pack all of them with one",
        )
    train, corpus = objective.params.train, objective.corpus
    mixture = corpus.mixture
    samples = train.steps * train.global_batch
    drawn = (mixture.schedule.drawn(samples) * objective.config.context).tolist()
    names = [str(artifact.manifest["run"]["stage"]) for artifact in tokens]
    held, epochs = [store.tokens for store in corpus.stores()], mixture.epochs(samples)
    shares = [round(100 * share, 3) for share in mixture.shares]
    rows = list(zip(names, shares, held, drawn, [round(e, 3) for e in epochs], strict=True))
    columns = ("store", "% of samples", "tokens held", "tokens drawn", "epochs")
    ctx.panel(panels.table("Mixture", columns, rows))
    ctx.result(**{f"epochs_{number}": value for number, value in enumerate(epochs)})


def _vocabulary(upstream: Mapping[str, Params]) -> int:
    """The tokenizer's vocabulary, where the plan knows it."""
    for edge in ("tokenizer", "tokens[0].tokenizer"):
        size = getattr(upstream.get(edge), "vocab_size", None)
        if isinstance(size, int):
            return size
    return 4096


def _speed(params: Params) -> float:
    each = params.workers.gpus * GPU_FLOPS or params.workers.cpus * CPU_FLOPS
    return params.workers.num * each


def _card(objective: Pretraining) -> str:
    config, train = objective.config, objective.params.train
    return f"""# GPT, {config.parameters / 1e6:.1f} M parameters

A decoder of {config.layers} layers, width {config.width}, {config.heads} heads, context
{config.context}, vocabulary {config.vocab_size}, in the layout of GPT-2. Trained for
{train.steps} steps of {train.global_batch} x {config.context} tokens with AdamW
(peak learning rate {train.lr:g}, {train.schedule}). Documents end with `</s>`.
"""
