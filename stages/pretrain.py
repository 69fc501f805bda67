"""Train a language model on packed tokens, from random weights or those of another model.

    gpt:
      uses: pretrain
      tokens: ${tokens}
      tokenizer: ${tokenizer}           # which packed the tokens. Default: that of `init_from`
      preset: tiny                      # or num_layers, hidden_size and num_heads under `model`
      model: {context_length: 256}
      train: {steps: 300, global_batch_size: 32, lr: 1.0e-3, zero_stage: 1}
      workers: {num: 2, cpus: 1}

`model.family` selects the block: `gpt2`; `llama` (RMSNorm, rotary positions, SwiGLU); `qwen3`, with
normalised queries and keys; `switch`, a Qwen3 block with experts (Fedus et al. 2021), which
`expert_parallel_size` distributes over workers:

      model: {family: switch, experts: {num_experts: 8, moe_every: 2, capacity_factor: 1.25}}
      train: {expert_parallel_size: 2, zero_stage: 2}

Training is distributed by ZeRO 0 to 3 (`zero_stage`) and by `expert_parallel_size`;
`offload_optimizer: cpu` and `model.activation_checkpointing` save memory. All of them combine. A
sample and the matrices of a layer stay whole on one worker: there is no sequence (Ulysses), tensor
(AutoTP) or pipeline parallelism.

`model.mup` transfers a learning rate from a narrow model to a wide one: tune it with `mup:
{base_width: 256}` at hidden_size 256, then change hidden_size only (Yang et al. 2022).
`model.compile` compiles the blocks by torch.compile.

`init_from: ${model}` starts from the weights of a model of the same shape and tokenizer. Those of a
dense model can initialise one with experts.

Several token stores of one tokenizer form a mixture. Its weights are a parameter of this stage, so
that a change of them packs nothing again:

      tokens: ["${web}", "${books}", "${code}"]
      mixture: {weights: [60, 22, 18]}  # proportions of the samples; or {temperature: 3}

`packing: best_fit` builds samples from whole documents instead of windows of the stream: no
document that fits the context is split. The token store is not rewritten. Padding is not routed to
experts, and their capacity is that of the real tokens of a sample.

`objective` selects what is trained, by `type`; the default is causal_lm:

      objective: {type: causal_lm, z_loss_coef: 1.0e-4}

The output is a folder that `transformers` loads. Metrics: `loss` (last step, nats per token),
`eval_loss`, `perplexity` and `bits_per_byte` on the held-out documents, `tokens`, `parameters`.
With experts the series also hold `balance_loss` (1 if balanced), `dropped_tokens`,
`router_entropy` (nats), and per layer the load of the busiest expert over an even share.
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
from stages.models.language_model_config import LanguageModelConfig
from stages.models.model_sections import AnyLanguageModelSection, default_section
from stages.models.presets import PRESETS
from stages.models.registry import families
from stages.objectives.causal_lm import CausalLMParams
from stages.objectives.objective_registry import ObjectiveParams, PretrainingTask, objective_union
from stages.training.optim.recipes import recipe
from stages.training.planning.device_specs import HardwareSection
from stages.training.planning.estimate import TrainingEstimate
from stages.training.planning.estimate_row import EstimateRow
from stages.training.planning.foreign_keys import FOREIGN_KEYS
from stages.training.planning.language_model_cost import LanguageModelCost
from stages.training.training_params import MixtureSection, PretrainTrain

if TYPE_CHECKING:
    from pipeline.context import Context

    AnyObjective = ObjectiveParams
else:
    AnyObjective = objective_union()


class PretrainParams(Params):
    """Parameters of `pretrain`."""

    unsupported_keys: ClassVar[UnsupportedKeys] = FOREIGN_KEYS
    renamed: ClassVar[Mapping[str, str]] = {
        "size": "preset",
        "start": "init_from",
        "z_loss": "objective.z_loss_coef",
    }

    preset: str = "tiny"
    """Preset of `stages.models.presets`: tiny, small, gpt2, gpt3-125m... Those of GPT-1 and GPT-3
    also set the training parameters of the paper that `train` leaves out. Default: tiny."""
    model: AnyLanguageModelSection = default_section()
    packing: Literal["windows", "best_fit"] = "windows"
    """Form of samples: `windows` of the concatenated documents, or whole documents packed by
    `best_fit` with padding, after those longer than the context are split. Default: windows."""
    mixture: MixtureSection = MixtureSection()
    train: PretrainTrain = PretrainTrain()
    objective: AnyObjective = CausalLMParams()
    """Objective, by `type`, with its parameters. Default: causal_lm."""
    hardware: Annotated[HardwareSection, EXECUTION] = HardwareSection()
    """Hardware that `plan` assumes; without effect on the training."""
    seed: int = 0
    """Seed of initial weights and order of samples. Default: the seed of the pipeline."""

    @model_validator(mode="after")
    def _complete_training(self) -> PretrainParams:
        """Fill in the training parameters of the preset's paper that the file leaves out, and the
        steps of `train.tokens`.

        Not before validation, because strict types would then refuse the lists of a pipeline file.
        """
        if found := recipe(self.preset):
            given = self.train.model_dump(exclude_unset=True)
            left = {k: v for k, v in found.items() if k != "steps" or "tokens" not in given}
            self.__dict__["train"] = PretrainTrain.model_validate({**left, **given})
        if self.preset in PRESETS:
            context_length = self.model.shape(self.preset).context_length
            self.__dict__["train"] = self.train.for_context(context_length)
        return self

    def config(self, vocab_size: int) -> LanguageModelConfig:
        """Return the shape of the model.

        Raises:
            ValueError: sizes do not fit each other.
        """
        return self.model.config(self.preset, vocab_size)

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts within the shape, the batch, the objective and the inputs."""
        if self._preset_is_unused():
            message = "has no effect: model gives every size"
            yield Problem("preset", message, "leave it out, or a size of model")
        vocabulary = _vocab_size(upstream)
        wrong = list(self.model.check(self.preset, vocabulary, self.train.expert_parallel_size))
        yield from wrong or self._training_estimate(upstream).infeasibilities()
        yield from self.objective.check(families()[self.model.family])
        yield from self.train.check(self.workers)
        if self.model.compile and self.train.zero_stage == 3:
            reason = "ZeRO 3 gathers weights by hooks within a block, and a compiled one has none"
            yield Problem("model.compile", reason, "set train.zero_stage to 0, 1 or 2")
        yield from self.mixture.check(upstream)
        yield from _vocabulary_conflicts(upstream)

    def epochs_over(self, sizes: Sequence[float]) -> list[float]:
        """Return the epochs over token stores of these sizes, tokens, in a training."""
        weights = self.mixture.weights or [size ** (1 / self.mixture.temperature) for size in sizes]
        context_length = self.model.shape(self.preset).context_length
        tokens = self.train.total_samples * context_length
        shares = [weight / sum(weights) for weight in weights]
        return [tokens * share / size for share, size in zip(shares, sizes, strict=False)]

    def _preset_is_unused(self) -> bool:
        """Return whether the file names a preset that determines neither a size nor a setting."""
        sizes = ("num_layers", "hidden_size", "num_heads", "context_length")
        given = all(getattr(self.model, size) is not None for size in sizes)
        default = type(self).model_fields["preset"].default
        return self.preset != default and given and not recipe(self.preset)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Return the estimate of time, memory and disk."""
        return self._training_estimate(upstream).metrics()

    def estimate_rows(self, upstream: Mapping[str, Params]) -> list[EstimateRow]:
        """Return the rows of the estimate in a plan."""
        return self._training_estimate(upstream).rows()

    def _training_estimate(self, upstream: Mapping[str, Params]) -> TrainingEstimate:
        """Return the estimate of the training, with the vocabulary of the tokens."""
        return TrainingEstimate(
            LanguageModelCost(self.config(_vocab_size(upstream))),
            self.train,
            self.workers,
            self.hardware,
            activation_checkpointing=self.model.activation_checkpointing,
            document_mask=self.model.mask_documents,
            initialized="init_from" in upstream,
        )


@stage(
    "pretrain",
    inputs={"tokens": "Tokens*", "tokenizer": "Tokenizer|Model?", "init_from": "Model?"},
    output="Model",
    version=4,
    metrics={
        "loss": "loss of the last step, nats per token",
        "eval_loss": "loss on held-out documents, nats per token",
        "perplexity": "exponential of `eval_loss`",
        "bits_per_byte": "the same loss per byte of text, bits",
        "tokens": "tokens of the training",
        "skipped_steps": "steps that were skipped because of a spike",
        "parameters": "parameters of the model",
        "padding": "share of padding, with packing best_fit",
        "cut_documents": "documents that were split, with packing best_fit",
        "epochs_*": "epochs over one of several token stores",
    },
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
        after_export=partial(continuations, folder=out, prompts=PROMPTS, seed=params.seed),
    )  # fmt: skip
    ctx.panel(panels.samples("Continuations", texts))
    ctx.result(
        loss=final["loss"],
        tokens=final["tokens"],
        skipped_steps=final["skipped_steps"],
        parameters=task.config.parameters,
        **{name: final[key] for key, name in RESULTS.items() if key in final},
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
    require_tokenizers(corpus, folder, init_from, params.objective.special_tokens)
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


RESULTS = {
    "eval_loss": "eval_loss",
    "eval_perplexity": "perplexity",
    "eval_bits_per_byte": "bits_per_byte",
    "padding": "padding",
    "cut_documents": "cut_documents",
}
"""Metrics of a training that not every objective or packing has, and their names as results."""

CURVES = (
    panels.curve("Loss", ["loss", "eval_loss"], unit="nats per token"),
    panels.curve("Learning rate", ["lr"]),
    panels.curve("Gradient norm", ["grad_norm"], log_y=True),
    panels.curve("Throughput", ["tokens_per_second"], unit="tokens/s"),
)


def _vocab_size(upstream: Mapping[str, Params]) -> int:
    """Return the vocabulary size, as far as it is known before the run; else a usual one."""
    for edge in ("init_from", "tokenizer", "tokens[0].tokenizer"):
        for name in ("known_ids", "vocab_size"):
            size = getattr(upstream.get(edge), name, None)
            if isinstance(size, int):
                return size
    return 4096


def _vocabulary_conflicts(upstream: Mapping[str, Params]) -> Iterator[Problem]:
    """Yield tokens that another tokenizer packed, as far as it is known before the run."""
    own = getattr(upstream.get("tokenizer"), "vocab_size", None)
    known = getattr(upstream.get("init_from"), "known_ids", None)
    for edge in upstream:
        size = getattr(upstream.get(f"{edge}.tokenizer"), "vocab_size", None)
        if not edge.startswith("tokens[") or not size:
            continue
        if own and size != own:
            reason = f"has {own} ids, and the one that packed {edge} has {size}"
            yield Problem("tokenizer", reason, "give the tokenizer that packed the tokens")
        if known and size > known:
            reason = f"has {known} ids, and {edge} was packed with {size}"
            yield Problem("init_from", reason, "pack the documents with its own tokenizer")


def _card(params: PretrainParams, config: LanguageModelConfig) -> str:
    train, base = params.train, params.model.mup
    mup = f", muP from width {base.base_width}" if base else ""
    return f"""# {params.model.family}, {config.parameters / 1e6:.1f} M parameters

A decoder of {config.num_layers} layers, width {config.hidden_size}, {config.num_heads} heads,
context {config.context_length}, vocabulary {config.vocab_size};
{config.active_parameters / 1e6:.1f} M parameters work on a token. Trained for {train.steps} steps,
on {train.total_samples} samples, with {train.optimizer} (peak learning rate {train.lr:g}{mup},
{train.lr_schedule}). Documents end with `</s>`.
"""
