"""Fine-tuning: what is learned and what is read only; then the stage itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_parity import assert_transformers_agree
from torch.nn import functional as F

from pipeline.context import Context, read_series
from pipeline.errors import InputError
from pipeline.stage import Params
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.data.tokenizers.sentencepiece_tokenizer import ASSISTANT, BOS, EOS, USER, Tokenizer
from stages.models.hf_io import is_chat
from stages.models.language_model import ForwardOutputs
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.model_io import load_language_model, save_language_model
from stages.models.registry import build_model
from stages.objectives.supervised_finetuning import SFTObjective, reversed_conversation
from stages.pretrain import PretrainParams
from stages.sft import SftParams, sft
from stages.training.ranks.rank import Rank


class Inputs:
    """The edges of the stage."""

    def __init__(self, model: Path, *conversations: Path) -> None:
        self.model, self.conversations = model, conversations

    def path(self, name: str) -> Path:
        return self.model

    def paths(self, name: str) -> list[Path]:
        return list(self.conversations)


def opened(world: Path, **fields: object) -> SFTObjective:
    paths = fields.pop("paths", (world / "conversations",))
    made = SFTObjective(world / "policy", paths, **fields)  # type: ignore[arg-type]
    params = SftParams()
    made.modules = made.setup(Rank(), params.train, 0)  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def objective(world: Path) -> SFTObjective:
    return opened(world)


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
    samples = sorted((objective.train_samples[i] for i in range(6)), key=len)
    assert len(samples[0]) < len(samples[-1])
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
    made = SFTObjective(tmp_path, (world / "conversations",))
    module = made.setup(Rank(), SftParams().train, 0)["model"].module
    samples = sorted((made.train_samples[i] for i in range(12)), key=len)
    samples = [samples[0], samples[-1]]
    batch = made.collate(samples)
    assert batch["token_mask"].sum(1).tolist() == [len(sample) - 1 for sample in samples]
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


def test_swapping_asks_for_the_question() -> None:
    turns = (Message("system", "be brief"), Message("user", "why?"), Message("assistant", "so"))
    assert reversed_conversation(Conversation("a", turns)).messages == (
        Message("user", "so"),
        Message("assistant", "why?"),
    )


def test_swapped_training_reads_answers_and_learns_questions(world: Path) -> None:
    made, tokenizer = opened(world, reverse=True), Tokenizer(world / "policy")
    batch = made.collate([made.train_samples[0]])
    learned = tokenizer.decode(batch["targets"][0][batch["targets"][0] != -100].tolist())
    assert "what does the" in learned or "tell me of" in learned or "and the" in learned


def test_inputs_are_mixed_and_what_is_too_long_is_counted(world: Path, tmp_path: Path) -> None:
    long = (Message("user", "?"), Message("assistant", "the owl " * 60))
    short = (Message("user", "why?"), Message("assistant", "so"))
    write_conversations(tmp_path, [Conversation("l", long), Conversation("s", short)])
    made = opened(world, paths=(world / "conversations", tmp_path))
    assert made.setup_metrics == {"conversations": 201.0, "too_long": 1.0}


def test_nothing_to_train_on_is_said(world: Path) -> None:
    with pytest.raises(InputError, match="fits into 8 tokens") as caught:
        opened(world, max_length=8)
    assert "raise max_length" in caught.value.remedy


class Bare:
    """An engine of which only the module is asked for."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module


@pytest.mark.parametrize("reverse", [False, True], ids=["assistant", "speaker"])
def test_what_is_saved_loads_elsewhere(world: Path, tmp_path: Path, reverse: bool) -> None:
    made = opened(world, reverse=reverse)
    module = made.modules["model"].module  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.export({"model": Bare(module)}, tmp_path)  # type: ignore[dict-item]
    assert_transformers_agree(tmp_path)
    assert ("the question from the answer" in (tmp_path / "README.md").read_text()) == reverse


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
    assert results["eval_loss"] < 2.5
    assert is_chat(ctx.out)
    assert_transformers_agree(ctx.out)
    assert load_language_model(ctx.out).config == load_language_model(world / "policy").config
    panels = json.loads((ctx.observed / "panels.json").read_text())
    cards = next(panel for panel in panels if panel["title"] == "Before and after")["items"]
    assert {"prompt", "before", "after", "wanted"} == set(cards[0])
