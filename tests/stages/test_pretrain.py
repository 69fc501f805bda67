"""Pretraining: parameters, estimates, figures; then the stage itself, on two processes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_parity import assert_transformers_agree
from pydantic import ValidationError
from toy_alignment import CONTEXT, another_tokenizer

from pipeline.context import Context, read_series
from pipeline.errors import InputError
from pipeline.fingerprint import identity_fields
from pipeline.spec.validation_messages import validation_issues
from pipeline.stage import Params
from stages.data.token_dataset import TokenDataset
from stages.data.token_store import TokenStore, TokenWindows, write_index, write_shard
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, Tokenizer
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.llama.configuration_llama import LlamaConfig
from stages.objectives.causal_lm import CausalLMObjective
from stages.objectives.pretraining import mixture_table
from stages.pretrain import PretrainParams, pretrain, pretraining_task
from stages.training.ranks.rank import Rank

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 16}


class Vocabulary(Params):
    vocab_size: int = 512


class Inputs:
    """Two edges of a pipeline file."""

    def __init__(self, world: Path) -> None:
        self.world = world

    def path(self, name: str) -> Path:
        return self.world / name

    def get_path(self, name: str) -> Path | None:
        return self.path(name) if name == "tokenizer" else None

    def paths(self, name: str) -> list[Path]:
        return [self.path(name)]


def problems(**fields: object) -> list[str]:
    return [str(p) for p in PretrainParams.model_validate(fields).check({})]


def test_a_good_file_has_no_problems() -> None:
    assert not problems(model=SHAPE, train={"global_batch_size": 32}, workers={"num": 2})


def test_what_cannot_work_is_said_before_anything_starts() -> None:
    assert problems(model={"hidden_size": 130, "num_heads": 4}) == [
        "model.hidden_size: 130 is not a multiple of 4 heads (128 is)"
    ]
    assert problems(train={"global_batch_size": 32}, workers={"num": 3}) == [
        "train.global_batch_size: 32 is not divisible by workers.num (3) (33 is)"
    ]
    assert "no preset 'huge' (presets: nano, tiny" in problems(preset="huge")[0]


def test_experts_are_checked_before_anything_starts() -> None:
    switch = {**SHAPE, "family": "switch", "experts": {"num_experts": 4}, "intermediate_size": 64}
    assert not problems(model=switch, train={"expert_parallel_size": 2}, workers={"num": 2})
    assert problems(model=switch, train={"expert_parallel_size": 3}, workers={"num": 3})[0] == (
        "model.experts.num_experts: 4 is not divisible by train.expert_parallel_size (3) (3 is)"
    )
    assert "train.expert_parallel_size: workers.num (2) is not divisible by 4" in " ".join(
        problems(model=switch, train={"expert_parallel_size": 4}, workers={"num": 2})
    )
    assert problems(model={**switch, "intermediate_size": 60}) == [
        "model.intermediate_size: 60 is not a multiple of 8, which experts need (64 is)"
    ]
    sizes = {"train": {"expert_parallel_size": 2}, "workers": {"num": 2}}
    assert "the model has no experts" in problems(model=SHAPE, **sizes)[0]
    llama = {**SHAPE, "family": "llama", "num_kv_heads": 3}
    assert "cannot share 3 heads" in problems(model=llama)[0]
    sparse = {**switch, "experts": {"num_experts": 4, "moe_every": 3}}
    assert "none of 2 blocks has experts" in problems(model=sparse)[0]


@pytest.mark.parametrize(
    ("model", "issue"),
    [
        ({"family": "switch"}, "model.experts: missing"),
        ({"family": "llama", "experts": {"num_experts": 4}}, "model.experts: cannot be combined"),
        ({"num_kv_heads": 1}, "model.num_kv_heads: cannot be combined"),
        ({"family": "bert"}, "model.family: expected 'gpt2' or 'llama'"),
        ({"width": 64}, "model.width: renamed to 'hidden_size'"),
        (
            {"family": "switch", "experts": {"num": 4}},
            "model.experts.num: renamed to 'num_experts'",
        ),
    ],
)
def test_keys_of_another_family_are_refused(model: dict[str, object], issue: str) -> None:
    data = {"model": model}
    with pytest.raises(ValidationError) as error:
        PretrainParams.model_validate(data)
    found = validation_issues(error.value, PretrainParams, data, ())
    messages = [f"{'.'.join(map(str, one.path))}: {one.message}" for one in found]
    assert any(message.startswith(issue) for message in messages), messages


def test_a_shape_of_somebody_elses_can_be_said() -> None:
    said = {
        "family": "qwen3",
        "hidden_size": 96,
        "num_heads": 5,
        "head_size": 32,
        "num_kv_heads": 1,
    }
    params = PretrainParams.model_validate({"model": {**said, "norm_eps": 1e-5}})
    assert not list(params.check({}))
    config = params.config(300)
    assert isinstance(config, LlamaConfig)
    assert (config.head_size, config.norm_eps, config.num_heads) == (32, 1e-5, 5)


def test_weights_go_with_stores_and_not_with_a_temperature() -> None:
    params = PretrainParams.model_validate({"mixture": {"weights": [3, 1]}})
    stores = {f"tokens[{k}]": Params() for k in range(3)}
    assert [str(p) for p in params.check(stores)] == [
        "mixture.weights: 2 weights for 3 stores (give one per item of `tokens`)"
    ]
    assert not list(params.check(dict(list(stores.items())[:2])))
    assert "mixture.temperature" in problems(mixture={"weights": [3, 1], "temperature": 2})[0]
    for bad in ({"weights": [0, 1]}, {"weights": [math.inf]}, {"temperature": 0.5}):
        with pytest.raises(ValueError, match="mixture"):
            PretrainParams.model_validate({"mixture": bad})


def test_presets_give_what_is_left_out() -> None:
    config = PretrainParams(preset="gpt2").config(50257)
    assert (config.num_layers, config.hidden_size, config.parameters) == (12, 768, 124_439_808)
    own = PretrainParams.model_validate(
        {"preset": "gpt2", "model": {"num_layers": 3, "context_length": 64}}
    )
    assert own.config(500).num_layers == 3
    assert own.config(500).hidden_size == 768
    assert (own.config(500).context_length, own.config(500).vocab_size) == (64, 500)


def test_a_preset_brings_its_papers_training_where_the_file_says_nothing() -> None:
    said = {"preset": "gpt3-13b", "train": {"lr": 3e-4, "micro_batch_size": 4}}
    train = PretrainParams.model_validate(said).train
    assert (train.lr, train.micro_batch_size) == (3e-4, 4)
    assert train.global_batch_size * 2048 == pytest.approx(2e6, rel=0.02)
    assert train.steps * train.global_batch_size * 2048 == pytest.approx(300e9, rel=1e-4)
    assert train.num_warmup_steps * train.global_batch_size * 2048 == pytest.approx(375e6, rel=0.01)
    assert (train.beta2, train.weight_decay, train.min_lr_ratio) == (0.95, 0.1, 0.1)
    assert PretrainParams(preset="gpt3-125m").train.lr == 6e-4
    assert PretrainParams(preset="gpt1").train.global_batch_size == 64
    assert PretrainParams(preset="gpt2").train == PretrainParams(preset="tiny").train


def test_the_estimate_knows_the_vocabulary_and_the_formulas() -> None:
    params = PretrainParams.model_validate({"preset": "gpt2", "train": {"steps": 10}})
    known = params.estimate({"tokens[0].tokenizer": Vocabulary()})
    config = params.config(512)
    assert known["parameters"] == config.parameters
    assert known["tokens"] == 10 * 32 * 1024
    assert known["flops"] == known["tokens"] * config.flops_per_token
    assert params.estimate({})["parameters"] > known["parameters"]


def test_recomputing_is_asked_for_in_the_file_and_costs_no_identity(world: Path) -> None:
    plain, thrifty = (
        PretrainParams.model_validate(
            {"preset": "gpt2", "model": {"activation_checkpointing": asked}}
        )
        for asked in (False, True)
    )
    assert identity_fields(plain) == identity_fields(thrifty)
    assert thrifty.estimate({})["memory_bytes"] < 0.6 * plain.estimate({})["memory_bytes"]
    params = PretrainParams.model_validate({"model": {**SHAPE, "activation_checkpointing": True}})
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    module: Any = made.setup(Rank(), params.train, 0)["model"].module
    assert module.activation_checkpointing


def test_compiling_and_muP_reach_the_model_from_the_file(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "true")
    said = {**SHAPE, "compile": True, "mup": {"base_width": 16}}
    params = PretrainParams.model_validate({"model": said})
    plain = PretrainParams.model_validate({"model": {**said, "compile": False}})
    assert identity_fields(params) == identity_fields(plain)
    assert identity_fields(params) != identity_fields(
        PretrainParams.model_validate({"model": SHAPE})
    )
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    trainable = made.setup(Rank(), params.train, 0)["model"]
    module: Any = trainable.module
    assert all(block._compiled_call_impl for block in module.blocks)
    assert trainable.lr_multipliers["h.1.mlp.c_fc.weight"] == 0.5


def objective_of(params: PretrainParams, *paths: Any, **named: Any) -> CausalLMObjective:
    return params.objective.build(pretraining_task(params, *paths, **named))  # type: ignore[return-value]


@pytest.fixture
def objective(world: Path) -> CausalLMObjective:
    params = PretrainParams.model_validate({"model": SHAPE, "train": {"global_batch_size": 8}})
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    made.setup(Rank(), params.train, 0)
    return made


def test_a_tokenizer_of_other_tokens_is_refused(world: Path, tmp_path: Path) -> None:
    params = PretrainParams.model_validate({"model": SHAPE})
    tokens = (second_store(tmp_path / "nameless", vocab_size=999),)
    with pytest.raises(InputError, match=r"a tokenizer of 999 ids, not with .* of 340"):
        objective_of(params, tokens, world / "tokenizer")
    with pytest.raises(InputError, match="no tokenizer is given"):
        objective_of(params, tokens)


def test_a_tokenizer_or_a_start_of_the_same_size_is_told_apart(world: Path, tmp_path: Path) -> None:
    """The same numbers would be trained on in silence, as other text."""
    params, tokens = PretrainParams.model_validate({"model": SHAPE}), (world / "tokens",)
    other = another_tokenizer(world / "policy", tmp_path / "other")
    own = Tokenizer(world / "tokenizer").digest[:12]
    for tokenizer, start in ((other, None), (None, other), (world / "tokenizer", other)):
        with pytest.raises(InputError, match=f"tokenizer {own} of 340 ids, .* in {other}") as found:
            objective_of(params, tokens, tokenizer, start)
        assert found.value.where == str(world / "tokens")
        assert found.value.exit_code == 2
    made = objective_of(params, tokens, init_from=world / "policy")
    assert made.tokenizer_folder == world / "policy", "a start brings its tokenizer"


def test_a_start_of_other_positions_is_refused(world: Path) -> None:
    """GPT-2 has weights for each: the model's context, which is the length of its samples too, so
    that none is longer than its positions."""
    shape = {"num_layers": 2, "hidden_size": 48, "num_heads": 2}

    def begun(context: int) -> CausalLMObjective:
        params = PretrainParams.model_validate({"model": {**shape, "context_length": context}})
        made = objective_of(params, [world / "tokens"], init_from=world / "policy")
        model = made.setup(Rank(), params.train, 0)["model"].module
        inputs = made.collate([made.train_samples[0], made.eval_dataset[0]])["tokens"]
        assert inputs.shape[1] == model.wpe.num_embeddings == context
        with pytest.raises(ValueError, match=f"{context + 1} tokens do not fit a context"):
            model(torch.zeros(1, context + 1, dtype=torch.long))
        return made

    begun(CONTEXT)
    for context in (CONTEXT - 8, CONTEXT + 8):
        with pytest.raises(InputError, match=f"context_length: {CONTEXT}, not {context}$") as found:
            begun(context)
        assert found.value.exit_code == 2
        assert "under `model`" in found.value.remedy


def test_the_plan_tells_vocabularies_apart() -> None:
    class Larger(Vocabulary):
        vocab_size: int = 600

    edges: dict[str, Params] = {"tokens[0]": Params(), "tokens[0].tokenizer": Vocabulary()}
    params = PretrainParams.model_validate({"model": SHAPE, "train": {"global_batch_size": 32}})
    assert not list(params.check({**edges, "tokenizer": Vocabulary()}))
    assert [str(p) for p in params.check({**edges, "tokenizer": Larger()})] == [
        "tokenizer: has 600 ids, and the one that packed tokens[0] has 512 "
        "(give the tokenizer that packed the tokens)"
    ]


def test_targets_are_the_next_tokens(objective: CausalLMObjective) -> None:
    batch = objective.collate([objective.train_samples[0], objective.train_samples[1]])
    assert batch["tokens"].shape == batch["targets"].shape == (2, 16)
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert objective.units(batch) == objective.num_tokens(batch) == 32


def test_boundaries_of_documents_reach_the_batch_and_the_model(
    objective: CausalLMObjective,
) -> None:
    assert "segments" not in objective.collate([objective.train_samples[0]])
    objective.mask_documents = True
    batch = objective.collate([objective.train_samples[i] for i in range(40)])
    ends = batch["tokens"] == EOS
    assert ends[:, 1:].any()
    assert torch.equal(batch["segments"][:, 1:], ends[:, 1:].cumsum(1))
    assert not batch["positions"][ends].any() and not batch["positions"][:, 0].any()
    steps = batch["positions"].diff(dim=1)[~ends[:, 1:]]
    assert torch.equal(steps, torch.ones_like(steps))
    model = GPT(objective.config)
    masked = objective.loss(model, batch).total
    objective.mask_documents = False
    assert objective.loss(model, batch).total != masked
    cut = model(batch["tokens"], segments_BT=batch["segments"], positions_BT=batch["positions"])
    wanted = torch.nn.functional.cross_entropy(
        cut.flatten(0, 1), batch["targets"].flatten(), reduction="sum"
    )
    torch.testing.assert_close(masked, wanted)


def test_best_fit_learns_each_token_of_whole_documents_once(world: Path) -> None:
    params = PretrainParams.model_validate({"model": SHAPE, "packing": "best_fit"})
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    made.setup(Rank(), params.train, 0)
    samples: Any = made.train_samples
    batch = made.collate([samples[i] for i in range(len(samples))])
    store = TokenStore(world / "tokens")
    assert made.units(batch) == store.tokens
    assert made.num_tokens(batch) == pytest.approx(
        store.tokens / (1 - made.setup_metrics["padding"])
    )
    assert made.setup_metrics["cut_documents"] == sum(
        len(store.document(k)) > 16 for k in range(store.documents)
    )
    assert batch["segments"].shape == batch["positions"].shape == batch["tokens"].shape
    small = made.collate([samples[0], samples[1]])
    model = GPT(made.config)
    learned = small["targets"][small["targets"] != -100]
    with torch.no_grad():
        found = made.loss(model, small)
    assert int(found.metrics["bytes"]) == sum(made.bytes_per_token[learned].tolist())
    torch.nn.init.zeros_(model.wte.weight)
    even = made.loss(model, small).total.item()
    assert even / made.units(small) == pytest.approx(math.log(340))


def test_the_loss_of_an_even_guess_is_the_log_of_the_vocabulary(
    objective: CausalLMObjective,
) -> None:
    batch = objective.collate([objective.train_samples[0]])
    model = GPT(objective.config)
    torch.nn.init.zeros_(model.wte.weight)
    even = objective.loss(model, batch)
    assert even.total.item() / 16 == pytest.approx(math.log(340))
    assert not even.metrics
    with torch.no_grad():
        counted = objective.loss(model, batch)
    sizes = torch.tensor(Tokenizer(objective.tokenizer_folder).byte_counts)
    assert int(counted.metrics["bytes"]) == int(sizes[batch["targets"]].sum())


def test_one_store_gives_the_samples_it_always_gave(world: Path) -> None:
    params = PretrainParams.model_validate({"model": SHAPE, "seed": 9, "mixture": {"weights": [5]}})
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    made.setup(Rank(), params.train, 9)
    plain = TokenStore(world / "tokens").samples(16, 9)
    for index in (0, 1, 77, 5000):
        assert np.array_equal(made.train_samples[index], plain[index])
    held_out = TokenStore(world / "tokens", "eval").samples(16)
    assert isinstance(made.eval_dataset, TokenWindows)
    assert len(made.eval_dataset) == len(held_out)


def second_store(
    folder: Path, vocab_size: int = 340, held_out: int = 90, tokenizer: str | None = None
) -> Path:
    folder.mkdir()
    shards = {}
    for split, size in (("train", 700), ("eval", held_out)):
        ids = np.full(size, 300, "<u2")
        shards[split] = [write_shard(folder, f"{split}-0", ids, np.array([size], np.uint64))]
    write_index(folder, vocab_size=vocab_size, eos_id=3, splits=shards, tokenizer=tokenizer)
    return folder


@pytest.mark.parametrize("packing", ["windows", "best_fit"])
def test_stores_are_mixed_by_weight_without_packing_again(
    world: Path, tmp_path: Path, packing: str
) -> None:
    paths = (world / "tokens", second_store(tmp_path / "other"))
    for weights in ([1, 3], [4, 1]):
        params = PretrainParams.model_validate(
            {"model": SHAPE, "packing": packing, "mixture": {"weights": weights}}
        )
        made = objective_of(params, paths, world / "tokenizer")
        made.setup(Rank(), params.train, 0)
        batch = made.collate([made.train_samples[i] for i in range(200)])
        others = int(torch.isin(batch["targets"], torch.tensor([300, -100])).all(1).sum())
        assert others == 200 * weights[1] / sum(weights)
    assert ("padding" in made.setup_metrics) == (packing == "best_fit")
    assert made.eval_dataset is not None
    singles = [len(TokenStore(path, "eval").samples(16)) for path in paths]
    assert len(made.eval_dataset) == sum(singles)


def test_by_temperature_and_what_cannot_be_mixed(world: Path, tmp_path: Path) -> None:
    other = second_store(tmp_path / "other", held_out=5)
    sizes = [TokenStore(path).tokens for path in (world / "tokens", other)]
    for temperature, power in ((1, 1.0), (2, 0.5)):
        corpus = TokenDataset((world / "tokens", other), 16, 0, temperature=temperature)
        expected = sizes[1] ** power / sum(size**power for size in sizes)
        assert corpus.mixture.proportions[1] == pytest.approx(expected, abs=1e-4)
    assert len(corpus.eval) == len(TokenStore(world / "tokens", "eval").samples(16))
    with pytest.raises(InputError, match="3 weights for 2 token stores"):
        _ = TokenDataset((world / "tokens", other), 16, 0, weights=(1, 2, 3)).train
    strange = second_store(tmp_path / "strange", vocab_size=500)
    with pytest.raises(InputError, match=r"340 ids, .*/strange with tokenizer unknown of 500"):
        _ = TokenDataset((world / "tokens", strange), 16, 0).train
    named = second_store(tmp_path / "named", tokenizer="1" * 32)
    with pytest.raises(InputError, match="/named with tokenizer 111111111111 of 340"):
        _ = TokenDataset((world / "tokens", named), 16, 0).train


def test_the_report_names_stores_and_epochs(world: Path, tmp_path: Path) -> None:
    params = PretrainParams.model_validate(
        {
            "model": SHAPE,
            "mixture": {"weights": [1, 1]},
            "train": {"steps": 20, "global_batch_size": 8},
        }
    )
    made = objective_of(
        params, (world / "tokens", second_store(tmp_path / "o")), world / "tokenizer"
    )
    table, epochs = mixture_table(made.corpus, params.train, ["a", "b"])
    assert [row[:2] for row in table["rows"]] == [["a", 50.0], ["b", 50.0]]
    assert table["rows"][1][2:4] == [700, 80 * 16]
    assert epochs[1] == pytest.approx(80 / (700 // 16))


def test_experts_are_told_and_kept_busy(world: Path) -> None:
    params = PretrainParams.model_validate({
        "model": {
            **SHAPE, "family": "switch",
            "experts": {"num_experts": 4, "moe_every": 1, "router_z_loss_coef": 0.5},
        },
        "objective": {"z_loss_coef": 0.25}, "train": {"global_batch_size": 8},
    })  # fmt: skip
    made = objective_of(params, (world / "tokens",), world / "tokenizer")
    model: Any = made.setup(Rank(), params.train, 0)["model"].module
    batch = made.collate([made.train_samples[0], made.train_samples[1]])
    found = made.loss(model, batch)
    assert set(found.metrics) == {
        "balance_loss", "router_z", "dropped_tokens", "router_entropy",
        "load_layer_0", "load_layer_1",
    }  # fmt: skip
    assert found.metrics["load_layer_0"].total.sum().item() == pytest.approx(32)
    log_z = model(batch["tokens"]).logsumexp(-1).square().sum()
    means = {name: found.metrics[name] / 32 for name in ("balance_loss", "router_z")}
    router_aux_loss = 2 * 32 * (0.01 * means["balance_loss"] + 0.5 * means["router_z"])
    assert found.reported is not None
    torch.testing.assert_close(found.total, found.reported + 0.25 * log_z + router_aux_loss)
    assert 0 < found.metrics["router_entropy"].item() / 32 <= math.log(4) + 1e-5


@pytest.mark.integration
def test_a_switch_is_trained_over_two_workers_from_a_dense_model(
    world: Path, tmp_path: Path
) -> None:
    dense = {**SHAPE, "family": "qwen3", "intermediate_size": 48}
    train = {"steps": 30, "global_batch_size": 16, "lr": 1e-2}
    first = Context.local(tmp_path / "dense")
    params = {"model": dense, "train": train, "workers": {"num": 2}}
    pretrain(PretrainParams.model_validate(params), Inputs(world), first.out, first)  # type: ignore[arg-type]
    inputs: Any = Inputs(world)
    inputs.get_path = {"init_from": first.out}.get
    ctx = Context.local(tmp_path / "switch")
    params = {
        "model": {**dense, "family": "switch", "experts": {"num_experts": 4}},
        "train": {**train, "expert_parallel_size": 2, "zero_stage": 2},
        "workers": {"num": 2},
    }
    pretrain(PretrainParams.model_validate(params), inputs, ctx.out, ctx)
    series = read_series(ctx.observed / "metrics.jsonl")
    before = read_series(first.observed / "metrics.jsonl")
    assert series[0]["loss"] < before[0]["loss"] - 1, "it goes on from the dense weights"
    assert all(1 <= point["load_layer_1"] <= 4 for point in series if "loss" in point)
    assert_transformers_agree(ctx.out)
    assert dict(ctx_results(ctx))["eval_loss"] < dict(ctx_results(first))["eval_loss"]


@pytest.mark.integration
def test_the_stage_learns_and_leaves_a_model_that_everybody_loads(
    world: Path, tmp_path: Path
) -> None:
    ctx = Context.local(tmp_path)
    params = PretrainParams.model_validate(
        {
            "model": SHAPE,
            "train": {"steps": 60, "global_batch_size": 16, "lr": 1e-2, "eval_interval": 30},
            "workers": {"num": 2},
        }
    )
    pretrain(params, Inputs(world), ctx.out, ctx)  # type: ignore[arg-type]
    series = read_series(ctx.observed / "metrics.jsonl")
    losses = [point["loss"] for point in series if "loss" in point]
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(340), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
    assert all(point["mfu"] > 0 for point in series if "loss" in point)
    results = dict(ctx_results(ctx))
    assert results["perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    assert 0 < results["bits_per_byte"] < 8
    assert results["tokens"] == 60 * 16 * 16
    assert_transformers_agree(ctx.out)
    assert (ctx.out / "README.md").read_text().count("Trained for")
    assert (ctx.out / "tokenizer.model").exists()


def ctx_results(ctx: Context) -> list[tuple[str, float]]:
    found: dict[str, float] = json.loads((ctx.observed / "results.json").read_text())
    return list(found.items())
