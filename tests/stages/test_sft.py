"""Fine-tuning: what is learned and what is read only; then the stage itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hf_parity import assert_transformers_agree
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from pipeline.context import Context, read_series
from pipeline.errors import InputError
from pipeline.stage import Params
from stages.alignment.sampled_scores import SampledScores, ScoringSettings
from stages.chat.chat_format import ChatFormat
from stages.chat.packed_chats import ChatRow, num_inputs
from stages.data.conversation_dataset import (
    Conversation,
    Conversations,
    Message,
    write_conversations,
)
from stages.data.tokenizers.sentencepiece_tokenizer import ASSISTANT, BOS, EOS, USER, Tokenizer
from stages.models.hf_io import is_chat
from stages.models.language_model import ForwardOutputs
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.lora_config import trained_parameters
from stages.models.model_io import load_language_model, save_language_model
from stages.models.registry import build_model
from stages.objectives.supervised_finetuning import SFTObjective
from stages.pretrain import PretrainParams
from stages.pretrained import PretrainedParams
from stages.reward import RewardParams
from stages.sft import SftParams, SftTrain, conversation_encoder, encoded_splits, sft
from stages.training.data_order import micro_batches
from stages.training.ranks.rank import Rank


class Inputs:
    """The edges of the stage."""

    def __init__(self, model: Path, *conversations: Path) -> None:
        self.model, self.conversations = model, conversations

    def path(self, name: str) -> Path:
        return self.model

    def get_path(self, name: str) -> Path | None:
        return None

    def paths(self, name: str) -> list[Path]:
        return list(self.conversations)


def opened(
    world: Path,
    work: Path,
    *paths: Path,
    model: Path | None = None,
    **fields: object,
) -> SFTObjective:
    """Return the objective of the stage with these parameters, with its conversations encoded."""
    params, folder = SftParams.model_validate(fields), model or world / "policy"
    ctx, encoder = Context.local(work), conversation_encoder(params, folder)
    splits = encoded_splits(encoder, paths or (world / "conversations",), params, ctx)
    made = SFTObjective(
        folder,
        *splits,
        row_length=encoder.limit - 1 if params.packing else None,
        reverse=params.reverse,
    )
    made.modules = made.setup(Rank(), params.train, 0)  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def objective(world: Path, tmp_path_factory: pytest.TempPathFactory) -> SFTObjective:
    return opened(world, tmp_path_factory.mktemp("encoded"))


def test_a_length_beyond_the_models_context_is_a_problem() -> None:
    upstream: dict[str, Params] = {
        "model": PretrainParams.model_validate({"model": {"context_length": 64}})
    }
    found = [str(p) for p in SftParams(max_length=65).check(upstream)]
    assert found == ["max_length: 65 is longer than the model's context of 64 (set at most 64)"]
    assert not list(SftParams(max_length=64).check(upstream))


def test_only_the_answer_and_its_end_are_learned(objective: SFTObjective) -> None:
    batch = objective.collate([objective.train_samples[0]])
    tokens, targets = batch["tokens"][0].tolist(), batch["targets"][0].tolist()
    assert tokens[:2] == [BOS, USER]
    turn = tokens.index(ASSISTANT)
    assert set(targets[:turn]) == {-100}
    assert -100 not in targets[turn:]
    assert targets[-1] == EOS
    assert objective.units(batch) == len(targets) - turn


def test_padding_changes_nothing(objective: SFTObjective) -> None:
    """The loss of a batch is the sum of the losses of its rows alone."""
    model = objective.modules["model"].module.eval()  # type: ignore[attr-defined]
    samples = sorted((objective.train_samples[i] for i in range(6)), key=num_inputs)
    assert num_inputs(samples[0]) < num_inputs(samples[-1])
    with torch.no_grad():
        together = objective.loss(model, objective.collate(samples)).total
        alone = [objective.loss(model, objective.collate([s])).total for s in samples]
    assert float(together) == pytest.approx(float(sum(alone)), rel=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_answer(objective: SFTObjective) -> None:
    model = objective.modules["model"].module.eval()  # type: ignore[attr-defined]
    batch = objective.collate([objective.train_samples[0], objective.train_samples[1]])
    with torch.no_grad():
        logits = model(batch["tokens"])
        wanted = F.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100, reduction="sum"
        )
        found = objective.loss(model, batch).total
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_experts_are_kept_busy(world: Path, tmp_path: Path) -> None:
    """As in pretraining: the reported loss is the cross-entropy alone."""
    experts = ExpertsConfig(num_experts=4, moe_every=1, aux_loss_coef=0.5)
    sizes = {
        "context_length": 40,
        "num_layers": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
    }
    config = LlamaConfig(340, **sizes, num_kv_heads=2, head_size=16, qk_norm=True, experts=experts)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = build_model(config)
    save_language_model(model, tmp_path, world / "tokenizer")  # type: ignore[arg-type]
    made = opened(world, tmp_path / "work", model=tmp_path)
    module = made.modules["model"].module  # type: ignore[attr-defined]
    samples = sorted((made.train_samples[i] for i in range(12)), key=num_inputs)
    samples = [samples[0], samples[-1]]
    batch = made.collate(samples)
    assert batch["token_mask"].sum(1).tolist() == [num_inputs(sample) for sample in samples]
    assert not batch["token_mask"].all()
    found, outputs = made.loss(module, batch), ForwardOutputs()
    alone = module(
        batch["tokens"],
        targets_BT=batch["targets"],
        token_mask_BT=batch["token_mask"],
        outputs=outputs,
    )
    balance = torch.stack([layer.balance for layer in outputs.routing]).sum()
    tokens = batch["token_mask"].sum()
    torch.testing.assert_close(found.reported, alone.detach())
    torch.testing.assert_close(found.total, alone + 0.5 * balance * tokens)
    assert found.metrics["balance_loss"].total == pytest.approx(balance.item() / 2 * tokens)
    # However the samples fall on micro-batches, and are padded there.
    apart = [made.loss(module, made.collate([sample])) for sample in samples]
    torch.testing.assert_close(found.total, apart[0].total + apart[1].total)
    together = sum(loss.metrics["balance_loss"].total for loss in apart)
    torch.testing.assert_close(found.metrics["balance_loss"].total, together)


def test_swapped_training_reads_answers_and_learns_questions(world: Path, tmp_path: Path) -> None:
    made, tokenizer = opened(world, tmp_path, reverse=True), Tokenizer(world / "policy")
    batch = made.collate([made.train_samples[0]])
    learned = tokenizer.decode(batch["targets"][0][batch["targets"][0] != -100].tolist())
    assert "what does the" in learned or "tell me of" in learned or "and the" in learned


def results(work: Path) -> dict[str, float | None]:
    found: dict[str, float | None] = json.loads((work / "observed" / "results.json").read_text())
    return found


def test_inputs_are_mixed_and_what_is_too_long_is_counted(world: Path, tmp_path: Path) -> None:
    long = (Message("user", "?"), Message("assistant", "the owl " * 60))
    short = (Message("user", "why?"), Message("assistant", "so"))
    open_end = (Message("user", "why?"),)
    talks = [Conversation("l", long), Conversation("s", short), Conversation("o", open_end)]
    talks.append(Conversation("e", long, "eval"))
    write_conversations(tmp_path / "own", talks)
    made = opened(world, tmp_path, world / "conversations", tmp_path / "own")
    assert len(made.train_chats) == 201
    found = results(tmp_path)
    assert found["left_out"] == 2
    assert (found["left_out_too_long"], found["left_out_no_answer"]) == (1, 1)
    assert (found["eval_left_out"], found["eval_left_out_too_long"]) == (1, 1)
    assert not (tmp_path / "observed" / "warnings.json").exists()


def test_more_than_a_twentieth_left_out_is_a_warning(world: Path, tmp_path: Path) -> None:
    turns = [(Message("user", "?"), Message("assistant", "the owl " * n)) for n in (2, 60)]
    for split in ("train", "eval"):
        made = [Conversation(f"{split}{n}", t, "train") for n, t in enumerate(turns)]
        made += [Conversation(f"held-{n}", t, "eval") for n, t in enumerate(turns)]
    write_conversations(tmp_path / "own", made)
    opened(world, tmp_path, tmp_path / "own")
    warnings = json.loads((tmp_path / "observed" / "warnings.json").read_text())
    assert [warning["message"] for warning in warnings] == [
        "1 of 2 conversations (50.0%) are left out: too_long 1 (`max_length, too_long`)",
        "1 of 2 held-out conversations (50.0%) are left out: too_long 1 (`max_length, too_long`)",
    ]


def test_long_conversations_are_shortened_or_split(world: Path, tmp_path: Path) -> None:
    exchange = (Message("user", "why?"), Message("assistant", "the owl sings here"))
    write_conversations(tmp_path / "own", [Conversation("a", exchange * 8)])
    own = tmp_path / "own"
    assert len(opened(world, tmp_path / "one", own, too_long="keep_end").train_chats) == 1
    assert results(tmp_path / "one")["shortened"] == 1
    warnings = json.loads((tmp_path / "one" / "observed" / "warnings.json").read_text())
    assert "exchanges are left out" in warnings[0]["message"]
    made = opened(world, tmp_path / "all", tmp_path / "own", too_long="split_turns")
    learned = sum(int(chat.loss_mask.sum()) for chat in made.train_chats)
    alone = opened(
        world, tmp_path / "short", tmp_path / "own", too_long="split_turns", max_length=20
    )
    assert learned == sum(int(chat.loss_mask.sum()) for chat in alone.train_chats)
    assert 1 < len(made.train_chats) < len(alone.train_chats)
    assert results(tmp_path / "all")["split"] == 1


def test_the_last_answer_alone_is_learned_if_asked(world: Path, tmp_path: Path) -> None:
    turns = (Message("user", "why?"), Message("assistant", "the owl")) * 2
    write_conversations(tmp_path / "own", [Conversation("a", turns)])
    masks = {}
    for learn in ("all", "last"):
        (chat,) = opened(world, tmp_path / learn, tmp_path / "own", learn=learn).train_chats
        masks[learn] = chat.loss_mask
        ids = chat.ids
    (answers,) = np.nonzero(np.diff(masks["all"], prepend=False))
    assert len(answers) >= 3
    last = np.arange(len(ids)) >= answers[2]
    assert masks["last"].tolist() == (masks["all"] & last).tolist()


def gradient(made: SFTObjective, batches: list[list[ChatRow]], units: float) -> Tensor:
    """Return the gradient in float64 of the mean loss over the learned tokens of all batches."""
    module = made.modules["model"].module.double()  # type: ignore[attr-defined]
    module.zero_grad()
    for samples in batches:
        (made.loss(module, made.collate(samples)).total / units).backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("packing", [False, True])
def test_micro_batches_and_ranks_sum_to_the_whole_step(
    world: Path, tmp_path: Path, packing: bool
) -> None:
    made = opened(world, tmp_path, packing=packing)
    section = SftTrain(global_batch_size=8)
    (whole,) = micro_batches(made.train_samples, section, Rank(), 1, length=made.length)
    units = made.units(made.collate(whole))
    wanted = gradient(made, [whole], units)
    small = SftTrain(global_batch_size=8, micro_batch_size=2)
    for world_size in (1, 2):
        parts = [
            part
            for index in range(world_size)
            for part in micro_batches(
                made.train_samples, small, Rank(index, world_size), 1, length=made.length
            )
        ]
        assert len(parts) == 4
        assert sum(made.units(made.collate(part)) for part in parts) == units
        found = gradient(made, parts, units)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_packing_keeps_every_conversation_and_its_loss(world: Path, tmp_path: Path) -> None:
    alone, packed = opened(world, tmp_path / "a"), opened(world, tmp_path / "b", packing=True)
    assert packed.train_chats.lengths.tolist() == alone.train_chats.lengths.tolist()
    rows = packed.rows(packed.train_chats)
    assert len(rows) < 0.8 * len(packed.train_chats)
    model = alone.modules["model"].module.eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        losses = [
            sum(float(made.loss(model, made.collate([row])).total) for row in made.rows(chats))
            for made, chats in ((alone, alone.train_chats), (packed, packed.train_chats))
        ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_epochs_are_steps_over_the_data() -> None:
    assert SftTrain(epochs=2, global_batch_size=16).for_samples(100).steps == 13
    assert SftTrain(epochs=0.5, global_batch_size=16).for_samples(100).steps == 4
    assert SftTrain(epochs=0.01).for_samples(100).steps == 1
    ramp = {"initial_batch_size": 4, "steps": 2}
    grown = SftTrain.model_validate(
        {"epochs": 1, "global_batch_size": 16, "batch_size_rampup": ramp}
    ).for_samples(100)
    assert grown.total_samples >= 100 > grown.first_sample(grown.steps - 1)
    assert SftTrain(steps=7).for_samples(100).steps == 7
    assert SftTrain(steps=25, global_batch_size=16).epochs_over(200) == 2


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="either steps or epochs"):
        SftTrain(steps=5, epochs=1)
    with pytest.raises(ValueError, match="warmup_steps"):
        SftTrain(steps=5, warmup_steps=10)
    few = SftTrain(epochs=1, warmup_steps=300)
    with pytest.raises(InputError, match="1 epochs of 32 samples are 2 steps") as caught:
        few.for_samples(32)
    assert caught.value.where == "train.epochs"


def test_split_turns_without_their_last_answer_are_a_problem() -> None:
    (problem,) = SftParams(learn="last", too_long="split_turns").check({})
    assert problem.key == "too_long"
    assert not list(SftParams(learn="last", too_long="keep_end").check({}))


def test_a_template_file_is_part_of_the_identity(tmp_path: Path) -> None:
    assert SftParams(chat_template="chatml").externals() == SftParams().externals() == {}
    file = tmp_path / "own.jinja"
    digests = []
    for text in ("{{ messages }}", "{{ messages }}!"):
        file.write_text(text)
        digests.append(SftParams(chat_template=str(file)).externals()["chat_template"])
    assert digests[0] != digests[1]
    with pytest.raises(InputError, match="no chat template"):
        SftParams(chat_template=str(tmp_path / "none.jinja")).externals()


def test_nothing_to_train_on_is_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fits into 8 tokens: too_long 200") as caught:
        opened(world, tmp_path, max_length=8)
    assert "raise max_length" in caught.value.remedy
    held_out = [Conversation("e", (Message("user", "?"), Message("assistant", "so")), "eval")]
    write_conversations(tmp_path / "own", held_out)
    with pytest.raises(InputError, match="none of 0 conversations") as caught:
        opened(world, tmp_path, tmp_path / "own")
    assert "split named train" in caught.value.remedy


class Bare:
    """An engine of which only the module is asked for."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module


def test_a_template_whose_ends_are_not_learned_is_a_warning(world: Path, tmp_path: Path) -> None:
    marked = "{% generation %}{{ message.content }}"
    for name, answer, warned in (
        ("before", marked + "{% endgeneration %}{{ eos_token }}", True),
        ("with", marked + "{{ eos_token }}{% endgeneration %}", False),
    ):
        template = tmp_path / f"{name}.jinja"
        template.write_text(
            "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
            + answer
            + "{% else %}{{ message.content }}{% endif %}{% endfor %}"
        )
        opened(world, tmp_path / name, chat_template=str(template))
        found = list((tmp_path / name).rglob("warnings.json"))
        texts = "".join(path.read_text() for path in found)
        assert ("before the end token" in texts) == warned


@pytest.mark.parametrize("reverse", [False, True], ids=["assistant", "speaker"])
def test_what_is_saved_loads_elsewhere(world: Path, tmp_path: Path, reverse: bool) -> None:
    made = opened(world, tmp_path / "work", reverse=reverse)
    module = made.modules["model"].module  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.export({"model": Bare(module)}, tmp_path)  # type: ignore[dict-item]
    assert_transformers_agree(tmp_path)
    assert ("the question from the answer" in (tmp_path / "README.md").read_text()) == reverse


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("gpt2", ["q_proj"], "the model has no linear layer 'q_proj' (name attention, mlp, "),
        ("llama", ["c_attn"], "the model has no linear layer 'c_attn'"),
        ("switch", ["attention", "mlp"], "'mlp' names experts"),
        ("llama", ["q_proj", "mlp"], ""),
        ("gpt2", ["attn.c_proj"], ""),
    ],
)
@pytest.mark.parametrize("imported", [False, True])
def test_plans_refuse_adapters_of_layers_that_a_model_lacks(
    tmp_path: Path, family: str, targets: list[str], words: str, imported: bool
) -> None:
    section = {"family": family, "hidden_size": 64, "num_heads": 4, "num_layers": 2}
    section |= {"experts": {"num_experts": 4}} if family == "switch" else {}
    pretrain = PretrainParams.model_validate({"model": section})
    upstream: dict[str, Params] = {"model": pretrain}
    if imported:
        model = build_model(pretrain.model.config(pretrain.preset, 300))
        save_language_model(model, tmp_path)
        upstream = {"model": PretrainedParams.model_validate({"path": str(tmp_path)})}
    params = SftParams.model_validate({"lora": {"targets": targets}, "chat_template": "chatml"})
    found = [str(p) for p in params.check(upstream) if p.key == "lora.targets"]
    assert len(found) == bool(words)
    assert all(line.startswith(f"lora.targets: {words}") for line in found)


@pytest.mark.integration
def test_the_stage_trains_adapters_and_merges_them(world: Path, tmp_path: Path) -> None:
    ctx = Context.local(tmp_path)
    params = SftParams.model_validate(
        {
            "train": {"steps": 12, "lr": 1e-2, "micro_batch_size": 4, "eval_interval": 4},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "residual_dropout": 0.1,
            "workers": {"num": 2},
        }
    )
    sft(params, Inputs(world / "policy", world / "conversations"), ctx.out, ctx)  # type: ignore[arg-type]
    points = [
        point for point in read_series(ctx.observed / "metrics.jsonl") if "eval_loss" in point
    ]
    assert points[-1]["eval_loss"] < points[0]["eval_loss"]
    base, merged = load_language_model(world / "policy"), load_language_model(ctx.out)
    assert params.lora
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["trained_parameters"] == trained_parameters(base.config, params.lora)
    assert_transformers_agree(ctx.out)
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world / "policy"), ctx.out / "adapter"
    ).eval()
    tokens = torch.arange(4, 24)[None]
    torch.testing.assert_close(merged(tokens), reference(tokens).logits, rtol=0, atol=1e-5)
    changed = {
        n for n, w in base.state_dict().items() if not torch.equal(w, merged.state_dict()[n])
    }
    assert changed == {f"{n}.weight" for n, m in base.named_modules() if isinstance(m, nn.Linear)}
    assert "adapters of rank 4" in (ctx.out / "README.md").read_text()


class Reader(Params):
    """Parameters of a stage that reads conversations."""

    eval_share: float = 0.1


def test_plans_refuse_a_choice_of_weights_without_what_it_reads() -> None:
    scorer, held_out, none_held_out = RewardParams(), Reader(), Reader(eval_share=0.0)

    def problems(checkpoint: str, upstream: dict[str, Params], **fields: Any) -> list[str]:
        fields = {"train": {"eval_interval": 10}, **fields}
        params = SftParams.model_validate({"checkpoint": checkpoint, **fields})
        return [f"{p.key}: {p.message}" for p in params.check(upstream)]

    pooled: dict[str, Params] = {"conversations[0]": none_held_out, "conversations[1]": held_out}
    assert not problems("validation_loss", pooled)
    assert not problems("reward_score", {"scorer": scorer, **pooled})
    assert problems("reward_score", {}) == ["checkpoint: reward_score needs the input `scorer`"]
    assert problems("last", {"scorer": scorer}) == [
        "checkpoint: last does not read the input `scorer`"
    ]
    (problem,) = problems("validation_loss", pooled, train={})
    assert problem.startswith("train.eval_interval: 0 evaluates the last weights only")
    (problem,) = problems("validation_loss", {"conversations": none_held_out})
    assert problem.startswith("conversations: its split `eval` is empty")
    (problem,) = problems("reward_score", {"scorer": scorer}, reverse=True)
    assert problem == "checkpoint: a reward model scores answers, not questions"
    spread = {"eval_interval": 10, "expert_parallel_size": 2}
    found = problems("reward_score", {"scorer": scorer}, train=spread, workers={"num": 2})
    assert [problem.split(":")[0] for problem in found] == ["train.expert_parallel_size"]


class Edges(Inputs):
    """The edges of the stage with those that are optional."""

    further: ClassVar[dict[str, Path]] = {}

    def path(self, name: str) -> Path:
        return self.further.get(name, self.model)

    def get_path(self, name: str) -> Path | None:
        return self.further.get(name)


def chosen(
    world: Path, work: Path, edges: Edges, **fields: Any
) -> tuple[dict[str, Any], dict[int, dict[str, float]]]:
    """Run the stage with too high a learning rate, and return its results and evaluations."""
    ctx = Context.local(work)
    train = {"steps": 24, "global_batch_size": 16, "lr": 0.02, "eval_interval": 4}
    train |= {"lr_schedule": "constant", "eval_samples": 12, "spike_sigma": 0}
    params = SftParams.model_validate({"train": train | fields.pop("train", {}), **fields})
    sft(params, edges, ctx.out, ctx)  # type: ignore[arg-type]
    series = read_series(ctx.observed / "metrics.jsonl")
    results = json.loads((ctx.observed / "results.json").read_text())
    return results, {point["step"]: point for point in series if "eval_loss" in point}


@pytest.mark.integration
def test_the_weights_of_the_lowest_loss_are_exported(world: Path, tmp_path: Path) -> None:
    edges, rising = Edges(world / "policy", world / "conversations"), {"lr": 1, "warmup_steps": 24}
    results, points = chosen(world, tmp_path, edges, checkpoint="validation_loss", train=rising)
    best = min(points, key=lambda step: points[step]["eval_loss"])
    assert results["kept_step"] == best < 24
    assert results["eval_loss"] == points[best]["eval_loss"]
    made = opened(world, tmp_path / "again", model=tmp_path / "out")
    module = made.modules["model"].module.eval()  # type: ignore[attr-defined]
    batch = made.collate([made.eval_dataset[i] for i in range(12)])  # type: ignore[index]
    with torch.no_grad():
        loss = float(made.loss(module, batch).total) / made.units(batch)
    assert loss == pytest.approx(points[best]["eval_loss"], abs=1e-5)


@pytest.mark.integration
def test_the_weights_of_the_highest_score_are_exported(
    world: Path, scorer: Path, tmp_path: Path
) -> None:
    """With adapters, whose sharded weights are gathered to sample."""
    edges = Edges(world / "policy", world / "conversations")
    edges.further = {"scorer": scorer}  # type: ignore[misc]
    results, points = chosen(
        world, tmp_path, edges, checkpoint="reward_score", max_new_tokens=12,
        train={"zero_stage": 3}, workers={"num": 2}, lora={"rank": 4},
    )  # fmt: skip
    best = max(points, key=lambda step: points[step]["eval_reward_score"])
    assert results["kept_step"] == best
    assert results["reward_score"] == points[best]["eval_reward_score"]
    assert len({point["eval_reward_score"] for point in points.values()}) == len(points) == 6
    settings = ScoringSettings(scorer, 12, 12, 0)
    held_out = Conversations(world / "conversations", "eval")
    scores = SampledScores(settings, held_out, ChatFormat.open(tmp_path / "out"), 40, Rank())
    found = scores.mean(load_language_model(tmp_path / "out"))
    assert found == pytest.approx(results["reward_score"], abs=1e-4)


def test_a_share_of_pretraining_needs_its_input() -> None:
    (problem,) = SftParams(pretraining_share=0.2).check({})
    assert str(problem).startswith("pretraining_share: there is no input `pretraining`")
    assert not list(SftParams().check({}))


@pytest.mark.integration
def test_pretraining_tokens_are_mixed_in(world: Path, tmp_path: Path) -> None:
    edges, series = Edges(world / "policy", world / "conversations"), {}
    edges.further = {"pretraining": world / "tokens"}  # type: ignore[misc]
    for ranks in (1, 2):
        ctx = Context.local(tmp_path / str(ranks))
        train = {"steps": 6, "lr": 3e-3, "micro_batch_size": 4, "zero_stage": 3, "eval_interval": 3}
        params = SftParams.model_validate({"train": train, "workers": {"num": ranks}})
        sft(params, edges, ctx.out, ctx)  # type: ignore[arg-type]
        points = read_series(ctx.observed / "metrics.jsonl")
        names = ("loss", "loss_assistant", "loss_pretraining", "grad_norm", "eval_loss")
        series[ranks] = {name: [p[name] for p in points if name in p] for name in names}
    for name, values in series[1].items():
        assert values == pytest.approx(series[2][name], abs=1e-4), name
    for step, loss in enumerate(series[1]["loss"]):
        parts = series[1]["loss_assistant"][step] + series[1]["loss_pretraining"][step] / 9
        assert loss == pytest.approx(parts, rel=1e-6)


@pytest.mark.integration
def test_the_stage_learns_the_answers(world: Path, tmp_path: Path) -> None:
    ctx = Context.local(tmp_path)
    params = SftParams.model_validate(
        {"train": {"steps": 20, "global_batch_size": 16, "lr": 1e-3, "micro_batch_size": 4}}
    )
    sft(params, Inputs(world / "policy", world / "conversations"), ctx.out, ctx)  # type: ignore[arg-type]
    points = [point for point in read_series(ctx.observed / "metrics.jsonl") if "loss" in point]
    results = json.loads((ctx.observed / "results.json").read_text())
    assert len(points) == 20
    assert results["conversations"] == 200
    assert (results["steps"], results["epochs"], results["padding"]) == (20, 1.6, None)
    assert results["eval_loss"] < 2.5
    assert is_chat(ctx.out)
    assert_transformers_agree(ctx.out)
    assert load_language_model(ctx.out).config == load_language_model(world / "policy").config
    panels = json.loads((ctx.observed / "panels.json").read_text())
    cards = next(panel for panel in panels if panel["title"] == "Before and after")["items"]
    assert {"prompt", "before", "after", "wanted"} == set(cards[0])
