"""Train a language model on packed tokens, from nothing or from weights that are there.

    gpt:
      uses: pretrain
      tokens: ${tokens}
      tokenizer: ${tokenizer}           # that packed the tokens; or that of `init_from`, if left out
      preset: tiny                      # a preset; or num_layers, hidden_size ... under `model`
      model: {context_length: 256}
      train: {steps: 300, global_batch_size: 32, lr: 1.0e-3, zero_stage: 1}
      workers: {num: 2, cpus: 1}

`family` chooses the block: `gpt2`; `llama` (RMSNorm, rotary positions, SwiGLU); `qwen3`, which
normalises queries and keys; `switch`, that with experts (Fedus et al. 2021), which
`expert_parallel_size` spreads over workers:

      model: {family: switch, experts: {num_experts: 8, moe_every: 2, capacity_factor: 1.25}}
      train: {expert_parallel_size: 2, zero_stage: 2}

A training is spread by ZeRO 0 to 3 (`zero_stage`), by `expert_parallel_size`, with `offload_optimizer: cpu` and
`model.activation_checkpointing` to save memory, in any combination; a sample and a layer's matrices stay whole on
one worker: there is no sequence (Ulysses), tensor (AutoTP) or pipeline parallelism.

`model.mup` carries a learning rate from a narrow model to a wide one: tune it with `mup:
{base_width: 256}` at width 256, and then change the width alone (Yang et al. 2022).
`model.compile` has torch.compile make kernels of the blocks.

`init_from: ${model}` begins with the weights of a model of the same shape and tokenizer; those of a
dense one may become one with experts.

Several stores of tokens, of one tokenizer, make a mixture. Its weights belong to this stage, so a
change of them packs nothing again:

      tokens: ["${web}", "${books}", "${code}"]
      mixture: {weights: [60, 22, 18]}  # of what is trained on; or {temperature: 3}

`packing: best_fit` trains on samples of whole documents instead of windows of the stream: none is
cut that fits the context. The tokens stay as they are. Experts take no padding, and their capacity
is that of a sample's real tokens.

Out comes a folder that `transformers` loads. Figures: `loss` (last step, nats a token),
`eval_loss`, `perplexity` and `bits_per_byte` on the held-out documents, `tokens`, `parameters`;
with experts the series also hold `balance_loss` (1: even), `dropped_tokens`, `router_entropy`
(nats), and the load of each layer's busiest expert over an even share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import model_validator

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, UnsupportedKeys, stage
from stages.models.language_model_config import LanguageConfig
from stages.models.model_params import ModelSection
from stages.models.presets import recipe
from stages.objectives.causal_lm import CausalLMParams
from stages.objectives.registry import ObjectiveParams, PretrainingTask, objective_union
from stages.training.planning.device_specs import HardwareSection
from stages.training.planning.estimate import TrainingEstimate
from stages.training.training_params import MixtureSection, TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
    from pipeline.context import Context

    AnyObjective = ObjectiveParams
else:
    AnyObjective = objective_union()


class PretrainParams(Params):
    """See the module."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS
    renamed: ClassVar[Mapping[str, str]] = {
        "size": "preset",
        "start": "init_from",
        "z_loss": "objective.z_loss_coef",
    }

    preset: str = "tiny"
    """A preset of `stages.models.presets`: tiny, small, gpt2, gpt3-125m… Those of GPT-1 and GPT-3
    bring what `recipe` there knows of the paper's training, where `train` says nothing of it."""
    model: ModelSection = ModelSection()
    packing: Literal["windows", "best_fit"] = "windows"
    """What a sample is: a window of all documents in a row, or whole documents side by side, with
    padding where none fits; those longer than the context are cut to full samples first."""
    mixture: MixtureSection = MixtureSection()
    train: TrainSection = TrainSection()
    objective: AnyObjective = CausalLMParams()
    """What is trained, by `type`, with the parameters of that objective."""
    hardware: Annotated[HardwareSection, EXECUTION] = HardwareSection()
    """What it is to run on: for the plan alone."""
    seed: int = 0
    """Of the weights and the order of the samples; the pipeline's, if left out."""

    @model_validator(mode="after")
    def _follow_the_paper(self) -> PretrainParams:
        """Fill in of `train` what the preset's paper says and the file does not."""
        said = self.train.model_dump(exclude_unset=True)
        filled = TrainSection.model_validate({**recipe(self.preset), **said})
        self.__dict__["train"] = filled if recipe(self.preset) else self.train
        return self

    def config(self, vocab_size: int) -> LanguageConfig:
        """The model's shape.

        Raises:
            ValueError: sizes do not fit each other.
        """
        return self.model.config(self.preset, vocab_size)

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work in the shape and the batch."""
        vocabulary = _vocabulary(upstream)
        wrong = list(self.model.check(self.preset, vocabulary, self.train.expert_parallel_size))
        yield from wrong or self._outlook(upstream).infeasibilities()
        yield from self.train.check(self.workers)
        if self.model.compile and self.train.zero_stage == 3:
            told = "ZeRO 3 gathers weights by hooks within a block, where a compiled one has none"
            yield Problem(
                "model.compile", told, "set train.zero_stage to 0, 1 or 2, or leave it out"
            )
        yield from self.mixture.check(upstream)
        yield from _other_vocabularies(upstream)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """See `stages.training.planning.estimate`."""
        return self._outlook(upstream).estimate()

    def _outlook(self, upstream: Mapping[str, Params]) -> TrainingEstimate:
        """What is planned, with the shape of the model for the tokens' vocabulary."""
        return TrainingEstimate(
            self.config(_vocabulary(upstream)),
            self.train,
            self.workers,
            self.hardware,
            activation_checkpointing=self.model.activation_checkpointing,
            masked=self.model.mask_documents,
            start="init_from" in upstream,
        )


@stage(
    "pretrain",
    inputs={"tokens": "Tokens*", "tokenizer": "Tokenizer|Model?", "init_from": "Model?"},
    output="Model",
    version=4,
)
def pretrain(params: PretrainParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a language model on packed tokens, from random or existing weights."""
    from stages.objectives.pretraining import PROMPTS, continuations, mixture_table
    from stages.training.run_training import run_training

    task = pretraining_task(
        params, inputs.paths("tokens"), inputs.get_path("tokenizer"), inputs.get_path("init_from")
    )
    for panel in (*CURVES, *params.objective.panels(task.config)):
        ctx.panel(panel)
    if len(task.corpus.paths) > 1:
        names = [str(artifact.manifest["run"]["stage"]) for artifact in inputs["tokens"]]
        table, epochs = mixture_table(task.corpus, params.train, names)
        ctx.panel(table)
        ctx.result(**{f"epochs_{number}": value for number, value in enumerate(epochs)})
    final, texts = run_training(
        params.objective.build(task), params, ctx, out,
        then=partial(continuations, folder=out, prompts=PROMPTS, seed=params.seed),
    )  # fmt: skip
    ctx.panel(panels.samples("Continuations", texts))
    ctx.result(
        loss=final["loss"],
        eval_loss=final["eval_loss"],
        perplexity=final["eval_perplexity"],
        bits_per_byte=final["eval_bits_per_byte"],
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        parameters=task.config.parameters,
        **{name: final[name] for name in ("padding", "cut_documents") if name in final},
    )


def pretraining_task(
    params: PretrainParams,
    tokens: Sequence[Path],
    tokenizer: Path | None = None,
    init_from: Path | None = None,
) -> PretrainingTask:
    """Return the model and the data to train on, with the tokenizers checked.

    Raises:
        InputError: no tokenizer is given; or the tokens were packed with another, or with one that
            is not that of `init_from`.
    """
    from stages.data.token_dataset import TokenDataset
    from stages.objectives.pretraining import num_embeddings, require_tokenizers

    folder = tokenizer or init_from
    if folder is None:
        raise InputError(
            "no tokenizer is given",
            where="tokenizer",
            remedy="give the tokenizer that packed the tokens",
        )
    config = params.config(num_embeddings(tokens[0], init_from))
    weights, temperature = params.mixture.weights, params.mixture.temperature
    corpus = TokenDataset(
        tuple(tokens), config.context_length, params.seed, params.packing, weights, temperature
    )
    require_tokenizers(corpus, folder, init_from)
    model = params.model
    return PretrainingTask(
        config,
        corpus,
        folder,
        init_from,
        mask_documents=model.mask_documents,
        activation_checkpointing=model.activation_checkpointing,
        compile=model.compile,
        card=_card(params, config),
    )


CURVES = (
    panels.curve("Loss", ["loss", "eval_loss"], unit="nats per token"),
    panels.curve("Learning rate", ["lr"]),
    panels.curve("Gradient norm", ["grad_norm"], log_y=True),
    panels.curve("Throughput", ["tokens_per_second"], unit="tokens/s"),
)


def _vocabulary(upstream: Mapping[str, Params]) -> int:
    """The ids that the model is to know, where the plan can tell."""
    for edge in ("init_from", "tokenizer", "tokens[0].tokenizer"):
        for name in ("known_ids", "vocab_size"):
            size = getattr(upstream.get(edge), name, None)
            if isinstance(size, int):
                return size
    return 4096


def _other_vocabularies(upstream: Mapping[str, Params]) -> Iterator[Problem]:
    """What the plan can tell of tokens that another tokenizer packed."""
    own = getattr(upstream.get("tokenizer"), "vocab_size", None)
    known = getattr(upstream.get("init_from"), "known_ids", None)
    for edge in upstream:
        size = getattr(upstream.get(f"{edge}.tokenizer"), "vocab_size", None)
        if not edge.startswith("tokens[") or not size:
            continue
        if own and size != own:
            told = f"has {own} ids, and the one that packed {edge} has {size}"
            yield Problem("tokenizer", told, "name the one that the tokens were packed with")
        if known and size > known:
            told = f"knows {known} ids, and {edge} was packed with {size}"
            yield Problem("init_from", told, "pack the documents with its own tokenizer")


def _card(params: PretrainParams, config: LanguageConfig) -> str:
    train, base = params.train, params.model.mup
    mup = f", muP from width {base.base_width}" if base else ""
    return f"""# {params.model.family}, {config.parameters / 1e6:.1f} M parameters

A decoder of {config.num_layers} layers, width {config.hidden_size}, {config.num_heads} heads, context
{config.context_length}, vocabulary {config.vocab_size}; {config.active_parameters / 1e6:.1f} M parameters
work on a token. Trained for {train.steps} steps, on {train.total_samples} samples, with {train.optimizer}
(peak learning rate {train.lr:g}{mup}, {train.lr_schedule}). Documents end with `</s>`.
"""
